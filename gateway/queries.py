"""Reads: the gateway's SELECTs on a few asyncpg connections, JSON passed through as text.

Nothing here holds a connection or a transaction while it waits for anything but Postgres.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from gateway.caller import Caller
from gateway.metrics import READS_FAILED
from gateway.settings import GatewaySettings
from gateway.shares import Shares
from gateway.statements import (
    FIND_CREDENTIALS_VERSION,
    FIND_LOGIN,
    FIND_NOTE,
    FIND_OUTCOME,
    FIND_PASSWORD,
    FIND_REGISTRATION,
    FIND_TOKEN,
    FIND_TOKEN_HOLDER,
    FIND_USER,
    LIST_TOKENS,
    PING,
    POLL_OUTCOME,
    SEARCH_TRIGRAMS,
    SEARCH_WORDS,
    ListShape,
    list_notes,
)
from shared.clock import Clock
from shared.connections import Connections
from shared.contracts import NOBODY, Outcome, PublicToken, PublicUser, Scope
from shared.database import Statement, milliseconds_before
from shared.errors import describe
from shared.primary import Primary

# asyncpg calls it an internal error, too, when a connection ends at the wrong moment.
READ_FAILURES = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

CLOCK_INTERVAL_SECONDS, FIRST_LOOK_SECONDS = 2.0, 1.0
NO_LIMIT = nullcontext()
TOKEN_SCOPES = frozenset({Scope.READ, Scope.WRITE})
"""The scopes that a personal token may have."""
SIMILAR_MAX_LENGTH = 64
"""Characters of what similar titles are looked for; comparing costs as many times a title's length."""
FAR = 1000
"""Notes that a list leaves out by walking past them: from so many on it is a slow one."""
SESSION_SETTINGS = {
    # There is an index for every read and for every order, as good for the millionth note as for the first: nothing
    # is searched through or sorted that need not be, and nothing takes so long that compiling it would pay.
    "enable_seqscan": "off",
    "enable_sort": "off",
    "jit": "off",
    "pg_trgm.word_similarity_threshold": "0.3",  # two letters of seven in the wrong order have 0.37
}

log = structlog.get_logger()


class DatabaseUnavailableError(Exception):
    """Postgres did not answer a read within its deadline, or refused to."""


class SearchTimeoutError(Exception):
    """Postgres has worked on a search for as long as it may, and was stopped."""


