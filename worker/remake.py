"""Redeclares a command queue with the right arguments: `python -m worker queues remake N`.

Its messages are moved to a parking queue and back. While that queue exists, no worker consumes the partition and the
exchange routes nothing to it, which preserves the order. After an interruption, run it again to complete it.
"""

import asyncio

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from shared.broker import open_connection, user_of
from shared.queues import QueueMismatchError, declare_queue, exists
from shared.topology import Topology, build_quorum_arguments
from worker.settings import WorkerSettings

STEP_TIMEOUT_SECONDS = 10.0
CONSUMER_CHECKS = 10
CONSUMER_CHECK_SECONDS = 0.2
PREFETCH_MESSAGES = 20


class StillConsumedError(Exception):
    """The queue has a consumer, whose unacknowledged messages would be lost."""


async def remake(settings: WorkerSettings, partition: int) -> int:
    """Redeclare a partition's queue if its arguments are wrong; returns the number of messages moved.

    Raises StillConsumedError or a broker error; then it can be run again.
    """
    topology = Topology.of(settings)
    queue = topology.command_queue(partition)
    parking = topology.parking_queue(partition)
    async with open_connection(settings.broker_url, "inkwell-worker remaking a queue") as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        if not await try_declare(channel, topology, partition):
            await require_no_consumer(channel, queue)
            await declare_queue(channel, parking, await build_quorum_arguments(channel))
            await topology.unbind_partition(channel, partition)
            await move(channel, queue, parking, user_of(settings.broker_url))
            await require_no_consumer(channel, queue)
            await channel.queue_delete(queue)
            await topology.declare_command_queue(channel, partition)
        moved = 0
        if await exists(channel, queue=parking):
            moved = await move(channel, parking, queue, user_of(settings.broker_url))
            await channel.queue_delete(parking)
        await topology.declare_partition(channel, partition)
    return moved


async def try_declare(channel: AbstractChannel, topology: Topology, partition: int) -> bool:
    """Declare the partition's queue; return False if it exists with other arguments."""
    try:
        return not await topology.declare_command_queue(channel, partition)
    except QueueMismatchError:
        return False


async def require_no_consumer(channel: AbstractChannel, queue: str, checks: int = CONSUMER_CHECKS) -> None:
    """Raise StillConsumedError if the queue has a consumer; waits for one that is just leaving."""
    for _ in range(checks):
        if not (await channel.declare_queue(queue, passive=True)).declaration_result.consumer_count:
            return
        await asyncio.sleep(CONSUMER_CHECK_SECONDS)
    raise StillConsumedError


async def move(channel: AbstractChannel, source: str, target: str, user: str) -> int:
    """Move all messages of a queue to the end of another; returns their number."""
    moved = 0
    await channel.set_qos(prefetch_count=PREFETCH_MESSAGES)
    queue = await channel.get_queue(source, ensure=False)
    while waiting := (await channel.declare_queue(source, passive=True)).declaration_result.message_count:
        # Not `basic.get`, which a quorum queue with a single active consumer rejects.
        async with queue.iterator(timeout=STEP_TIMEOUT_SECONDS) as messages:
            async for message in messages:
                await channel.default_exchange.publish(
                    copy_message(message, user), target, mandatory=True, timeout=STEP_TIMEOUT_SECONDS
                )
                await message.ack()
                moved += 1
                waiting -= 1
                if not waiting:
                    break
    return moved


def copy_message(message: AbstractIncomingMessage, user: str) -> Message:
    """Return a copy of the message, without another user's `user_id`, which the broker would reject."""
    return Message(
        message.body,
        content_type=message.content_type,
        delivery_mode=DeliveryMode.PERSISTENT,
        timestamp=message.timestamp,
        reply_to=message.reply_to,
        type=message.type,
        user_id=user if message.user_id == user else None,
    )
