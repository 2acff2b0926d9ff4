"""Fails the commands of newer versions that pause a partition: `python -m worker queues fail-newer N`.

For when no newer worker will be deployed, because the gateway was rolled back or the commands are forged. They become
dead letters, to be discarded, or replayed after an upgrade. Other commands in their messages are applied.
"""

import asyncio

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from shared.broker import broker_call, open_connection, user_of
from shared.connections import Connections
from shared.contracts import BadCommand
from shared.topology import Topology
from worker.apply import ApplyOptions
from worker.deliveries import Batch, Delivery
from worker.failures import Applier
from worker.sessions import SESSION_SETTINGS
from worker.settings import WorkerSettings
from worker.subscriptions import prefetch_count

QUIET_SECONDS = 3.0
"""How long to wait for the next message."""


async def fail_newer_commands(settings: WorkerSettings, partition: int) -> int:
    """Fail the newer commands at the head of the partition's queue; returns their number.

    Raises a broker error or asyncpg's; then it can be run again.
    """
    connections = Connections(settings.database_url, "inkwell-worker operator", 1, SESSION_SETTINGS)
    applier = Applier(connections, ApplyOptions.of(settings))
    user = user_of(settings.broker_url)
    failed = 0
    try:
        async with open_connection(settings.broker_url, "inkwell-worker operator") as connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            # As many as a worker has taken: then the broker returns the rest in order.
            await channel.set_qos(prefetch_count=prefetch_count(settings, 1))
            inbox = await consume(channel, Topology.of(settings).command_queue(partition))
            while message := await receive_next(inbox):
                delivery = Delivery(partition, message)
                batch = Batch()
                batch.add(delivery, delivery.decode(user, fail_newer=True))
                if not (newer := count_newer(batch)):
                    return failed  # the messages return to the head of the queue when the connection closes
                await applier.apply(batch.commands)
                await send_unreadable(channel, Topology.of(settings), batch)
                await message.ack()
                failed += newer
    finally:
        connections.close()
    return failed


async def consume(channel: AbstractChannel, queue: str) -> asyncio.Queue[AbstractIncomingMessage]:
    """Consume a queue; the broker activates this consumer once the workers have paused the partition."""
    inbox: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await (await channel.get_queue(queue)).consume(inbox.put)
    return inbox


async def receive_next(inbox: asyncio.Queue[AbstractIncomingMessage]) -> AbstractIncomingMessage | None:
    """Return the next message, or None if none arrives within QUIET_SECONDS."""
    try:
        return await asyncio.wait_for(inbox.get(), QUIET_SECONDS)
    except TimeoutError:
        return None


def count_newer(batch: Batch) -> int:
    """Return the number of commands in the batch that have newer versions."""
    return sum(isinstance(each, BadCommand) and each.reason == "newer_version" for each in batch.commands)


async def send_unreadable(channel: AbstractChannel, topology: Topology, batch: Batch) -> None:
    """Publish the unreadable parts of the batch to their queue; returns when they are confirmed."""
    for content in batch.unreadable:
        message = Message(content, delivery_mode=DeliveryMode.PERSISTENT)
        with broker_call():
            await channel.default_exchange.publish(message, topology.unreadable_queue)