class CredentialsOutdatedError(Exception):
    """The owner's credentials are not the caller's any more, or the owner is gone."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a password is checked against."""

    owner: int
    credentials_version: int
    password_hash: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of notes as JSON, with what they are sorted by and their ids."""

    notes: list[str]
    keys: list[Any]
    ids: list[int]
    total: int | None
    """How many there are on all pages, if that was asked for."""


@dataclass(frozen=True, slots=True)
class Found:
    """A page of what was searched for, as JSON."""

    notes: list[str]
    total: int
    """How many there are on all pages."""
    is_limited: bool
    """Whether there are more matches than were looked at."""
    is_similar: bool
    """Whether no note has the words, and these have similar ones."""


class Queries:
    """Answers reads within their deadline, or raises DatabaseUnavailableError."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._timeout_seconds = settings.read_timeout_seconds
        session_settings = SESSION_SETTINGS | {"statement_timeout": milliseconds_before(self._timeout_seconds)}
        self._connections = Connections(
            settings.database_url, "inkwell-gateway", settings.read_connections, session_settings
        )
        self._search_bound = settings.search_matches
        # Stopped by Postgres well before the read is given up here, or nobody could tell it from a server that is away.
        search_seconds = min(settings.search_timeout_seconds, settings.read_timeout_seconds / 4)
        deadline = f"set local statement_timeout = {int(search_seconds * 1000)}"
        self._by_words, self._by_trigrams = (
            replace(statement, settings=f"{statement.settings}; {deadline}")
            for statement in (SEARCH_WORDS, SEARCH_TRIGRAMS)
        )
        # Something is left for what is quick, of lists for quick ones, and of an owner's share for the other owners.
        places = settings.read_connections - 1
        slow_places = max(1, places - 1)
        is_shared = settings.auth == "password"
        self._lists = Shares(places, slow_places if is_shared else places)
        self._slow_reads = Shares(slow_places, 1 if is_shared else slow_places)

    def close(self) -> None:
        """Closes the connections."""
        self._connections.close()

    async def find_note(self, caller: Caller, note_id: int) -> tuple[str, int] | None:
        """A note as JSON, and its version."""
        [(note, version)] = await self._fetch_mine(caller, FIND_NOTE, note_id=note_id)
        return (note, version) if note else None

    async def list_notes(self, caller: Caller, shape: ListShape, **arguments: Any) -> Listed:  # noqa: ANN401 - SQL's
        """A page of notes; raises ShareUsedUpError where the caller's lists keep each other waiting for too long."""
        query, until = list_notes(shape), self._deadline()
        is_slow = shape.is_counted or shape.filters or arguments["skip"] > FAR
        place = self._place_of_slow_read(caller, until) if is_slow else self._place_of_list(caller, until)
        [row] = await self._fetch_mine(caller, query, place, until, **arguments)
        return Listed(row["notes"] or [], row["keys"] or [], row["ids"] or [], row.get("total"))

    async def search_notes(self, caller: Caller, q: str, skip: int, limit: int) -> Found:
        """The notes with these words, the best first; where there are none, those whose titles resemble them.

        Raises SearchTimeoutError, and ShareUsedUpError where the caller's searches keep each other waiting too long.
        """
        arguments: dict[str, Any] = {"q": q, "bound": self._search_bound, "skip": skip, "limit": limit}
        until = self._deadline()
        try:
            async with self._place_of_slow_read(caller, until):
                [(notes, total)] = await self._fetch_mine(caller, self._by_words, until=until, **arguments)
                is_similar = not total and len(q) <= SIMILAR_MAX_LENGTH
                if is_similar:
                    [(notes, total)] = await self._fetch_mine(caller, self._by_trigrams, until=until, **arguments)
        except TimeoutError as error:
            raise unavailable(error) from error
        return Found(notes or [], min(total, self._search_bound), total > self._search_bound, is_similar)

    async def find_user(self, caller: Caller) -> PublicUser:
        """The caller's own account."""
        [row] = await self._fetch_mine(caller, FIND_USER)
        return PublicUser.model_validate(dict(row))

    async def find_password(self, caller: Caller) -> str | None:
        """The hash of the caller's password."""
        [(password_hash,)] = await self._fetch_mine(caller, FIND_PASSWORD)
        return str(password_hash) if password_hash else None

    async def find_token(self, caller: Caller, token_id: UUID) -> PublicToken | None:
        """One of the caller's personal tokens."""
        [row] = await self._fetch_mine(caller, FIND_TOKEN, token_id=token_id)
        return PublicToken.model_validate(dict(row)) if row["id"] else None

    async def list_tokens(self, caller: Caller, skip: int, limit: int) -> list[PublicToken]:
        """A page of the caller's personal tokens, the oldest first."""
        until = self._deadline()
        place = self._place_of_list(caller, until)
        rows = await self._fetch_mine(caller, LIST_TOKENS, place, until, skip=skip, limit=limit)
        return [PublicToken.model_validate(dict(row)) for row in rows if row["id"]]

    async def find_login(self, folded_name: str) -> Login | None:
        """The user of this name."""
        rows = await self._fetch(FIND_LOGIN, folded_name=folded_name)
        return Login(*rows[0]) if rows else None

    async def find_credentials_version(self, owner: int) -> int | None:
        """The version that the owner's credentials have now; None where the owner is gone."""
        rows = await self._fetch(FIND_CREDENTIALS_VERSION, owner=owner)
        return int(rows[0][0]) if rows else None

    async def find_token_holder(self, digest: str) -> Caller | None:
        """Who holds the personal token of this digest; None where it is not valid (any more)."""
        rows = await self._fetch(FIND_TOKEN_HOLDER, digest=digest)
        if not rows:
            return None
        owner, credentials_version, scopes, expires_date = rows[0]
        allowed = TOKEN_SCOPES.intersection(map(Scope, scopes))
        return Caller(owner, credentials_version, allowed, expires_date.timestamp())

    async def find_outcome(self, owner: int, command_id: UUID) -> Outcome | None:
        """What has been committed about a command of the owner's, or about a registration, which is nobody's."""
        statement = FIND_REGISTRATION if owner == NOBODY else FIND_OUTCOME
        rows = await self._fetch(statement, owner=owner, command_id=command_id)
        return Outcome.model_validate(dict(rows[0])) if rows else None

    async def poll_outcome(self, caller: Caller, command_id: UUID) -> Outcome | None:
        """What has been committed about a command of the caller's."""
        [row] = await self._fetch_mine(caller, POLL_OUTCOME, command_id=command_id)
        return Outcome.model_validate(dict(row)) if row["id"] else None

    async def look_at(self, clock: Clock, timeout_seconds: float = FIRST_LOOK_SECONDS) -> None:
        """Let the clock see Postgres', if Postgres answers in time; otherwise what it has seen before must do."""
        with suppress(*READ_FAILURES):
            async with asyncio.timeout(timeout_seconds), self._connections.one() as connection:
                await clock.look(connection)

    async def keep_looking_at(self, clock: Clock) -> None:
        """Look again and again until cancelled."""
        while True:
            await asyncio.sleep(CLOCK_INTERVAL_SECONDS)
            await self.look_at(clock, self._timeout_seconds)

    async def ping(self) -> None:
        """Asks Postgres for a sign of life."""
        await self._fetch(PING)

    @property
    def primary(self) -> Primary:
        """What the gateway knows of the primary."""
        return self._connections.primary

    async def watch(self) -> None:
        """Look where the primary is, until cancelled."""
        await self._connections.watch()

    def _place_of_list(self, caller: Caller, until: float) -> AbstractAsyncContextManager[None]:
        """A place that comes in half of the time of a read, which needs the other half itself."""
        return self._lists.place(caller.owner, until - self._timeout_seconds / 2)

    @asynccontextmanager
    async def _place_of_slow_read(self, caller: Caller, until: float) -> AsyncIterator[None]:
        """A place among the slow ones, too."""
        async with (
            self._slow_reads.place(caller.owner, until - self._timeout_seconds / 2),
            self._place_of_list(caller, until),
        ):
            yield

    def _deadline(self) -> float:
        """When a read that begins now must be answered."""
        return asyncio.get_running_loop().time() + self._timeout_seconds

    async def _fetch_mine(
        self,
        caller: Caller,
        query: Statement,
        place: AbstractAsyncContextManager[None] = NO_LIMIT,
        until: float | None = None,
        **arguments: object,
    ) -> list[asyncpg.Record]:
        """At least one row; raises CredentialsOutdatedError where the SQL does not find the caller."""
        mine = {"owner": caller.owner, "credentials_version": caller.credentials_version}
        if not (rows := await self._fetch(query, place, until, **mine, **arguments)):
            raise CredentialsOutdatedError
        return rows

    async def _fetch(
        self,
        query: Statement,
        place: AbstractAsyncContextManager[None] = NO_LIMIT,
        until: float | None = None,
        **arguments: object,
    ) -> list[asyncpg.Record]:
        until = until or self._deadline()
        try:
            async with place, asyncio.timeout_at(until), self._connections.one() as connection:
                return await query.fetch(connection, **arguments)
        except READ_FAILURES as error:
            if isinstance(error, asyncpg.QueryCanceledError) and query in (self._by_words, self._by_trigrams):
                raise SearchTimeoutError from error
            raise unavailable(error) from error


def unavailable(error: BaseException) -> DatabaseUnavailableError:
    """The error of a read that failed so; counts and logs it."""
    READS_FAILED.inc()
    log.warning("read not answered: Postgres is away or unwilling", **reason(error))
    return DatabaseUnavailableError()


def reason(error: BaseException) -> dict[str, str]:
    """What the log says of a failed read."""
    if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        hint = "the schema is behind: run `alembic upgrade head` with the migrator's INKWELL_DATABASE_URL"
        return {"error": describe(error), "hint": hint}
    return {"error": describe(error)}
