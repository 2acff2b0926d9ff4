"""RabbitMQ: the topology, declared here and nowhere else, and connections that come back by themselves."""

import asyncio
import random
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
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
from shared.errors import describe
from shared.frames import install_lenient_decoding
from shared.queues import QueueMismatchError, declare_queue, exists, is_cancelled
from shared.settings import ServiceSettings

REPLY_TO = "amq.rabbitmq.reply-to"
PARKING_OFFSET = 1000
"""Added to a partition's number; greater than any of them."""
QUEUE_LIMIT = "x-max-length-bytes"
HEARTBEAT_SECONDS = 5
"""The broker takes two to three of them to see that a worker is gone whose link is, and gives its messages to no other
until then."""
SETUP_TIMEOUT_SECONDS = 10.0
"""To connect: for all addresses of the URL's hosts together."""
CLOSE_TIMEOUT_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 5.0
LOST_CHECK_SECONDS = 0.5
PROBE_EVERY_CHECKS = 10
PROBE_TIMEOUT_SECONDS = 5.0
BLOCKED_CHECK_SECONDS = 0.1
DECLARED_CHECK_SECONDS = 0.5
LOGIN_REMEDY = (
    "correct INKWELL_BROKER_URL; if it worked before, RabbitMQ's disk may have been full, after which it refuses "
    "everyone: free the disk and restart the node"
)
BROKER_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError)
"""What a broken or unwilling broker raises."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Topology:
    """The exchange and the queues of one Inkwell: N partitions for commands and one for dead letters.

    The worker declares them. The gateway may only publish to the exchange, and waits until there is one.
    """

    prefix: str
    partitions: int
    queue_limit_bytes: int = 1024 * 1024 * 1024

    @classmethod
    def of(cls, settings: ServiceSettings) -> "Topology":
        """The queues that the settings name."""
        return cls(settings.queue_prefix, settings.partitions, settings.queue_limit_bytes)

    @property
    def commands_exchange(self) -> str:
        """Where commands are published, with their queue's name as the routing key."""
        return f"{self.prefix}.commands.v1"

    @property
    def dead_letter_queue(self) -> str:
        """Where messages go in which no command id can be read."""
        return f"{self.prefix}.dead-letters.v2"

    def command_queue(self, partition: int) -> str:
        """The queue of a partition; the version changes with the arguments it is declared with."""
        return f"{self.prefix}.commands.v1.{partition}"

    def parking_queue(self, partition: int) -> str:
        """The queue for a partition's messages while its own is remade; a name that the worker may declare."""
        return self.command_queue(PARKING_OFFSET + partition)

    def destination(self, partition: int) -> str:
        """What OpenTelemetry calls the way of a partition's messages: exchange and routing key."""
        return f"{self.commands_exchange}:{self.command_queue(partition)}"

    def partition_of(self, owner: int) -> int:
        """The partition that keeps an owner's commands in order; the same in every process and version."""
        return zlib.crc32(str(owner).encode()) % self.partitions

    async def declare(self, channel: AbstractChannel) -> None:
        """Creates what is missing."""
        for partition in range(self.partitions):
            await self.declare_partition(channel, partition)
        await self.declare_dead_letters(channel)

    async def declare_dead_letters(self, channel: AbstractChannel) -> None:
        """Creates the dead-letter queue where it is missing."""
        if not await exists(channel, queue=self.dead_letter_queue):
            arguments = await build_quorum_arguments(channel)
            await channel.declare_queue(self.dead_letter_queue, durable=True, arguments=arguments)

    async def declare_partition(self, channel: AbstractChannel, partition: int) -> dict[str, str]:
        """Declares and binds a partition's queue; returns the arguments of an existing one that differ.

        Raises QueueMismatchError if the queue must not be consumed.
        """
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
        """Declares the exchange and binds the queues that exist, in case an operator has deleted it."""
        await channel.declare_exchange(self.commands_exchange, ExchangeType.DIRECT, durable=True)
        for partition in range(self.partitions):
            is_remade = await exists(channel, queue=self.parking_queue(partition))
            if not is_remade and await exists(channel, queue=self.command_queue(partition)):
                await self.bind_partition(channel, partition)

    async def bind_partition(self, channel: AbstractChannel, partition: int) -> None:
        """Binds a partition's queue to the exchange."""
        queue = await channel.get_queue(self.command_queue(partition), ensure=False)
        await queue.bind(self.commands_exchange, queue.name)

    async def wait_until_declared(self, channel: AbstractChannel) -> None:
        """Returns when a worker has declared the exchange; raises a broker error where the connection ends before."""
        is_told = False
        while not await self._has_exchange(channel):
            if not is_told:
                log.warning("no worker has declared the queues yet; waiting for one", exchange=self.commands_exchange)
            is_told = True
            await asyncio.sleep(DECLARED_CHECK_SECONDS)

    async def _has_exchange(self, channel: AbstractChannel) -> bool:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            return await exists(channel, exchange=self.commands_exchange)

    async def publish(self, channel: AbstractChannel, message: AbstractMessage, partition: int) -> None:
        """Returns when the broker has confirmed a partition's message; raises a broker error otherwise.

        On a channel with confirms that raises what was returned; the caller sets the deadline.
        """
        exchange = await channel.get_exchange(self.commands_exchange, ensure=False)
        with broker_call():
            await exchange.publish(message, self.command_queue(partition), mandatory=True)

    async def probe(self, channel: AbstractChannel) -> None:
        """Asks the broker for the exchange, as a sign of life; raises a broker error where none comes.

        A passive declaration needs a permission on the name, but any will do.
        """
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            with broker_call():
                await channel.declare_exchange(self.commands_exchange, passive=True)

    async def command_queue_arguments(self, channel: AbstractChannel) -> FieldTable:
        """The arguments that a partition's queue is declared with."""
        return await build_quorum_arguments(channel) | {
            "x-single-active-consumer": True,
            "x-overflow": "reject-publish",
            QUEUE_LIMIT: self.queue_limit_bytes,
        }


