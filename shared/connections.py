"""A few fixed connections to Postgres.

A connection that fails, or on which something was given up, is dropped and replaced: nothing waits for a server that
does not answer to a cancel request either, and no session is used again in an unknown state. If it was the server that
failed, the idle connections go too: they may lead to what is no longer the primary.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import asyncpg
from pydantic import Secret

from shared.database import Session, connect
from shared.database_url import DatabaseUrl
from shared.metrics import CONNECTIONS_LIMIT, CONNECTIONS_USED
from shared.primary import LOST, Primary, find_primary

LIFETIME_SECONDS = 300.0
"""After so long a connection is replaced."""
WATCH_INTERVAL_SECONDS = 5.0
"""How often a new connection looks where the primary is now, if `watch` runs."""
SILENT_SECONDS = 0.4
"""Whoever gave up after so long on a statement, at a deadline, says that the server is silent."""


@dataclass(slots=True)
class Slot:
    """A place for one connection, which is made when it is first needed."""

    connection: "Session | None" = None
    expires_at: float = 0.0
    used_since: float = 0.0
    is_read_only: bool = False
    """What the server said when the connection was made."""

    def drop(self) -> None:
        """Closes the connection at once, without a word to the server."""
        if self.connection:
            self.connection.terminate()
        self.connection = None


class Connections:
    """Hands out its connections in the order of asking; the one used last goes first, so its caches are warm."""

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
        """Closes every connection."""
        for slot in self._slots:
            slot.drop()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Session]:
        """A connection for the block; the caller sets the deadline. Raises what asyncpg raises."""
        async with self._permits:
            slot = self._free.pop()
            try:
                connection = slot.connection if self._is_usable(slot) and slot.connection else await self._connect(slot)
                slot.used_since = asyncio.get_running_loop().time()
                yield connection
            except BaseException as error:
                if slot.connection and self._is_server_failure(slot, slot.connection, error):
                    self.primary.distrust(slot.connection)
                slot.drop()
                raise
            finally:
                self._free.append(slot)

    async def watch_primary(self) -> None:
        """Look with a new connection, every few seconds, where the primary is; runs until cancelled.

        An idle connection to a former primary works as well as ever. Only a new one leads to the server that has
        taken its place, and finding a newer timeline there ends the trust in the others.
        """
        while True:
            await asyncio.sleep(WATCH_INTERVAL_SECONDS)
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
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
        """Whether the failure of a connection is a reason to doubt those that are idle."""
        if isinstance(error, asyncio.CancelledError):  # what a deadline of the caller's looks like here
            return asyncio.get_running_loop().time() - slot.used_since > SILENT_SECONDS
        return isinstance(error, LOST) or connection.is_closed()

    async def _connect(self, slot: Slot) -> Session:
        slot.drop()
        slot.connection = await connect(self._url, self._application_name, session_settings=self._session_settings)
        slot.expires_at = asyncio.get_running_loop().time() + LIFETIME_SECONDS
        slot.is_read_only = is_read_only(slot.connection)
        return slot.connection


def is_read_only(session: Session) -> bool:
    """Whether the server takes no writes, as it tells its sessions without being asked."""
    settings = session.get_settings()
    return "on" in (getattr(settings, "in_hot_standby", None), getattr(settings, "default_transaction_read_only", None))
