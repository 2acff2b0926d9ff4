"""Fails the commands of newer versions that pause a partition: `python -m worker queues fail-newer N`.

For where no newer worker will come: a gateway that was taken back, or somebody who forged them. They become dead
letters, to be replayed after an upgrade or discarded; what is in one message with them is applied as always.
"""

import asyncio
from datetime import timedelta

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from shared.connections import Connections
from shared.contracts import BadCommand
from shared.messaging import Topology, broker_call, open_connection, user_of
from worker.deliveries import Batch, Delivery
from worker.failures import Settlement
from worker.settings import WorkerSettings

QUIET_SECONDS = 3.0
"""How long the next message is waited for."""
BEFORE_EVERY_WORKER = 1000
"""A consumer priority."""


async def fail_newer_commands(settings: WorkerSettings, partition: int) -> int:
    """Fails what is newer at the head of the partition's queue; how many commands that were.

    Raises a broker error, or the exception of Postgres; then it can be run again.
    """
    connections = Connections(settings.database_url, "inkwell-worker operator", size=1)
    settlement = Settlement(connections, timedelta(days=settings.command_max_age_days))
    user, failed = user_of(settings.broker_url), 0
    try:
        async with open_connection(settings.broker_url, "inkwell-worker operator") as connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            inbox = await consume(channel, Topology.of(settings).command_queue(partition))
            while message := await next_of(inbox):
                delivery, batch = Delivery(partition, message), Batch()
                batch.add(delivery, delivery.decode(user, fail_newer=True))
                if not (newer := number_of_newer(batch)):
                    return failed  # the broker gets it back with the connection's end, at the head of the queue
                await settlement.settle(batch.commands)
                await dead_letter(channel, Topology.of(settings), batch)
                await message.ack()
                failed += newer
    finally:
        connections.close()
    return failed


async def consume(channel: AbstractChannel, queue: str) -> asyncio.Queue[AbstractIncomingMessage]:
    """Where the messages of a queue come in, one after the acknowledgement of the other, before any worker has them."""
    inbox: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await channel.set_qos(prefetch_count=1)
    await (await channel.get_queue(queue)).consume(inbox.put, arguments={"x-priority": BEFORE_EVERY_WORKER})
    return inbox


async def next_of(inbox: asyncio.Queue[AbstractIncomingMessage]) -> AbstractIncomingMessage | None:
    """The next message, if one comes soon."""
    try:
        return await asyncio.wait_for(inbox.get(), QUIET_SECONDS)
    except TimeoutError:
        return None


def number_of_newer(batch: Batch) -> int:
    """How many commands of the batch are of newer versions."""
    return sum(isinstance(each, BadCommand) and each.reason == "newer_version" for each in batch.commands)


async def dead_letter(channel: AbstractChannel, topology: Topology, batch: Batch) -> None:
    """Hands over what cannot be read of the batch; returns when the broker has confirmed it."""
    for content in batch.unreadable:
        message = Message(content, delivery_mode=DeliveryMode.PERSISTENT)
        with broker_call():
            await channel.default_exchange.publish(message, topology.dead_letter_queue)
