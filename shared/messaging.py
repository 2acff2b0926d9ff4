"""RabbitMQ: the topology, which only this module declares, and connections that reconnect."""

import asyncio
import random
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from traceback import format_tb
from typing import Any

import structlog
from aio_pika import Connection, ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractMessage
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ProbableAuthenticationError
from aiormq.connection import TransportFactory
from pamqp.common import FieldTable
from pydantic import Secret
from yarl import URL

from shared.addresses import Address, connect_to_any
from shared.broker_url import BrokerUrl
from shared.errors import describe_error
from shared.frames import install_lenient_decoding
from shared.queues import QueueMismatchError, declare_queue, exists, is_cancelled
from shared.settings import ServiceSettings

REPLY_TO = "amq.rabbitmq.reply-to"
PARKING_OFFSET = 1000
"""Added to a partition's number; greater than any of them."""
RANGE, RANGES_OFFSET = 16, 400
FORMER_ROUTES = 500
CLOSED_OFFSET = 1000
"""Added to the number of partitions, in the name of the exchange that replaces the routes while they are closed."""
QUEUE_LIMIT = "x-max-length-bytes"
HEARTBEAT_SECONDS = 5
"""The broker needs two to three of them to detect a lost link, and redelivers the worker's messages only then."""
SETUP_TIMEOUT_SECONDS = 10.0
"""For connecting, all addresses of the URL's hosts together."""
CLOSE_TIMEOUT_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 5.0
LOST_CHECK_SECONDS = 0.5
PROBE_EVERY_CHECKS = 10
PROBE_TIMEOUT_SECONDS = 5.0
BLOCKED_CHECK_SECONDS = 0.1
LOGIN_REMEDY = (
    "correct INKWELL_BROKER_URL; if it worked before, RabbitMQ's disk may have been full, after which it refuses "
    "everyone: free the disk and restart the node"
)
PARTITIONS_REMEDY = (
    "remove INKWELL_PARTITIONS or set it to the broker's number; `python -m worker repartition` changes that one"
)
BROKER_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError)
"""The errors of an unavailable or refusing broker."""

log = structlog.get_logger()


class PartitionsDifferError(ConnectionError):
    """The setting names another number of partitions than the broker has."""

    def __init__(self, wanted: int, found: int) -> None:
        super().__init__(f"INKWELL_PARTITIONS={wanted}, but the broker has {found}")


