"""Batches reads of single notes as the publisher batches writes: those that arrive during a statement share the next.

A statement costs ten times what one more note in it costs. There is no timer: a read that arrives alone is sent alone,
at once. Every read of a statement arrived before it was sent, so a client that has seen its write reads it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import TypeAlias

from asyncpg import Record

from gateway.caller import Caller
from gateway.problems import ProblemError
from gateway.reads.errors import CredentialsOutdatedError

STATEMENTS_LIMIT = 2
"""Statements in progress: while Postgres works on one, the gateway handles the result of the other."""
READS_LIMIT = 100
"""Reads in a statement, so that none of them waits for many others."""
FoundNote: TypeAlias = tuple[str, int]
"""The note's JSON and its version."""


@dataclass(frozen=True, slots=True)
class NoteRead:
    """A caller's read of a note."""

    caller: Caller
    note_id: int
    deadline: float
    """By the event loop's clock."""
    found: "asyncio.Future[FoundNote | None]"


Fetch = Callable[[Sequence[NoteRead]], Awaitable[list[Record]]]


class GatheredReads:
    """Finds notes; the SQL checks the credentials and the ownership of each caller."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._waiting: deque[NoteRead] = deque()
        self._statements: set[asyncio.Task[None]] = set()
        self._context = copy_context()
        """Used instead of the first request's context, since a statement serves many requests."""

    async def find(self, caller: Caller, note_id: int, deadline: float) -> FoundNote | None:
        """Return the caller's note, or None; raises DatabaseUnavailableError or CredentialsOutdatedError."""
        loop = asyncio.get_running_loop()
        read = NoteRead(caller, note_id, deadline, loop.create_future())
        self._waiting.append(read)
        if len(self._statements) < STATEMENTS_LIMIT:
            task = loop.create_task(self._send(), context=self._context.copy())
            self._statements.add(task)
            task.add_done_callback(self._statements.discard)
        return await read.found

    def close(self) -> None:
        """Cancel the statements in progress."""
        for task in self._statements:
            task.cancel()

    async def _send(self) -> None:
        """Send statements until no read waits."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), READS_LIMIT))]
            try:
                rows = await self._fetch(batch)
            except BaseException as error:
                _fail(batch, error)
                if not isinstance(error, ProblemError):
                    raise
            else:
                _distribute(batch, rows)


def _distribute(batch: Sequence[NoteRead], rows: Sequence[Record]) -> None:
    """Give each read its row; a read without a row has outdated credentials."""
    found: dict[int, FoundNote | None] = {place: (note, version) if note else None for place, note, version in rows}
    for place, read in enumerate(batch, start=1):
        if read.found.done():  # cancelled: the client is gone
            continue
        if place in found:
            read.found.set_result(found[place])
        else:
            read.found.set_exception(CredentialsOutdatedError())


def _fail(batch: Sequence[NoteRead], error: BaseException) -> None:
    for read in batch:
        if isinstance(error, asyncio.CancelledError):
            read.found.cancel()
        elif not read.found.done():
            read.found.set_exception(error)
