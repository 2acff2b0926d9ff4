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
        """The caller's note, or None; raises TimeoutError, CredentialsOutdatedError or what the statement raised."""
        loop = asyncio.get_running_loop()
        read = NoteRead(caller, note_id, deadline, loop.create_future())
        self._waiting.append(read)
        if len(self._statements) < STATEMENTS_LIMIT:
            task = loop.create_task(self._send(), context=self._context.copy())
            self._statements.add(task)
            task.add_done_callback(self._statements.discard)
        async with asyncio.timeout_at(deadline):
            return await read.found

    def close(self) -> None:
        """Cancel the statements and the reads in progress."""
        for task in self._statements:
            task.cancel()
        for read in self._waiting:
            read.found.cancel()

    async def _send(self) -> None:
        """Send statements until no read waits."""
        while batch := self._take():
            try:
                _distribute(batch, await self._fetch(batch))
            except Exception as error:  # noqa: BLE001 - each of the reads raises it
                _fail(batch, error)
            except asyncio.CancelledError:
                for read in batch:
                    read.found.cancel()
                raise

    def _take(self) -> list[NoteRead]:
        """Remove the next statement's reads from the queue, without those that were given up."""
        batch: list[NoteRead] = []
        while self._waiting and len(batch) < READS_LIMIT:
            read = self._waiting.popleft()
            if not read.found.done():
                batch.append(read)
        return batch


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


def _fail(batch: Sequence[NoteRead], error: Exception) -> None:
    for read in batch:
        if not read.found.done():
            read.found.set_exception(error)
