"""Gathers reads of single notes as the publisher gathers writes: those that arrive during a statement share the next.

A statement costs ten times as much as one more note in it (docs/decisions/0029). There is no timer: a read that arrives
alone is sent alone, at once. A statement contains only reads that arrived before it was sent, so each sees all writes
that were answered before.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import TypeAlias

from asyncpg import Record

from gateway.caller import Caller
from gateway.reads.errors import CredentialsOutdatedError
from gateway.reads.results import Revision
from gateway.reads.statements import FIND_NOTES
from shared.connections import Connections
from shared.primary import Timeline

STATEMENTS_LIMIT = 2
"""Statements in progress: while Postgres works on one, the gateway handles the result of the other."""
READS_LIMIT = 100
"""Limit on the reads in a statement, so that none waits for many others."""
FoundRow: TypeAlias = tuple[str | None, int | None, Revision]
"""The note's JSON and version, both None if the caller has no such note, and the caller's revision."""


@dataclass(slots=True, eq=False)
class NoteRead:
    """A caller's read of a note."""

    caller: Caller
    note_id: int
    deadline: float
    """In the event loop's time."""
    found: "asyncio.Future[FoundRow]"


Fetch = Callable[[Sequence[NoteRead]], Awaitable[tuple[Timeline | None, Sequence[Record]]]]


class GatheredReads:
    """Finds notes; the SQL checks the credentials and the ownership of each caller."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._waiting: deque[NoteRead] = deque()
        """Reads that are not in a statement yet."""
        self._pending: deque[NoteRead] = deque()
        """Unanswered reads, in order; answered ones are removed only when they come first."""
        self._expiry: asyncio.TimerHandle | None = None
        """The timer for the first deadline: one for all reads, because a timer costs as much as a read."""
        self._statements: set[asyncio.Task[None]] = set()
        self._context = copy_context()
        """The context of the statements: a request's own would put its ids on the log lines of others."""

    async def read(self, caller: Caller, note_id: int, deadline: float) -> FoundRow:
        """Return the caller's note and revision.

        Raises TimeoutError at the deadline, which must not be earlier than that of a previous read;
        CredentialsOutdatedError; or the error of the statement.
        """
        loop = asyncio.get_running_loop()
        read = NoteRead(caller, note_id, deadline, loop.create_future())
        self._waiting.append(read)
        self._pending.append(read)
        if self._expiry is None:
            self._expiry = loop.call_at(deadline, self._expire)
        if len(self._statements) < STATEMENTS_LIMIT:
            task = loop.create_task(self._send(), context=self._context.copy())
            self._statements.add(task)
            task.add_done_callback(self._statements.discard)
        return await read.found

    def close(self) -> None:
        """Cancel the statements and the reads in progress."""
        for task in self._statements:
            task.cancel()
        for read in self._pending:
            read.found.cancel()
        if self._expiry:
            self._expiry.cancel()

    def _expire(self) -> None:
        """Fail the reads whose deadline has passed."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._forget_answered()
        while self._pending and self._pending[0].deadline <= now:
            self._pending.popleft().found.set_exception(TimeoutError())
            self._forget_answered()
        self._expiry = loop.call_at(self._pending[0].deadline, self._expire) if self._pending else None

    def _forget_answered(self) -> None:
        while self._pending and self._pending[0].found.done():
            self._pending.popleft()

    async def _send(self) -> None:
        """Send statements until no read waits."""
        while group := self._take():
            try:
                _distribute(group, *await self._fetch(group))
            except Exception as error:  # noqa: BLE001 - every read of the group raises it
                _fail(group, error)
            except asyncio.CancelledError:
                for read in group:
                    read.found.cancel()
                raise
            self._forget_answered()

    def _take(self) -> list[NoteRead]:
        """Remove the next statement's reads from the queue; drops those that were cancelled or have expired."""
        group: list[NoteRead] = []
        while self._waiting and len(group) < READS_LIMIT:
            read = self._waiting.popleft()
            if not read.found.done():
                group.append(read)
        return group


def _distribute(group: Sequence[NoteRead], timeline: Timeline | None, rows: Sequence[Record]) -> None:
    """Give each read its row; a read without a row has outdated credentials."""
    found: dict[int, FoundRow] = {
        place: (note, version, (timeline, revision)) for place, note, version, revision in rows
    }
    for place, read in enumerate(group, start=1):
        if read.found.done():  # expired or cancelled
            continue
        if place in found:
            read.found.set_result(found[place])
        else:
            read.found.set_exception(CredentialsOutdatedError())


def _fail(group: Sequence[NoteRead], error: Exception) -> None:
    for read in group:
        if not read.found.done():
            read.found.set_exception(error)


async def fetch_notes(connections: Connections, reads: Sequence[NoteRead]) -> tuple[Timeline | None, list[Record]]:
    """Return the server's timeline, and a row with its position for each read whose credentials are valid.

    The deadline is that of the last read: earlier ones expire by themselves.
    """
    async with asyncio.timeout_at(reads[-1].deadline), connections.acquire() as connection:
        rows = await FIND_NOTES.fetch(
            connection,
            owners=[read.caller.owner for read in reads],
            credentials_versions=[read.caller.credentials_version for read in reads],
            note_ids=[read.note_id for read in reads],
        )
        return connections.primary.timeline_of(connection), rows
