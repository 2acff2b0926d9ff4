"""Changes the number of partitions while everything runs: `python -m worker repartition N`.

While the routes are closed, the broker returns what gateways publish, and the workers apply what is queued. The new
number is declared only when all of it is committed, which preserves each owner's order. After an interruption, at
whatever point, run it again to complete it.
"""

import asyncio

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from shared.broker import HEARTBEAT_SECONDS, REPLY_TO, SETUP_TIMEOUT_SECONDS, broker_call, open_connection, user_of
from shared.contracts import COMMANDS_CONTENT_TYPE, encode_batch
from shared.partitions import hold_lock, require_partitions
from shared.queues import QueueMismatchError, exists
from shared.topology import RoutingState, Topology
from worker.remake import StillConsumedError, move, require_no_consumer
from worker.settings import WorkerSettings

LOCK_TIMEOUT_SECONDS = 3.0 * HEARTBEAT_SECONDS
"""The broker may keep the lock of an interrupted run for that long, if its host is lost."""
DRAIN_TIMEOUT_SECONDS = 60.0
"""Limit on the time for which writes are refused."""
SETTLE_SECONDS = 1.0
"""The time for messages that the broker was routing, perhaps on another node, when the routes were closed."""
REPLY_SECONDS = 5.0
"""After this long without a reply, another empty message is sent: a reply may be lost with its channel."""
LEAVE_CHECKS = 150
"""The number of checks, in half a minute, for workers to leave queues that are no longer partitions."""

log = structlog.get_logger()


class NotDoneError(ConnectionError):
    """The change is not complete; the message says why, and which number applies."""


async def repartition(settings: WorkerSettings, partitions: int) -> int:
    """Change the broker's number of partitions; returns the former one.

    Raises NotDoneError or a broker error; then it can be run again.
    """
    async with open_connection(settings.broker_url, "inkwell-worker repartitioning") as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        with broker_call():
            async with hold_lock(connection, Topology.of(settings), LOCK_TIMEOUT_SECONDS):
                former = await require_partitions(channel, Topology.of(settings))
                topology = Topology(former.prefix, partitions, former.queue_limit_bytes)
                if former != topology:
                    await change(connection, channel, former, topology)
                else:
                    await topology.bind_existing(channel)  # a former run may have been interrupted before that
                await delete_others(channel, topology, user_of(settings.broker_url))
    return former.partitions


async def change(
    connection: AbstractConnection, channel: AbstractChannel, former: Topology, topology: Topology
) -> None:
    """Close the routes, wait until everything that is queued is committed, and open routes to the new partitions."""
    if former.routes is not RoutingState.CLOSED:
        # If a partition does not drain, this fails before a write is refused.
        await drain(connection, former)
    for partition in range(topology.partitions):
        try:
            await topology.declare_command_queue(channel, partition)
        except QueueMismatchError as error:
            raise NotDoneError(f"not done; the number is unchanged: {error}") from error
    await former.close_routes(channel)
    closed_at = asyncio.get_running_loop().time()
    log.info("writes are refused until everything that is queued is applied", partitions=former.partitions)
    try:
        await asyncio.sleep(SETTLE_SECONDS)
        await drain(connection, former)
    except (NotDoneError, asyncio.CancelledError):
        await former.open_routes(channel, former)
        raise
    await topology.open_routes(channel, former)
    seconds = round(asyncio.get_running_loop().time() - closed_at, 1)
    log.info("writes are accepted again", partitions=topology.partitions, refused_for_seconds=seconds)


async def drain(connection: AbstractConnection, topology: Topology) -> None:
    """Wait until workers have committed everything that is queued now; raises NotDoneError."""
    waiting = set(range(topology.partitions))

    async def drain_one(partition: int) -> None:
        await drain_partition(connection, topology, partition)
        waiting.discard(partition)

    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_SECONDS):
            await asyncio.gather(*map(drain_one, sorted(waiting)))
    except TimeoutError:
        names = ", ".join(map(str, sorted(waiting)))
        raise NotDoneError(
            f"not done; the number is unchanged. No worker has applied everything in partitions {names} within "
            f"{DRAIN_TIMEOUT_SECONDS:.0f} s. `python -m worker doctor` says why; workers of earlier versions never do"
        ) from None


async def drain_partition(connection: AbstractConnection, topology: Topology, partition: int) -> None:
    """Wait until a worker has committed everything that is in a partition's queue now.

    AMQP does not report the number of unacknowledged messages. So this publishes an empty message, to which a worker
    replies once everything before it is committed.
    """
    replied = asyncio.Event()

    async def receive(_: AbstractIncomingMessage) -> None:
        replied.set()

    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    await (await channel.get_queue(REPLY_TO, ensure=False)).consume(receive, no_ack=True)
    while not replied.is_set():
        empty = Message(
            encode_batch([]),
            content_type=COMMANDS_CONTENT_TYPE,
            delivery_mode=DeliveryMode.PERSISTENT,
            reply_to=REPLY_TO,
        )
        await channel.default_exchange.publish(empty, topology.command_queue(partition), timeout=SETUP_TIMEOUT_SECONDS)
        try:
            await asyncio.wait_for(replied.wait(), REPLY_SECONDS)
        except TimeoutError:
            log.info("the partition is not drained yet", partition=partition)
    await channel.close()


async def delete_others(channel: AbstractChannel, topology: Topology, user: str) -> None:
    """Delete the queues that are no longer partitions once their consumers have left; raises NotDoneError.

    They hold only empty messages, and commands that the broker took very long to route; these are moved to a partition.
    """
    end = topology.partitions
    while await exists(channel, queue=topology.command_queue(end)):
        end += 1
    for partition in reversed(range(topology.partitions, end)):  # an interruption leaves no gap before the others
        queue = topology.command_queue(partition)
        try:
            await require_no_consumer(channel, queue, checks=LEAVE_CHECKS)
        except StillConsumedError:
            raise NotDoneError(
                f"the number is changed, but {queue} still has a consumer: stop the workers of earlier versions, and "
                "run this again"
            ) from None
        await move(channel, queue, topology.command_queue(0), user)
        await channel.queue_delete(queue)
