"""RabbitMQ: the exchanges and the queues, which only this module declares."""

import asyncio
import zlib
from dataclasses import dataclass
from enum import StrEnum

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractMessage, AbstractQueue
from pamqp.common import FieldTable

from shared.broker import BROKER_ERRORS, broker_call, broker_version, is_blocked, is_open
from shared.name_numbers import FORMER_ROUTES_NUMBER, number_closed_routes, number_parking, number_range
from shared.queues import QueueMismatchError, declare_queue, exists
from shared.settings import ServiceSettings

QUEUE_LIMIT = "x-max-length-bytes"
HINTS_LIMIT = 1000
"""Limit on the messages of hints that a gateway has not read yet."""
LOST_CHECK_SECONDS = 0.5
"""How often to look whether the library has noticed that the connection is lost."""
PROBE_EVERY_CHECKS = 10
"""How many of these looks there are to each question to the broker itself: one every five seconds."""
PROBE_TIMEOUT_SECONDS = 5.0
UNROUTED_KEY = "doctor"
"""A routing key that no queue is bound with: the broker drops such a message."""


class RoutingState(StrEnum):
    """How the exchange for commands leads to the queues."""

    NUMBERED = "numbered"
    """By routing keys that contain the number of partitions."""
    CLOSED = "closed"
    """Not at all: the number of partitions is being changed."""
    UNNUMBERED = "unnumbered"
    """By the queues' names: only workers from before 1.0 have declared them."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The exchanges and the queues of one Inkwell: N partitions for commands and one for unreadable messages.

    The worker declares them. The gateway may only publish to the exchange for commands, and waits until it exists.
    What has to do with hints is in a virtual host of its own, where the gateway declares queues (docs/decisions/0013).
    """

    prefix: str
    partitions: int
    """0 until the broker's number is known; `shared.partitions` finds it."""
    queue_limit_bytes: int = 1024 * 1024 * 1024
    routes: RoutingState = RoutingState.NUMBERED

    @classmethod
    def of(cls, settings: ServiceSettings) -> "Topology":
        """Return the topology that the settings describe."""
        return cls(settings.queue_prefix, settings.partitions or 0, settings.queue_limit_bytes)

    @property
    def commands_exchange(self) -> str:
        """The exchange that commands are published to."""
        return f"{self.prefix}.commands.v1"

    @property
    def range_exchange(self) -> str:
        """An exchange without routes; exists if the broker's number of partitions is or was in the same range."""
        return f"{self.commands_exchange}.{number_range(self.partitions)}"

    @property
    def routes_exchange(self) -> str:
        """The exchange between `commands_exchange` and the queues.

        Its name contains the number of partitions; deleting it stops all routing.
        """
        return f"{self.commands_exchange}.{self.partitions}"

    @property
    def closed_routes_exchange(self) -> str:
        """An exchange without routes, whose name contains the number of partitions while the routes are closed."""
        return f"{self.commands_exchange}.{number_closed_routes(self.partitions)}"

    @property
    def former_routes_exchange(self) -> str:
        """The exchange with routes for gateways from before 1.0, deleted by the first change of the number."""
        return f"{self.commands_exchange}.{FORMER_ROUTES_NUMBER}"

    @property
    def changes_exchange(self) -> str:
        """The exchange that hints of changes are published to: each bound queue gets every hint."""
        return f"{self.prefix}.changes.v1"

    def hints_queue(self, name: str) -> str:
        """Return the queue of a gateway that receives hints; the name is 32 hexadecimal digits."""
        return f"{self.changes_exchange}.{name}"

    @property
    def unreadable_queue(self) -> str:
        """The queue for messages without a readable command id, which are not dead letters.

        It keeps the name from when they were called so: a new queue would leave behind what is in this one.
        """
        return f"{self.prefix}.dead-letters.v2"

    def command_queue(self, partition: int) -> str:
        """Return the name of a partition's queue; its version changes with the queue's arguments."""
        return f"{self.prefix}.commands.v1.{partition}"

    def parking_queue(self, partition: int) -> str:
        """Return the queue that holds a partition's messages while its own is redeclared; the worker may declare it."""
        return self.command_queue(number_parking(partition))

    def routing_key(self, partition: int) -> str:
        """Return the routing key of a partition; without a route for it, the broker returns the message."""
        queue = self.command_queue(partition)
        return queue if self.routes is RoutingState.UNNUMBERED else f"{queue}.of.{self.partitions}"

    def destination(self, owner: int) -> str:
        """Return OpenTelemetry's destination name for an owner's commands: exchange and, if known, routing key."""
        if not self.partitions:
            return self.commands_exchange
        return f"{self.commands_exchange}:{self.routing_key(self.partition_of(owner))}"

    def partition_of(self, owner: int) -> int:
        """Return the partition that keeps an owner's commands in order, the same in every process and version."""
        return zlib.crc32(str(owner).encode()) % self.partitions

    async def declare_changes(self, channel: AbstractChannel) -> None:
        """Declare the exchange for hints."""
        await channel.declare_exchange(self.changes_exchange, ExchangeType.FANOUT, durable=True)

    async def bind_hints(self, channel: AbstractChannel, name: str) -> AbstractQueue:
        """Return a new queue that receives the hints from now on, the newest of them if it is not read in time.

        It is the connection's own, and deleted with it. Raises a broker error if no worker has declared the exchange.
        """
        arguments: FieldTable = {"x-max-length": HINTS_LIMIT, "x-overflow": "drop-head"}
        queue = await channel.declare_queue(
            self.hints_queue(name), exclusive=True, auto_delete=True, arguments=arguments
        )
        await queue.bind(self.changes_exchange)
        return queue

    async def declare_unreadable(self, channel: AbstractChannel) -> None:
        """Declare the queue of unreadable messages if it does not exist."""
        if not await exists(channel, queue=self.unreadable_queue):
            arguments = await build_quorum_arguments(channel)
            await channel.declare_queue(self.unreadable_queue, durable=True, arguments=arguments)

    async def declare_partition(self, channel: AbstractChannel, partition: int) -> dict[str, str]:
        """Declare and bind a partition's queue; returns the arguments of an existing one that differ.

        Raises QueueMismatchError if the queue must not be consumed, and ConnectionError if the number has changed.
        """
        if not await self.is_current(channel):
            raise ConnectionError("the number of partitions has changed")
        await channel.declare_exchange(self.commands_exchange, ExchangeType.DIRECT, durable=True)
        if await exists(channel, queue=self.parking_queue(partition)):
            raise QueueMismatchError("its messages are in the parking queue until the remake is complete")
        differences = await self.declare_command_queue(channel, partition)
        await self.bind_partition(channel, partition)
        return differences

    async def declare_command_queue(self, channel: AbstractChannel, partition: int) -> dict[str, str]:
        """Like `declare_partition`, but without binding the queue to the exchange."""
        return await declare_queue(channel, self.command_queue(partition), await self.command_queue_arguments(channel))

    async def bind_existing(self, channel: AbstractChannel) -> None:
        """Declare the exchange, which an operator may have deleted, and bind the queues that exist."""
        await channel.declare_exchange(self.commands_exchange, ExchangeType.DIRECT, durable=True)
        for partition in range(self.partitions):
            is_remade = await exists(channel, queue=self.parking_queue(partition))
            if not is_remade and await exists(channel, queue=self.command_queue(partition)):
                await self.bind_partition(channel, partition)

    async def bind_partition(self, channel: AbstractChannel, partition: int) -> None:
        """Route commands to a partition's queue, unless the routes are closed."""
        queue = await channel.get_queue(self.command_queue(partition), ensure=False)
        for name, key in self._routes(partition):
            if await exists(channel, exchange=name):
                exchange = await channel.get_exchange(name, ensure=False)
                await exchange.bind(self.commands_exchange, key)
                await queue.bind(exchange, key)

    async def unbind_partition(self, channel: AbstractChannel, partition: int) -> None:
        """Stop routing to a partition's queue."""
        queue = await channel.get_queue(self.command_queue(partition), ensure=False)
        by_former_workers = (self.commands_exchange, queue.name)
        for exchange, key in (*self._routes(partition), by_former_workers):
            if await exists(channel, exchange=exchange, queue=queue.name):
                await queue.unbind(exchange, key)

    def _routes(self, partition: int) -> tuple[tuple[str, str], ...]:
        return (
            (self.routes_exchange, self.routing_key(partition)),
            (self.former_routes_exchange, self.command_queue(partition)),
        )

    async def is_current(self, channel: AbstractChannel) -> bool:
        """Whether the broker has this topology's number of partitions."""
        return await exists(channel, exchange=self.routes_exchange) or await exists(
            channel, exchange=self.closed_routes_exchange
        )

    async def declare_number(self, channel: AbstractChannel) -> None:
        """Give the broker, which must not have a number of partitions yet, that of this topology."""
        for name in (self.range_exchange, self.routes_exchange):
            await channel.declare_exchange(name, ExchangeType.DIRECT, durable=True)

    async def declare_former_routes(self, channel: AbstractChannel) -> None:
        """Let gateways from before 1.0 publish, until the number is changed for the first time."""
        await channel.declare_exchange(self.former_routes_exchange, ExchangeType.DIRECT, durable=True)

    async def close_routes(self, channel: AbstractChannel) -> None:
        """Stop routing to all queues; a late binding cannot undo this, since the exchanges are deleted."""
        await channel.declare_exchange(self.closed_routes_exchange, ExchangeType.DIRECT, durable=True)
        for name in (self.former_routes_exchange, self.routes_exchange):
            await channel.exchange_delete(name)
        for partition in range(self.partitions):
            await self.unbind_partition(channel, partition)

    async def open_routes(self, channel: AbstractChannel, closed: "Topology") -> None:
        """Give the broker this topology's number of partitions, in place of the one whose routes are closed."""
        await channel.exchange_delete(closed.closed_routes_exchange)
        await self.declare_number(channel)
        await self.bind_existing(channel)

    async def publish(self, channel: AbstractChannel, message: AbstractMessage, partition: int) -> None:
        """Publish a message to a partition and wait for the confirm; raises a broker error.

        The channel must have confirms and raise on returned messages; the caller sets the deadline.
        """
        exchange = await channel.get_exchange(self.commands_exchange, ensure=False)
        with broker_call():
            await exchange.publish(message, self.routing_key(partition), mandatory=True)

    async def command_queue_arguments(self, channel: AbstractChannel) -> FieldTable:
        """Return the arguments of a partition's queue."""
        return await build_quorum_arguments(channel) | {
            "x-single-active-consumer": True,
            "x-overflow": "reject-publish",
            QUEUE_LIMIT: self.queue_limit_bytes,
        }


