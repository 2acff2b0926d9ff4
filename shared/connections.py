"""A few fixed connections to Postgres.

A connection that fails, or on which something was given up, is dropped and replaced: nothing waits for a server that
does not answer to a cancel request either, and no session is used again in an unknown state.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import Secret

from shared.database import Session, connect
from shared.database_url import DatabaseUrl
from shared.metrics import CONNECTIONS_LIMIT, CONNECTIONS_USED

LIFETIME_SECONDS = 300.0
"""After so long a connection is replaced, so that a primary that moved is found again."""


@dataclass(slots=True)
class Slot:
    """A place for one connection, which is made when it is first needed."""

    connection: "Session | None" = None
    expires_at: float = 0.0

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
        self._session_settings = session_settings
        self._application_name = application_name
        self._slots = [Slot() for _ in range(size)]
        self._free = list(self._slots)
        self._places = asyncio.Semaphore(size)
        CONNECTIONS_LIMIT.set(size)
        CONNECTIONS_USED.set_function(lambda: len(self._slots) - len(self._free))

    def close(self) -> None:
        """Closes every connection."""
        for slot in self._slots:
            slot.drop()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Session]:
        """A connection for the block; the caller sets the deadline. Raises what asyncpg raises."""
        async with self._places:
            slot = self._free.pop()
            try:
                yield slot.connection if self._is_usable(slot) and slot.connection else await self._connect(slot)
            except BaseException:
                slot.drop()
                raise
            finally:
                self._free.append(slot)

    def _is_usable(self, slot: Slot) -> bool:
        if slot.connection and (slot.connection.is_closed() or asyncio.get_running_loop().time() > slot.expires_at):
            slot.drop()
        return slot.connection is not None

    async def _connect(self, slot: Slot) -> Session:
        slot.connection = await connect(self._url, self._application_name, session_settings=self._session_settings)
        slot.expires_at = asyncio.get_running_loop().time() + LIFETIME_SECONDS
        return slot.connection
