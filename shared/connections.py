"""A small connection pool for Postgres.

A connection that fails, or on which a statement was abandoned, is dropped and replaced. asyncpg's pool would cancel the
statement and reset the session first, but a server that does not answer may not answer that either. If the server has
failed, the idle connections are dropped as well: they may lead to a former primary.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import asyncpg
from pydantic import Secret

from shared.database import STATEMENT_TIMEOUT_SECONDS, Session, connect, milliseconds_before
from shared.database_url import DatabaseUrl
from shared.errors import describe_error
from shared.metrics import CONNECTIONS_LIMIT, CONNECTIONS_USED
from shared.primary import LOST, Primary

STATEMENT_SETTINGS = {"statement_timeout": milliseconds_before(STATEMENT_TIMEOUT_SECONDS)}
"""Postgres ends a statement; the caller's deadline is for the server that does not answer."""
LIFETIME_SECONDS = 300.0
"""The age at which a connection is replaced."""
WATCH_INTERVAL_SECONDS = 5.0
"""How often `watch_primary` reconnects to find the current primary."""
CONNECTION_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""The errors of a statement or a connection; the driver may raise others if a connection ends at the wrong moment."""
SILENT_SECONDS = 0.4
"""A statement that is cancelled after this time means that the server does not answer."""


@dataclass(slots=True)
class PooledConnection:
    """One place in the pool, whose connection is opened on first use."""

    session: "Session | None" = None
    expires_at: float = 0.0
    used_since: float = 0.0
    is_read_only: bool = False
    """Whether the server accepted no writes when the connection was opened."""

    def drop(self) -> None:
        """Close the connection at once, without waiting for the server."""
        if self.session:
            self.session.terminate()
        self.session = None


class Connections:
    """Lends connections in the order of the requests; prefers the one used last, whose caches are warm."""

    def __init__(
        self,
        url: Secret[DatabaseUrl],
        application_name: str,
        size: int,
        session_settings: Mapping[str, str] | None = None,
    ) -> None:
        self._url = url
        self.primary = Primary.of(url.get_secret_value())
        self._session_settings = session_settings
        self._application_name = application_name
        self._pool = [PooledConnection() for _ in range(size)]
        self._free = list(self._pool)
        self._permits = asyncio.Semaphore(size)
        CONNECTIONS_LIMIT.set(size)
        CONNECTIONS_USED.set_function(lambda: len(self._pool) - len(self._free))

    def close(self) -> None:
        """Close every connection."""
        for pooled in self._pool:
            pooled.drop()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Session]:
        """Hold a connection during the block; the caller sets the deadline. Raises asyncpg's errors."""
        async with self._permits:
            pooled = self._free.pop()
            try:
                connection = pooled.session if self._is_usable(pooled) else None
                connection = connection or await self._connect(pooled)
                pooled.used_since = asyncio.get_running_loop().time()
                yield connection
            except BaseException as error:
                was_lost = pooled.session is None or pooled.session.is_closed()
                if pooled.session and self._is_server_failure(pooled, pooled.session, error):
                    self.primary.distrust(pooled.session)
                pooled.drop()
                if was_lost and isinstance(error, Exception) and not isinstance(error, CONNECTION_ERRORS):
                    raise ConnectionError(f"the connection was lost: {describe_error(error)}") from error
                raise
            finally:
                self._free.append(pooled)

    async def watch_primary(self) -> None:
        """Find the current primary every few seconds, over a new connection; runs until cancelled.

        Connections to a former primary keep working. Only a new one reaches the promoted server, whose newer timeline
        makes the older connections untrusted.
        """
        while True:
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
            with suppress(Exception):  # the driver may raise any error, and without this task no failover is noticed
                (await connect(self._url, f"{self._application_name} watching")).terminate()

    def _is_usable(self, pooled: PooledConnection) -> bool:
        if not pooled.session:
            return False
        is_expired = asyncio.get_running_loop().time() > pooled.expires_at
        is_over = is_expired or not self.primary.is_trusted(pooled.session)
        if not is_over and pooled.is_read_only != is_read_only(pooled.session):
            self.primary.distrust(pooled.session)
            is_over = True
        if is_over:
            pooled.drop()
        return not is_over

    def _is_server_failure(self, pooled: PooledConnection, connection: Session, error: BaseException) -> bool:
        """Whether the server has failed, so that idle connections must not be trusted either."""
        if isinstance(error, asyncio.CancelledError):  # by the caller's deadline, or because its client disconnected
            return asyncio.get_running_loop().time() - pooled.used_since > SILENT_SECONDS
        return isinstance(error, LOST) or connection.is_closed()

    async def _connect(self, pooled: PooledConnection) -> Session:
        pooled.drop()
        pooled.session = await connect(
            self._url, self._application_name, None, STATEMENT_SETTINGS | dict(self._session_settings or {})
        )
        pooled.expires_at = asyncio.get_running_loop().time() + LIFETIME_SECONDS
        pooled.is_read_only = is_read_only(pooled.session)
        return pooled.session


def is_read_only(session: Session) -> bool:
    """Whether the server accepts no writes, as Postgres reports to each session without a query."""
    settings = session.get_settings()
    return "on" in (getattr(settings, "in_hot_standby", None), getattr(settings, "default_transaction_read_only", None))