class Routes(StrEnum):
    """How the exchange for commands leads to the queues."""

    NUMBERED = "numbered"
    """By routing keys that contain the number of partitions."""
    CLOSED = "closed"
    """Not at all: the number of partitions is being changed."""
    UNNUMBERED = "unnumbered"
    """By the queues' names: only workers of the version before have declared them."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The exchanges and the queues of one Inkwell: N partitions for commands and one for dead letters.

    The worker declares them. The gateway may only publish to the exchange for commands, and waits until it exists.
    """

    prefix: str
    partitions: int
    """0 until the broker's number is known; `shared.partitions` finds it."""
    queue_limit_bytes: int = 1024 * 1024 * 1024
    routes: Routes = Routes.NUMBERED

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
        """The exchange, without routes, that narrows the search: the number is or was in the same range as this one."""
        return f"{self.commands_exchange}.{RANGES_OFFSET + self.partitions // RANGE}"

    @property
    def routes_exchange(self) -> str:
        """The exchange between that one and the queues, named after the number; deleting it ends all routes."""
        return f"{self.commands_exchange}.{self.partitions}"

    @property
    def closed_routes_exchange(self) -> str:
        """The exchange, without routes, whose name contains the number while the routes are closed."""
        return f"{self.commands_exchange}.{CLOSED_OFFSET + self.partitions}"

    @property
    def former_routes_exchange(self) -> str:
        """The exchange with routes for gateways of the version before; the first change of the number deletes it."""
        return f"{self.commands_exchange}.{FORMER_ROUTES}"

    @property
    def dead_letter_queue(self) -> str:
        """The queue for messages without a readable command id."""
        return f"{self.prefix}.dead-letters.v2"

    def command_queue(self, partition: int) -> str:
        """Return the name of a partition's queue; its version changes with the queue's arguments."""
        return f"{self.prefix}.commands.v1.{partition}"

    def parking_queue(self, partition: int) -> str:
        """Return the queue that holds a partition's messages while its own is redeclared; the worker may declare it."""
        return self.command_queue(PARKING_OFFSET + partition)

    def routing_key(self, partition: int) -> str:
        """Return the routing key of a partition; without a route for it, the broker returns the message."""
        queue = self.command_queue(partition)
        return queue if self.routes is Routes.UNNUMBERED else f"{queue}.of.{self.partitions}"

    def destination(self, owner: int) -> str:
        """Return OpenTelemetry's destination name for an owner's commands: exchange and, if known, routing key."""
        if not self.partitions:
            return self.commands_exchange
        return f"{self.commands_exchange}:{self.routing_key(self.partition_of(owner))}"

    def partition_of(self, owner: int) -> int:
        """Return the partition that keeps an owner's commands in order, the same in every process and version."""
        return zlib.crc32(str(owner).encode()) % self.partitions

    async def declare_dead_letters(self, channel: AbstractChannel) -> None:
        """Declare the dead-letter queue if it does not exist."""
        if not await exists(channel, queue=self.dead_letter_queue):
            arguments = await build_quorum_arguments(channel)
            await channel.declare_queue(self.dead_letter_queue, durable=True, arguments=arguments)

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
        """Route nothing to a partition's queue any more."""
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
        """Whether the broker's number of partitions is this one."""
        return await exists(channel, exchange=self.routes_exchange) or await exists(
            channel, exchange=self.closed_routes_exchange
        )

    async def declare_number(self, channel: AbstractChannel) -> None:
        """Make this the broker's number of partitions, which must have none yet."""
        for name in (self.range_exchange, self.routes_exchange):
            await channel.declare_exchange(name, ExchangeType.DIRECT, durable=True)

    async def declare_former_routes(self, channel: AbstractChannel) -> None:
        """Let gateways of the version before publish, until the number is changed for the first time."""
        await channel.declare_exchange(self.former_routes_exchange, ExchangeType.DIRECT, durable=True)

    async def close_routes(self, channel: AbstractChannel) -> None:
        """Route nothing to any queue any more; no late binding can undo it, since the exchanges are gone."""
        await channel.declare_exchange(self.closed_routes_exchange, ExchangeType.DIRECT, durable=True)
        for name in (self.former_routes_exchange, self.routes_exchange):
            await channel.exchange_delete(name)
        for partition in range(self.partitions):
            await self.unbind_partition(channel, partition)

    async def open_routes(self, channel: AbstractChannel, closed: "Topology") -> None:
        """Make this the broker's number of partitions, in place of the one whose routes are closed."""
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

    async def probe(self, channel: AbstractChannel) -> None:
        """Check that the broker answers, by declaring the exchange passively; raises a broker error.

        A passive declaration needs a permission on the name, of any kind.
        """
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            with broker_call():
                await channel.declare_exchange(self.commands_exchange, passive=True)

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
        # 4.x counts a mere disconnect as a delivery and would drop a message after 20; 3.x discards at -1.
        arguments["x-delivery-limit"] = -1
    return arguments


async def broker_version(channel: AbstractChannel) -> str:
    """Return the version that the broker reports."""
    version = (await channel.get_underlay_channel()).connection.server_properties["version"]
    return version.decode() if isinstance(version, bytes) else str(version)


@contextmanager
def broker_call() -> Iterator[None]:
    """Convert anything that the AMQP library raises in the block to a broker error.

    When a connection ends, the library also raises bare exceptions and cancels calls by itself.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        raise ConnectionError("the connection was lost") from error
    except BROKER_ERRORS:
        raise
    except Exception as error:
        raise ConnectionError(f"unexpected {type(error).__name__}") from error


def user_of(url: Secret[BrokerUrl]) -> str:
    """Return the broker user in the URL."""
    return url.get_secret_value().user


class TransportToAddress(TransportFactory):
    """Connects to one address of a host; the AMQP library accepts only a name, and waits for its first address."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def create(
        self,
        url: URL,
        **arguments: Any,  # noqa: ANN401 - the library's
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the connection; TLS expects the certificate of the URL's host."""
        is_tls = url.scheme == "amqps"
        tls = {"ssl": await arguments["ssl_context_provider"].get_context(), "server_hostname": url.host}
        return await asyncio.open_connection(self._address.ip, self._address.port, **(tls if is_tls else {}))


