"""Every SELECT of the gateway: compiled once, run on a few asyncpg connections, JSON passed through as text.

Nothing here holds a connection or a transaction while it waits for anything but Postgres.
"""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from uuid import UUID

import asyncpg
import structlog
from sqlalchemy import BigInteger, Uuid, bindparam, func, literal_column, select

from gateway.settings import GatewaySettings
from shared.connections import Connections
from shared.contracts import Outcome
from shared.database import Statement
from shared.tables import NOTE_FIELDS, commands, note_json, notes

READ_FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

NO_LIMIT = nullcontext()

log = structlog.get_logger()


_PRINTED_NOTE = note_json(notes, {name: notes.c[name] for name in NOTE_FIELDS})
_OWNER = bindparam("owner", type_=BigInteger)
FIND_NOTE = Statement.compiled(
    select(_PRINTED_NOTE, notes.c.version).where(
        notes.c.id == bindparam("note_id", type_=BigInteger), notes.c.owner_id == _OWNER
    )
)
_PAGE = (
    select(_PRINTED_NOTE.label("note"))
    .where(notes.c.owner_id == _OWNER)
    .order_by(notes.c.id)
    .offset(bindparam("skip", type_=BigInteger))
    .limit(bindparam("limit", type_=BigInteger))
    .subquery()
)
_JOINED = func.coalesce(func.string_agg(_PAGE.c.note, literal_column("','")), literal_column("''"))
LIST_NOTES = Statement.compiled(select(func.concat(literal_column("'['"), _JOINED, literal_column("']'"))))
FIND_OUTCOME = Statement.compiled(
    select(*(commands.c[name] for name in Outcome.model_fields)).where(
        commands.c.id == bindparam("command_id", type_=Uuid), commands.c.owner_id == _OWNER
    )
)


PING = Statement.compiled(select(literal_column("1")))


class DatabaseUnavailableError(Exception):
    """Postgres did not answer a read within its deadline, or refused to."""


class Queries:
    """Answers reads within their deadline, or raises DatabaseUnavailableError."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._timeout_seconds = settings.read_timeout_seconds
        self._connections = Connections(settings.database_url, "inkwell-gateway", settings.read_connections)
        self._lists = asyncio.Semaphore(settings.read_connections - 1)

    def close(self) -> None:
        """Closes the connections."""
        self._connections.close()

    async def find_note(self, owner: int, note_id: int) -> tuple[str, int] | None:
        """A note as JSON, and its version."""
        rows = await self._fetch(FIND_NOTE, owner=owner, note_id=note_id)
        return (rows[0][0], rows[0][1]) if rows else None

    async def list_notes(self, owner: int, skip: int, limit: int) -> str:
        """A page of notes in id order, as a JSON array; lists leave a connection for everything else."""
        rows = await self._fetch(LIST_NOTES, self._lists, owner=owner, skip=skip, limit=limit)
        return str(rows[0][0])

    async def find_outcome(self, owner: int, command_id: UUID) -> Outcome | None:
        """What has been committed about a command."""
        rows = await self._fetch(FIND_OUTCOME, owner=owner, command_id=command_id)
        return Outcome.model_validate(dict(rows[0])) if rows else None

    async def ping(self) -> None:
        """Asks Postgres for a sign of life."""
        await self._fetch(PING)

    async def _fetch(
        self, query: Statement, room: AbstractAsyncContextManager[None] = NO_LIMIT, **arguments: object
    ) -> list[asyncpg.Record]:
        try:
            async with asyncio.timeout(self._timeout_seconds), room, self._connections.one() as connection:
                return await query.fetch(connection, **arguments)
        except READ_FAILURES as error:
            log.warning("read not answered: Postgres is away or unwilling", **reason(error))
            raise DatabaseUnavailableError from error


def reason(error: BaseException) -> dict[str, str]:
    """What the log says of a failed read."""
    if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        hint = "the schema is behind: run `alembic upgrade head` with the migrator's INKWELL_DATABASE_URL"
        return {"error": type(error).__name__, "hint": hint}
    return {"error": type(error).__name__}
