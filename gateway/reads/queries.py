"""Runs the gateway's SELECTs on a few asyncpg connections; the JSON that they return is passed through as text.

A connection is held only while Postgres is awaited.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from gateway.caller import Caller
from gateway.reads.changes import ChangedNote, ChangesCursor, ChangesPage, OwnerState, digest_timeline
from gateway.reads.errors import CredentialsOutdatedError, DatabaseUnavailableError, SearchTimeoutError
from gateway.reads.fair_limiter import FairLimiter
from gateway.reads.gathered import FoundRow, GatheredReads, fetch_notes
from gateway.reads.results import FoundNote, Login, NoteList, Revision, SearchResult, TrashedNote
from gateway.reads.search_statements import SEARCH_TEXT, SEARCH_TRIGRAMS, SEARCH_WORDS
from gateway.reads.search_terms import SearchTerms
from gateway.reads.statements import (
    FIND_CREDENTIALS_VERSION,
    FIND_LOGIN,
    FIND_NOTES,
    FIND_OUTCOME,
    FIND_PASSWORD,
    FIND_REGISTRATION,
    FIND_TOKEN,
    FIND_TOKEN_HOLDER,
    FIND_TRASHED,
    FIND_VERSION,
    GET_USER,
    LIST_CHANGES,
    LIST_TOKENS,
    LIST_TRASH,
    LIST_VERSIONS,
    PING,
    POLL_OUTCOME,
    ListShape,
    build_list_statement,
)
from gateway.settings import GatewaySettings
from gateway.telemetry.metrics import READS_FAILED
from shared.clock import Clock
from shared.connections import CONNECTION_ERRORS, Connections
from shared.contracts import (
    NO_OWNER,
    Command,
    Outcome,
    PublicToken,
    PublicUser,
    Scope,
    outcome_for,
    outcome_for_attempt,
)
from shared.database import SCHEMA_REMEDY, Statement, milliseconds_before
from shared.errors import describe_error
from shared.primary import Primary, Timeline

FOLLOWERS_PATIENCE_SECONDS = 30.0
CLOCK_INTERVAL_SECONDS = 2.0
FIRST_SYNCHRONIZATION_SECONDS = 1.0
NO_LIMIT = nullcontext()
"""One for all reads at once: a `nullcontext` has no state."""
TOKEN_SCOPES = frozenset({Scope.READ, Scope.WRITE})
"""The scopes that a personal token may have."""
SEARCH_REACH = 50
"""How many notes a search walks back for each match that it may rank."""
NO_NOTE = 0
"""No note has this id."""
SLOW_SKIP = 1000
"""A list that skips more notes than this is slow: Postgres walks past each of them."""
SESSION_SETTINGS = {
    # Every read and every order has an index, so a plan with a scan or a sort is a misestimate, and no statement is
    # slow enough to benefit from JIT compilation.
    "enable_seqscan": "off",
    "enable_sort": "off",
    # A plan made while the tables are small may join by reading a whole table, and stays cached while they grow.
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    # No good plan depends on the values; by default Postgres would plan each execution with a short array again.
    "plan_cache_mode": "force_generic_plan",
    "pg_trgm.word_similarity_threshold": "0.3",  # a word of seven letters with two of them swapped has 0.37
}

log = structlog.get_logger()


class Queries:
    """Answers reads within their deadline, or raises DatabaseUnavailableError.

    Has the connections, and therefore also what else needs them: the clock's samples and the state of the primary.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._timeout_seconds = settings.read_timeout_seconds
        session_settings = SESSION_SETTINGS | {"statement_timeout": milliseconds_before(self._timeout_seconds)}
        self._connections = Connections(
            settings.database_url, "inkwell-gateway", settings.read_connections, session_settings
        )
        self._notes = GatheredReads(partial(fetch_notes, self._connections))
        self._search_bound = settings.search_matches
        # Postgres must cancel a search well before the deadline here, at which Postgres would count as unavailable.
        search_seconds = min(settings.search_timeout_seconds, settings.read_timeout_seconds / 4)
        deadline = f"set local statement_timeout = {int(search_seconds * 1000)}"
        self._by_words, self._by_text, self._by_trigrams = self._searches = tuple(
            replace(statement, settings=f"{statement.settings}; {deadline}")
            for statement in (SEARCH_WORDS, SEARCH_TEXT, SEARCH_TRIGRAMS)
        )
        # Of N connections, lists may hold N - 1 and slow reads N - 2, so one is left for single rows and one for quick
        # lists. Of several users, one may hold N - 2 and 1 of these: the others always find a connection. With N = 2,
        # lists and slow reads share one.
        lists = settings.read_connections - 1
        slow_reads = max(1, lists - 1)
        has_users = settings.auth == "password"
        self._lists = FairLimiter(lists, slow_reads if has_users else lists)
        self._slow_reads = FairLimiter(slow_reads, 1 if has_users else slow_reads)
        self._followers = FairLimiter(slow_reads, 1 if has_users else slow_reads)

    def close(self) -> None:
        """Close the connections."""
        self._notes.close()
        self._connections.close()

    def compute_deadline(self) -> float:
        """Return the deadline of reads that begin now, in the event loop's time."""
        return asyncio.get_running_loop().time() + self._timeout_seconds

    async def find_note(self, caller: Caller, note_id: int) -> FoundNote | None:
        """Return the caller's note as JSON and its version, or None."""
        note, version, _ = await self._read_row(caller, note_id, self.compute_deadline())
        return None if note is None or version is None else (note, version)

    async def get_revision(self, caller: Caller, deadline: float) -> Revision:
        """Return the revision of the caller's notes, which any change of them raises."""
        _, _, revision = await self._read_row(caller, NO_NOTE, deadline)
        return revision

    async def list_notes(
        self,
        caller: Caller,
        shape: ListShape,
        deadline: float,
        **arguments: Any,  # noqa: ANN401 - SQL's
    ) -> NoteList:
        """Return a page of notes; raises ShareExhaustedError if the caller has too many in progress."""
        query = build_list_statement(shape)
        is_slow = shape.is_counted or shape.filters or arguments["skip"] > SLOW_SKIP
        permit = self._limit_slow_read(caller, deadline) if is_slow else self._limit_list(caller, deadline)
        timeline, rows = await self._fetch_with_timeline(query, permit, deadline, **_identify(caller), **arguments)
        [row] = _check_caller(rows)
        revision = (timeline, row["revision"])
        return NoteList(row["notes"] or [], row["ids"] or [], row.get("keys") or [], row.get("total"), revision)

    async def list_changes(
        self,
        caller: Caller,
        since: ChangesCursor,
        limit: int,
        permit: AbstractAsyncContextManager[None] | None = None,
    ) -> ChangesPage:
        """Return the first changes after a position; raises ChangesGoneError if some may be unknown.

        Holds the permit of a list unless another one is given.
        """
        deadline = self.compute_deadline()
        permit = permit or self._limit_list(caller, deadline)
        place = {"after_revision": since.revision, "after_id": since.after_id, "limit": limit + 1}
        timeline, rows = await self._fetch_with_timeline(LIST_CHANGES, permit, deadline, **_identify(caller), **place)
        [row] = _check_caller(rows)
        state = OwnerState(row["revision"], row["purged_revision"], digest_timeline(timeline))
        since.check(caller.owner, state)
        found = zip(row["ids"] or (), row["revisions"] or (), row["notes"] or (), strict=True)
        changes = [ChangedNote(*each) for each in islice(found, limit)]
        return ChangesPage(changes, len(row["ids"] or ()) > limit, caller.owner, state)

    async def find_trashed(self, caller: Caller, note_id: int) -> FoundNote | None:
        """Return one of the caller's deleted notes as JSON and its version; None unless it is in the trash."""
        [(note, version)] = await self._fetch_mine(caller, FIND_TRASHED, note_id=note_id)
        return None if note is None else (note, version)

    async def list_trash(self, caller: Caller, before_revision: int, before_id: int, limit: int) -> list[TrashedNote]:
        """Return the caller's deleted notes that come before this place, the last deletion first."""
        deadline = self.compute_deadline()
        permit = self._limit_list(caller, deadline)
        [row] = await self._fetch_mine(
            caller, LIST_TRASH, permit, deadline, before_revision=before_revision, before_id=before_id, limit=limit
        )
        columns = (row[name] or () for name in ("notes", "revisions", "ids"))
        return [TrashedNote(*each) for each in zip(*columns, strict=True)]

    async def find_version(self, caller: Caller, note_id: int, version: int) -> tuple[bool, str | None]:
        """Return whether the caller has the note, and this version of it as JSON if it is kept."""
        [(is_found, body)] = await self._fetch_mine(caller, FIND_VERSION, note_id=note_id, version=version)
        return is_found, body

    async def list_versions(self, caller: Caller, note_id: int, before: int, limit: int) -> list[FoundNote] | None:
        """Return the versions below `before` that are kept, the newest first, each as JSON; None without the note."""
        deadline = self.compute_deadline()
        permit = self._limit_list(caller, deadline)
        [row] = await self._fetch_mine(
            caller, LIST_VERSIONS, permit, deadline, note_id=note_id, before=before, limit=limit
        )
        return [(body, version) for version, body in row["versions"]] if row["is_found"] else None

    async def search_notes(self, caller: Caller, terms: SearchTerms, skip: int, limit: int) -> SearchResult:
        """Return the notes with the words, the best match first, then those with the text; or else similar ones.

        Raises SearchTimeoutError, and ShareExhaustedError if the caller has too many in progress.
        """
        deadline = self.compute_deadline()
        try:
            async with self._limit_slow_read(caller, deadline):
                return await self._search_in_steps(caller, terms, skip, limit, deadline)
        except TimeoutError as error:
            raise build_unavailable(error) from error

    async def _search_in_steps(
        self, caller: Caller, terms: SearchTerms, skip: int, limit: int, deadline: float
    ) -> SearchResult:
        bound = self._search_bound
        arguments: dict[str, Any] = {
            "words": terms.words,
            "text": terms.text,
            "symbols": terms.symbols,
            "reach": SEARCH_REACH * bound,
        }
        steps = [("words", self._by_words), ("text", self._by_text)]
        steps += [("similar", self._by_trigrams)] if terms.may_be_misspelt else []
        found = SearchResult([], 0, is_limited=False, matched="words")
        for matched, statement in steps:
            if found.is_limited or (matched == "similar" and found.total):
                break
            rest = bound - found.total
            page: dict[str, Any] = {
                "bound": rest,
                "skip": max(0, skip - found.total),
                "limit": min(limit - len(found.notes), rest),
            }
            try:
                [row] = await self._fetch_mine(caller, statement, deadline=deadline, **arguments, **page)
            except SearchTimeoutError:
                if not found.total and matched != "similar":
                    raise
                return replace(found, is_limited=True)
            found = _add(found, row, matched, bound)
        return found

    async def get_user(self, caller: Caller) -> PublicUser:
        """Return the caller's account."""
        [row] = await self._fetch_mine(caller, GET_USER)
        return PublicUser.model_validate(dict(row))

    async def find_password(self, caller: Caller) -> str | None:
        """Return the hash of the caller's password, or None."""
        [(password_hash,)] = await self._fetch_mine(caller, FIND_PASSWORD)
        return str(password_hash) if password_hash else None

    async def find_token(self, caller: Caller, token_id: UUID) -> PublicToken | None:
        """Return one of the caller's personal tokens, or None."""
        [row] = await self._fetch_mine(caller, FIND_TOKEN, token_id=token_id)
        return PublicToken.model_validate(dict(row)) if row["id"] else None

    async def list_tokens(self, caller: Caller, skip: int, limit: int) -> list[PublicToken]:
        """Return a page of the caller's personal tokens, the oldest first."""
        deadline = self.compute_deadline()
        permit = self._limit_list(caller, deadline)
        rows = await self._fetch_mine(caller, LIST_TOKENS, permit, deadline, skip=skip, limit=limit)
        return [PublicToken.model_validate(dict(row)) for row in rows if row["id"]]

    async def find_login(self, folded_name: str) -> Login | None:
        """Return the user with this name, or None."""
        rows = await self._fetch(FIND_LOGIN, folded_name=folded_name)
        return Login(*rows[0]) if rows else None

    async def find_credentials_version(self, owner: int) -> int | None:
        """Return the current version of the owner's credentials; None if the owner does not exist."""
        rows = await self._fetch(FIND_CREDENTIALS_VERSION, owner=owner)
        return int(rows[0][0]) if rows else None

    async def find_token_holder(self, digest: str) -> Caller | None:
        """Return the holder of the personal token with this digest; None unless it is valid."""
        rows = await self._fetch(FIND_TOKEN_HOLDER, digest=digest)
        if not rows:
            return None
        owner, credentials_version, scopes, expires_date = rows[0]
        allowed = TOKEN_SCOPES.intersection(map(Scope, scopes))
        return Caller(owner, credentials_version, allowed, expires_date.timestamp())

    async def find_outcome(self, command: Command) -> Outcome | None:
        """Return what an attempt at the command gets once it has a committed outcome, or None."""
        if command.owner == NO_OWNER:
            outcome = await self.find_registration(command.id)
            return outcome and outcome_for(command.fingerprint, outcome)
        rows = await self._fetch(FIND_OUTCOME, owner=command.owner, command_id=command.id)
        if not rows:
            return None
        return outcome_for_attempt(command, Outcome.model_validate(dict(rows[0])), rows[0]["current_version"])

    async def find_registration(self, command_id: UUID) -> Outcome | None:
        """Return the committed outcome of a registration, or None."""
        rows = await self._fetch(FIND_REGISTRATION, owner=NO_OWNER, command_id=command_id)
        return Outcome.model_validate(dict(rows[0])) if rows else None

    async def poll_outcome(self, caller: Caller, command_id: UUID) -> Outcome | None:
        """Return the committed outcome of the caller's command, or None."""
        [row] = await self._fetch_mine(caller, POLL_OUTCOME, command_id=command_id)
        return Outcome.model_validate(dict(row)) if row["id"] else None

    async def synchronize_clock(self, clock: Clock, timeout_seconds: float = FIRST_SYNCHRONIZATION_SECONDS) -> None:
        """Synchronize the clock if Postgres answers in time; otherwise it continues from its last sample."""
        with suppress(*CONNECTION_ERRORS):
            async with asyncio.timeout(timeout_seconds), self._connections.acquire() as connection:
                await clock.synchronize(connection)

    async def keep_clock_synchronized(self, clock: Clock) -> None:
        """Synchronize the clock every CLOCK_INTERVAL_SECONDS until cancelled."""
        while True:
            await asyncio.sleep(CLOCK_INTERVAL_SECONDS)
            await self.synchronize_clock(clock, self._timeout_seconds)

    async def ping(self) -> None:
        """Check that Postgres answers."""
        await self._fetch(PING)

    @property
    def primary(self) -> Primary:
        """The state of the primary."""
        return self._connections.primary

    async def watch_primary(self) -> None:
        """Follow the primary until cancelled."""
        await self._connections.watch_primary()

    def _limit_list(self, caller: Caller, deadline: float) -> AbstractAsyncContextManager[None]:
        """Hold a permit for a list; waits for it at most half of the read timeout, and leaves the rest to the read."""
        return self._lists.permit(caller.owner, deadline - self._timeout_seconds / 2)

    @asynccontextmanager
    async def _limit_slow_read(self, caller: Caller, deadline: float) -> AsyncIterator[None]:
        """Hold the permits for a slow read: its own kind's, and that of a list."""
        async with (
            self._slow_reads.permit(caller.owner, deadline - self._timeout_seconds / 2),
            self._limit_list(caller, deadline),
        ):
            yield

    @asynccontextmanager
    async def limit_followers(self, caller: Caller) -> AsyncIterator[None]:
        """Hold the permits for a read of a follower, who has time: those of followers, and one of a list.

        Raises ShareExhaustedError, or DatabaseUnavailableError if reads take so long that it gets none.
        """
        deadline = asyncio.get_running_loop().time() + FOLLOWERS_PATIENCE_SECONDS
        try:
            async with self._followers.permit(caller.owner, deadline), self._lists.permit(caller.owner, deadline):
                yield
        except TimeoutError as error:
            raise build_unavailable(error) from error

    async def _read_row(self, caller: Caller, note_id: int, deadline: float) -> FoundRow:
        try:
            with FIND_NOTES.start_span():
                return await self._notes.read(caller, note_id, deadline)
        except CONNECTION_ERRORS as error:
            raise build_unavailable(error) from error

    async def _fetch_mine(
        self,
        caller: Caller,
        query: Statement,
        permit: AbstractAsyncContextManager[None] = NO_LIMIT,
        deadline: float | None = None,
        **arguments: object,
    ) -> list[asyncpg.Record]:
        """Return at least one row; raises CredentialsOutdatedError if the SQL does not find the caller."""
        return _check_caller(await self._fetch(query, permit, deadline, **_identify(caller), **arguments))

    async def _fetch(
        self,
        query: Statement,
        permit: AbstractAsyncContextManager[None] = NO_LIMIT,
        deadline: float | None = None,
        **arguments: object,
    ) -> list[asyncpg.Record]:
        _, rows = await self._fetch_with_timeline(query, permit, deadline, **arguments)
        return rows

    async def _fetch_with_timeline(
        self,
        query: Statement,
        permit: AbstractAsyncContextManager[None],
        deadline: float | None,
        **arguments: object,
    ) -> tuple[Timeline | None, list[asyncpg.Record]]:
        deadline = deadline or self.compute_deadline()
        try:
            async with permit, asyncio.timeout_at(deadline), self._connections.acquire() as connection:
                timeline = self.primary.timeline_of(connection)  # afterwards a failover may have made it unknown
                return timeline, await query.fetch(connection, **arguments)
        except CONNECTION_ERRORS as error:
            if isinstance(error, asyncpg.QueryCanceledError) and query in self._searches:
                raise SearchTimeoutError from error
            raise build_unavailable(error) from error