async def _connect_to_one(url: BrokerUrl, name: str, address: Address, _: float) -> AbstractConnection:
    node = url.url_of(address.host, address.port).update_query(heartbeat=HEARTBEAT_SECONDS)
    connection = Connection(node, client_properties={"connection_name": name})
    connection.kwargs["transport_factory"] = TransportToAddress(address)
    try:
        with broker_call():
            await connection.connect()
    except BaseException:
        await connection.close()  # nothing is open, but the finalizer would close it, perhaps without a running loop
        raise
    return connection


@asynccontextmanager
async def open_connection(url: Secret[BrokerUrl], name: str) -> AsyncIterator[AbstractConnection]:
    """Connect to the first node of the URL that answers; closes the connection after the block."""
    install_lenient_decoding()
    target = url.get_secret_value()
    hosts = random.sample(target.hosts, len(target.hosts))
    connection = await connect_to_any(
        hosts, partial(_connect_to_one, target, name), BROKER_ERRORS, SETUP_TIMEOUT_SECONDS
    )
    try:
        yield connection
    finally:
        with suppress(*BROKER_ERRORS):
            async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                with broker_call():
                    await connection.close()


async def wait_until_lost(connection: AbstractConnection, topology: Topology, *channels: AbstractChannel) -> None:
    """Wait until the connection or one of the channels is lost, whether or not the library reports it.

    Probing detects a vanished peer long before missed heartbeats do.
    """
    checks = 0
    while is_open(connection) and not any(channel.is_closed for channel in channels):
        await asyncio.sleep(LOST_CHECK_SECONDS)
        checks += 1
        if checks % PROBE_EVERY_CHECKS == 0 and not await is_blocked(connection):
            try:
                await asyncio.gather(*(topology.probe(channel) for channel in channels))
            except BROKER_ERRORS:
                return


def is_open(connection: AbstractConnection) -> bool:
    """Whether neither side has closed the connection, as far as known here."""
    return connection.transport is not None and not connection.transport.connection.is_closed


async def is_blocked(connection: AbstractConnection) -> bool:
    """Whether the broker blocks the connection, because it is short of memory or disk."""
    if connection.transport is None:
        return False
    try:
        async with asyncio.timeout(BLOCKED_CHECK_SECONDS):
            await connection.transport.connection.ready()
    except TimeoutError:
        return True
    return False


def choose_backoff(failures: int) -> float:
    """Return the seconds to wait after this many failures in a row: exponential backoff with jitter."""
    jitter: float = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
    return jitter * min(MAX_BACKOFF_SECONDS, 0.1 * 2.0 ** min(failures, 10))


def _find_remedy(error: BaseException) -> str | None:
    if isinstance(error, ProbableAuthenticationError):
        return LOGIN_REMEDY
    return PARTITIONS_REMEDY if isinstance(error, PartitionsDifferError) else None


async def keep_running(session: Callable[[], Awaitable[None]], name: str) -> None:
    """Run a broker session, and restart it after each error, until it returns or is cancelled.

    The backoff grows while sessions fail at once, and is reset after one that lasted.
    """
    failures = 0
    while True:
        started = asyncio.get_running_loop().time()
        try:
            with broker_call():
                return await session()
        except BROKER_ERRORS as error:
            if asyncio.get_running_loop().time() - started > MAX_BACKOFF_SECONDS:
                failures = 0
            pause = choose_backoff(failures)
            failures += 1
            log.warning(
                "no broker session; Inkwell tries again by itself",
                connection=name,
                error=describe_error(error),
                stack="".join(format_tb(error.__cause__.__traceback__)) if error.__cause__ else None,
                retry_in_seconds=round(pause, 2),
                **({"remedy": remedy} if (remedy := _find_remedy(error)) else {}),
            )
            await asyncio.sleep(pause)
