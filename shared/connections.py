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

from shared.database import Session, connect
from shared.database_url import DatabaseUrl
from shared.errors import describe_error
from shared.metrics import CONNECTIONS_LIMIT, CONNECTIONS_USED
from shared.primary import LOST, Primary, find_primary

LIFETIME_SECONDS = 300.0
"""The age at which a connection is replaced."""
WATCH_INTERVAL_SECONDS = 5.0
"""How often `watch_primary` reconnects to find the current primary."""
CONNECTION_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""The errors of a statement or a connection; the driver may raise others if a connection ends at the wrong moment."""
SILENT_SECONDS = 0.4
"""A statement that is cancelled after this time means that the server does not answer."""


@dataclass(slots=True)
class Slot:
    """One place in the pool, whose connection is opened on first use."""

    connection: "Session | None" = None
    expires_at: float = 0.0
    used_since: float = 0.0
    is_read_only: bool = False
    """Whether the server accepted no writes when the connection was opened."""

    def drop(self) -> None:
        """Close the connection at once, without waiting for the server."""
        if self.connection:
            self.connection.terminate()
        self.connection = None


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
        self.primary: Primary = find_primary(url.get_secret_value())
        self._session_settings = session_settings
        self._application_name = application_name
        self._slots = [Slot() for _ in range(size)]
        self._free = list(self._slots)
        self._permits = asyncio.Semaphore(size)
        CONNECTIONS_LIMIT.set(size)
        CONNECTIONS_USED.set_function(lambda: len(self._slots) - len(self._free))

    def close(self) -> None:
        """Close every connection."""
        for slot in self._slots:
            slot.drop()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Session]:
        """Hold a connection during the block; the caller sets the deadline. Raises asyncpg's errors."""
        async with self._permits:
            slot = self._free.pop()
            try:
                connection = slot.connection if self._is_usable(slot) and slot.connection else await self._connect(slot)
                slot.used_since = asyncio.get_running_loop().time()
                yield connection
            except BaseException as error:
                was_lost = slot.connection is None or slot.connection.is_closed()
                if slot.connection and self._is_server_failure(slot, slot.connection, error):
                    self.primary.distrust(slot.connection)
                slot.drop()
                if was_lost and isinstance(error, Exception) and not isinstance(error, CONNECTION_ERRORS):
                    raise ConnectionError(f"the connection was lost: {describe_error(error)}") from error
                raise
            finally:
                self._free.append(slot)

    async def watch_primary(self) -> None:
        """Find the current primary every few seconds, over a new connection; runs until cancelled.

        Connections to a former primary keep working. Only a new one reaches the promoted server, whose newer timeline
        makes the older connections untrusted.
        """
        while True:
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
            with suppress(*CONNECTION_ERRORS):
                (await connect(self._url, f"{self._application_name} watching")).terminate()

    def _is_usable(self, slot: Slot) -> bool:
        if not slot.connection:
            return False
        is_over = asyncio.get_running_loop().time() > slot.expires_at or not self.primary.is_trusted(slot.connection)
        if not is_over and slot.is_read_only != is_read_only(slot.connection):
            self.primary.distrust(slot.connection)
            is_over = True
        if is_over:
            slot.drop()
        return not is_over

    def _is_server_failure(self, slot: Slot, connection: Session, error: BaseException) -> bool:
        """Whether the server has failed, so that idle connections must not be trusted either."""
        if isinstance(error, asyncio.CancelledError):  # by the caller's deadline, or because its client disconnected
            return asyncio.get_running_loop().time() - slot.used_since > SILENT_SECONDS
        return isinstance(error, LOST) or connection.is_closed()

    async def _connect(self, slot: Slot) -> Session:
        slot.drop()
        slot.connection = await connect(self._url, self._application_name, session_settings=self._session_settings)
        slot.expires_at = asyncio.get_running_loop().time() + LIFETIME_SECONDS
        slot.is_read_only = is_read_only(slot.connection)
        return slot.connection


def is_read_only(session: Session) -> bool:
    """Whether the server accepts no writes, as Postgres reports to each session without a query."""
    settings = session.get_settings()
    return "on" in (getattr(settings, "in_hot_standby", None), getattr(settings, "default_transaction_read_only", None))