async def build_quorum_arguments(channel: AbstractChannel) -> FieldTable:
    """Return the arguments of a quorum queue without a delivery limit."""
    arguments: FieldTable = {"x-queue-type": "quorum"}
    if int((await broker_version(channel)).split(".")[0]) >= 4:
        # RabbitMQ 4 counts a mere disconnect as a delivery and by default drops a message after 20; -1 lifts the limit.
        # RabbitMQ 3 has no limit by default, and would take -1 for one that every message exceeds.
        arguments["x-delivery-limit"] = -1
    return arguments


async def probe(channel: AbstractChannel, exchange: str) -> None:
    """Check that the broker answers, by declaring the exchange passively; raises a broker error.

    A passive declaration needs a permission on the name, of any kind.
    """
    async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
        with broker_call():
            await channel.declare_exchange(exchange, passive=True)


async def wait_until_lost(connection: AbstractConnection, exchange: str, *channels: AbstractChannel) -> None:
    """Wait until the connection or one of the channels is lost, whether or not the library reports it.

    Probing, with the name of an exchange, detects a vanished peer long before missed heartbeats do.
    """
    checks = 0
    while is_open(connection) and not any(channel.is_closed for channel in channels):
        await asyncio.sleep(LOST_CHECK_SECONDS)
        checks += 1
        if checks % PROBE_EVERY_CHECKS == 0 and not await is_blocked(connection):
            try:
                await asyncio.gather(*(probe(channel, exchange) for channel in channels))
            except BROKER_ERRORS:
                return
