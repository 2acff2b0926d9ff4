"""Every SELECT of the gateway: compiled once, run on a few asyncpg connections, JSON passed through as text.

Nothing here holds a connection or a transaction while it waits for anything but Postgres.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import structlog
from pydantic import PostgresDsn, Secret
from sqlalchemy import BigInteger, Select, Uuid, bindparam, func, literal_column, select
from sqlalchemy.dialects.postgresql.asyncpg import dialect

from gateway.errors import ProblemError
from shared.contracts import Outcome
from shared.database import SESSION_SETTINGS, driver_url
from shared.tables import NOTE_FIELDS, commands, note_json, notes

CONNECTION_LIFETIME_SECONDS = 300.0
READ_FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Query:
    """A statement compiled for asyncpg, which numbers its parameters."""

    sql: str
    parameters: tuple[str, ...]

    @classmethod
    def compiled(cls, statement: Select[Any]) -> "Query":
        """Compiles a statement with named parameters."""
        compiled = statement.compile(dialect=dialect())  # type: ignore[no-untyped-call]
        return cls(str(compiled), tuple(compiled.positiontup or ()))

    def arguments(self, **values: object) -> list[object]:
        """The parameters in the order of their numbers."""
        return [values[name] for name in self.parameters]


_PRINTED_NOTE = note_json(notes, {name: notes.c[name] for name in NOTE_FIELDS})
_OWNER = bindparam("owner", type_=BigInteger)
FIND_NOTE = Query.compiled(
    select(_PRINTED_NOTE).where(notes.c.id == bindparam("note_id", type_=BigInteger), notes.c.owner_id == _OWNER)
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
LIST_NOTES = Query.compiled(select(func.concat(literal_column("'['"), _JOINED, literal_column("']'"))))
FIND_OUTCOME = Query.compiled(
    select(*(commands.c[name] for name in Outcome.model_fields)).where(
        commands.c.id == bindparam("command_id", type_=Uuid), commands.c.owner_id == _OWNER
    )
)


class Queries:
    """Answers reads within their deadline, or ends the request with a problem 503."""

    def __init__(self, url: Secret[PostgresDsn], connections: int, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._lists = asyncio.Semaphore(connections - 1)
        self._pool = asyncpg.create_pool(
            driver_url(url, "postgresql"),
            min_size=0,
            max_size=connections,
            max_inactive_connection_lifetime=CONNECTION_LIFETIME_SECONDS,
            timeout=timeout_seconds,
            command_timeout=timeout_seconds,
            server_settings={**SESSION_SETTINGS, "application_name": "inkwell-gateway"},
            reset=_keep_session,
        )

    async def open(self) -> None:
        """Makes ready to connect; Postgres need not be there."""
        await self._pool

    async def close(self) -> None:
        """Closes the connections."""
        self._pool.terminate()

    async def find_note(self, owner: int, note_id: int) -> str | None:
        """A note as JSON."""
        arguments = FIND_NOTE.arguments(owner=owner, note_id=note_id)
        return await self._answer(self._pool.fetchval(FIND_NOTE.sql, *arguments))

    async def list_notes(self, owner: int, skip: int, limit: int) -> str:
        """A page of notes in id order, as a JSON array; lists leave a connection for everything else."""
        arguments = LIST_NOTES.arguments(owner=owner, skip=skip, limit=limit)

        async def page() -> str:
            async with self._lists:
                return str(await self._pool.fetchval(LIST_NOTES.sql, *arguments))

        return await self._answer(page())

    async def find_outcome(self, owner: int, command_id: UUID) -> Outcome | None:
        """What has been committed about a command."""
        arguments = FIND_OUTCOME.arguments(owner=owner, command_id=command_id)
        row = await self._answer(self._pool.fetchrow(FIND_OUTCOME.sql, *arguments))
        return Outcome.model_validate(dict(row)) if row else None

    async def ping(self) -> None:
        """Asks Postgres for a sign of life."""
        await self._answer(self._pool.fetchval("select 1"))

    async def _answer(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await answer
        except READ_FAILURES as error:
            log.warning("read not answered: Postgres is away or unwilling", error=type(error).__name__)
            raise ProblemError(
                503, "database_unavailable", "The database does not answer; try again", headers={"Retry-After": "1"}
            ) from error


async def _keep_session(_: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Spares the round trip that resets a session: nothing here leaves anything behind in one."""
