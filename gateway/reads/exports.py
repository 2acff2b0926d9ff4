"""Reads all notes of an owner in one snapshot, through a cursor: memory does not depend on their number.

Each export has a connection of its own, so that a slow client occupies none that other reads need.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from asyncpg.cursor import Cursor

from gateway.caller import Caller
from gateway.reads.errors import CredentialsOutdatedError
from gateway.reads.fair_limiter import FairLimiter
from gateway.reads.queries import SESSION_SETTINGS, build_unavailable
from gateway.reads.statements import EXPORT_NOTES, START_EXPORT
from gateway.settings import GatewaySettings
from shared.connections import CONNECTION_ERRORS
from shared.database import Session, connect, milliseconds_before

EXPORTS_LIMIT = 4
"""Exports at once in a process, and so connections."""
EXPORT_SECONDS = 600.0
"""How long an export may take: Postgres keeps the rows that its snapshot sees, so tables grow meanwhile."""
IDLE_MARGIN_SECONDS = 60.0
ROWS_LIMIT = 500
PART_BYTES = 1024 * 1024
"""Limit on the notes that are fetched at once, if they are as long as the settings allow."""
CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Export:
    """The notes of one owner as they were at one revision."""

    revision: int
    time: datetime
    _session: Session
    _cursor: "Cursor[asyncpg.Record]"
    _rows: int
    _timeout_seconds: float

    async def fetch(self) -> list[asyncpg.Record]:
        """Return the next notes, each with `id` and `note`; none at the end. Raises DatabaseUnavailableError."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._cursor.fetch(self._rows)
        except Exception as error:
            if isinstance(error, CONNECTION_ERRORS) or self._session.is_closed():  # then the driver may raise others
                raise build_unavailable(error) from error
            raise


class Exports:
    """Opens exports."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._url = settings.database_url
        self._timeout_seconds = settings.read_timeout_seconds
        longest = (settings.title_max_length + settings.description_max_length) * CHARACTER_BYTES
        self._rows = max(1, min(ROWS_LIMIT, PART_BYTES // longest))
        self._permits = FairLimiter(EXPORTS_LIMIT, 1 if settings.auth == "password" else EXPORTS_LIMIT)
        self._session_settings = SESSION_SETTINGS | {
            "statement_timeout": milliseconds_before(self._timeout_seconds),
            # The session is idle while the client reads.
            "idle_in_transaction_session_timeout": str(int((EXPORT_SECONDS + IDLE_MARGIN_SECONDS) * 1000)),
        }

    @asynccontextmanager
    async def open(self, caller: Caller, after_id: int) -> AsyncIterator[Export]:
        """Hold an export of the notes with greater ids during the block.

        Raises ShareExhaustedError, CredentialsOutdatedError or DatabaseUnavailableError. A client that reads too slowly
        to get the end in time is cut off, by cancelling the task.
        """
        async with asyncio.timeout(EXPORT_SECONDS + IDLE_MARGIN_SECONDS), AsyncExitStack() as stack:
            stack.enter_context(self._permits.permit_at_once(caller.owner))
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    export = await self._start(stack, caller, after_id)
            except CONNECTION_ERRORS as error:
                raise build_unavailable(error) from error
            yield export

    async def _start(self, stack: AsyncExitStack, caller: Caller, after_id: int) -> Export:
        session = await connect(self._url, "inkwell-gateway export", session_settings=self._session_settings)
        stack.callback(session.terminate)
        await session.transaction(isolation="repeatable_read", readonly=True).start()
        identity = {"owner": caller.owner, "credentials_version": caller.credentials_version}
        rows = await START_EXPORT.fetch(session, **identity)
        if not rows:
            raise CredentialsOutdatedError
        cursor = await EXPORT_NOTES.open_cursor(session, **identity, after_id=after_id)
        return Export(rows[0]["revision"], rows[0]["time"], session, cursor, self._rows, self._timeout_seconds)
