"""RabbitMQ: connections that reconnect, and the errors of an unavailable broker."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from traceback import format_tb
from typing import Any

import structlog
from aio_pika import Connection
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, ProbableAuthenticationError
from aiormq.connection import TransportFactory
from pydantic import Secret
from yarl import URL

from shared.addresses import Address, connect_to_any
from shared.broker_url import BrokerUrl
from shared.errors import describe_error
from shared.frames import install_lenient_decoding
from shared.tasks import is_cancelled

REPLY_TO = "amq.rabbitmq.reply-to"
HEARTBEAT_SECONDS = 5
"""The broker needs two to three of them to detect a lost link, and redelivers the worker's messages only then."""
SETUP_TIMEOUT_SECONDS = 10.0
"""For connecting, all addresses of the URL's hosts together."""
CLOSE_TIMEOUT_SECONDS = 2.0
MAX_BACKOFF_SECONDS = 5.0
BLOCKED_CHECK_SECONDS = 0.1
LOGIN_REMEDY = (
    "correct INKWELL_BROKER_URL; if it worked before, RabbitMQ's disk may have been full, after which it refuses "
    "everyone: free the disk and restart the node"
)
PARTITIONS_REMEDY = (
    "remove INKWELL_PARTITIONS or set it to the broker's number; `python -m worker repartition` changes the broker's"
)
BROKER_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError)
"""The errors of an unavailable or refusing broker."""

log = structlog.get_logger()


class PartitionsDifferError(ConnectionError):
    """The setting names another number of partitions than the broker has."""

    def __init__(self, wanted: int, found: int) -> None:
        super().__init__(f"INKWELL_PARTITIONS={wanted}, but the broker has {found}")


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
    except Exception as error:  # the library raises errors of any type if the connection ends at the wrong moment
        raise ConnectionError(f"unexpected {type(error).__name__}") from error


def user_of(url: Secret[BrokerUrl]) -> str:
    """Return the broker user in the URL."""
    return url.get_secret_value().user


def hints_url_of(url: Secret[BrokerUrl]) -> Secret[BrokerUrl]:
    """Return the URL of the virtual host for hints of changes."""
    return Secret(url.get_secret_value().for_hints())


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
            # `asyncio.wait_for`, before Python 3.12, drops a cancellation that comes together with what it waits for.
            if is_cancelled():
                raise asyncio.CancelledError from error
            if asyncio.get_running_loop().time() - started > MAX_BACKOFF_SECONDS:
                failures = 0
            pause = choose_backoff(failures)
            failures += 1
            log.warning(
                "no broker session",
                connection=name,
                error=describe_error(error),
                stack="".join(format_tb(error.__cause__.__traceback__)) if error.__cause__ else None,
                retry_in_seconds=round(pause, 2),
                **({"remedy": remedy} if (remedy := _find_remedy(error)) else {}),
            )
            await asyncio.sleep(pause)
