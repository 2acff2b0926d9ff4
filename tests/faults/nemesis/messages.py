"""Messages that arrive twice, or are no commands."""

import asyncio
from typing import Any

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractIncomingMessage

from shared.contracts import COMMANDS_CONTENT_TYPE
from tests.faults.cluster import Cluster
from tests.faults.nemesis.engine import SHORT, Fault, Nemesis

GARBAGE = (b"", b"\xff\xfe", b"{}", b'["no event"]', b'[{"id": "no uuid"}]', b"[" * 1000)
COPIED_SECONDS = (0.5, 2.0)
MOST = 200


async def messages_are_duplicated(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Keeps copies of the messages of a moment, and publishes them again a little later."""
    copies: list[AbstractIncomingMessage] = []

    async def keep(message: AbstractIncomingMessage) -> None:
        copies.append(message)

    # While it is bound, no message is unroutable; so nothing else may happen to the broker meanwhile.
    async with cluster.servers.rabbitmq_lock, cluster.channel() as channel:
        queue = await channel.declare_queue(exclusive=True)
        exchange = await channel.get_exchange(cluster.topology.commands_exchange)
        for partition in range(cluster.partitions):
            await queue.bind(exchange, cluster.topology.routing_key(partition))
        await queue.consume(keep, no_ack=True)
        await asyncio.sleep(nemesis.seconds(COPIED_SECONDS))
        await queue.delete(if_unused=False, if_empty=False)
        await asyncio.sleep(nemesis.seconds(SHORT))
        for copy in copies[:MOST]:
            await exchange.publish(command_message(copy.body), copy.routing_key or "")
    return f"{len(copies[:MOST])} messages"


async def messages_are_unreadable(nemesis: Nemesis, cluster: Cluster[Any]) -> str:
    """Publishes messages that are no commands."""
    async with cluster.servers.rabbitmq_lock, cluster.channel() as channel:
        exchange = await channel.get_exchange(cluster.topology.commands_exchange)
        for _ in range(3):
            key = cluster.topology.routing_key(nemesis.partition())
            await exchange.publish(command_message(nemesis.pick(*GARBAGE)), key)
            nemesis.unreadable += 1
    return "3 messages"


def command_message(body: bytes) -> Message:
    """A message as a gateway publishes it."""
    return Message(body, content_type=COMMANDS_CONTENT_TYPE, delivery_mode=DeliveryMode.PERSISTENT)


FAULTS: dict[str, Fault] = {
    "duplicates": messages_are_duplicated,
    "unreadable": messages_are_unreadable,
}