async def build_quorum_arguments(channel: AbstractChannel) -> FieldTable:
    """The arguments of a replicated queue that drops nothing by itself."""
    arguments: FieldTable = {"x-queue-type": "quorum"}
    if int((await broker_version(channel)).split(".")[0]) >= 4:
        # 4.x counts a mere disconnect as a delivery and would drop a message after 20; 3.x discards at -1.
        arguments["x-delivery-limit"] = -1
    return arguments


async def broker_version(channel: AbstractChannel) -> str:
    """The version that the broker says it is."""
    version = (await channel.get_underlay_channel()).connection.server_properties["version"]
    return version.decode() if isinstance(version, bytes) else str(version)


@contextmanager
def broker_call() -> Iterator[None]:
    """Whatever the AMQP library raises in the block, as a broker error.

    When a connection ends it also raises bare exceptions, and cancellations that nobody asked for.
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
    """The broker user in the URL."""
    return url.get_secret_value().user


class TransportToAddress(TransportFactory):
    """Connects to one address of a host: the AMQP library takes a name alone, and waits for its first address."""

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
        await connection.close()  # there is nothing to close, but its finalizer would try, perhaps without a loop
        raise
    return connection


@asynccontextmanager
async def open_connection(url: Secret[BrokerUrl], name: str) -> AsyncIterator[AbstractConnection]:
    """A connection that the block may use until either side closes it, to whichever node of the URL answers."""
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
    """Returns when the connection or one of the channels is gone, also where nobody tells so.

    A peer that has vanished is found by asking it something, long before its missing heartbeats are.
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
    """Whether the connection has not been closed, as far as this side knows."""
    return connection.transport is not None and not connection.transport.connection.is_closed


async def is_blocked(connection: AbstractConnection) -> bool:
    """Whether the broker has said that it takes no messages at present, for want of memory or disk."""
    if connection.transport is None:
        return False
    try:
        async with asyncio.timeout(BLOCKED_CHECK_SECONDS):
            await connection.transport.connection.ready()
    except TimeoutError:
        return True
    return False


def choose_backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row: grows to MAX_BACKOFF_SECONDS, never in step."""
    jitter: float = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
    return jitter * min(MAX_BACKOFF_SECONDS, 0.1 * 2.0 ** min(failures, 10))


async def keep_running(session: Callable[[], Awaitable[None]], name: str) -> None:
    """Runs a broker session again whenever it ends in an exception, until cancelled or the session returns.

    The pause between two starts grows while they fail at once and starts anew after a session that held.
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
                error=describe(error),
                remedy=LOGIN_REMEDY if isinstance(error, ProbableAuthenticationError) else None,
                stack="".join(format_tb(error.__cause__.__traceback__)) if error.__cause__ else None,
                retry_in_seconds=round(pause, 2),
            )
            await asyncio.sleep(pause)