def _identify(caller: Caller) -> dict[str, object]:
    return {"owner": caller.owner, "credentials_version": caller.credentials_version}


def _check_caller(rows: list[asyncpg.Record]) -> list[asyncpg.Record]:
    """Return the rows; raises CredentialsOutdatedError if there are none."""
    if not rows:
        raise CredentialsOutdatedError
    return rows


def _add(found: SearchResult, row: asyncpg.Record, matched: str, bound: int) -> SearchResult:
    """Return what was found so far and what another step has found."""
    total = found.total + row["total"]
    return SearchResult(
        notes=found.notes + (row["notes"] or []),
        total=min(total, bound),
        is_limited=total > bound or row["is_partial"],
        matched=found.matched if found.total or not row["total"] else matched,
    )


def build_unavailable(error: BaseException) -> DatabaseUnavailableError:
    """Return the error for a failed read; counts and logs the failure."""
    READS_FAILED.inc()
    log.warning("read failed: Postgres is unavailable or rejects it", **describe_failure(error))
    return DatabaseUnavailableError()


def describe_failure(error: BaseException) -> dict[str, str]:
    """Return the fields of a failed read's log line."""
    if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        return {"error": describe_error(error), "remedy": f"the schema is behind: {SCHEMA_REMEDY}"}
    return {"error": describe_error(error)}
