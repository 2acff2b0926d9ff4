"""Clients that import notes, are interrupted, and repeat the import with its key as the client program does."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from gateway.api.transfer import CHUNK_LINES
from gateway.writes.submission import IMPORT_WAIT_SECONDS
from tests.faults.connection import PUBLISH_SECONDS, Connection
from tests.faults.history import INCOMPLETE, INTERRUPTED, Answer, Write, text_of, text_of_item

TRIES = 6
FEW_LINES, MANY_LINES = (2, 6), (CHUNK_LINES + 1, CHUNK_LINES + 10)
LONG_IMPORTS, INTERRUPTIONS = 0.05, 0.4
"""An import has several chunks, or is interrupted at first, once in this many."""
PAUSE_SECONDS = 0.05


async def import_some(connection: Connection) -> Write:
    """Imports notes, and repeats it until all of them are imported or the client gives up for now."""
    choose = connection.random
    write = Write(connection.owner.id, "import", None, connection.new_id(), connection.new_id())
    write.lines = choose.randint(*(MANY_LINES if choose.random() < LONG_IMPORTS else FEW_LINES))
    connection.history.writes.append(write)
    for attempt in range(TRIES):
        await send_import(connection, write, is_interrupted=not attempt and choose.random() < INTERRUPTIONS)
        if write.decided:
            break
        await asyncio.sleep(choose.uniform(0.1, 1.0))
    return write


async def send_import(connection: Connection, write: Write, *, is_interrupted: bool = False) -> Answer:
    """Sends the lines with their key; an interrupted client sends all but the last of them, and hangs up."""
    lines = [*lines_of(write)]
    chunks = -(-len(lines) // CHUNK_LINES)
    headers = {"Idempotency-Key": write.key or "", "Content-Type": "application/x-ndjson"}
    answer = await connection.ask(
        "POST",
        "/notes/import",
        chunks * (PUBLISH_SECONDS + IMPORT_WAIT_SECONDS),
        data=broken_off(lines) if is_interrupted else b"".join(lines),
        headers=headers,
        is_page=True,
    )
    if is_interrupted and not answer.status:
        answer.error = INTERRUPTED
    if answer.status == 200:
        answer.body = [json.loads(line) for line in answer.body.splitlines()]
        answer.code = None if is_complete(answer.body) else INCOMPLETE
    write.attempts.append(answer)
    return answer


def lines_of(write: Write) -> Iterator[bytes]:
    """The notes that the write imports, as NDJSON."""
    for index in range(write.lines):
        yield json.dumps(text_of(text_of_item(write.marker, index))).encode() + b"\n"


async def broken_off(lines: list[bytes]) -> AsyncIterator[bytes]:
    """All lines but the last; then the connection ends."""
    yield b"".join(lines[:-1])
    await asyncio.sleep(PAUSE_SECONDS)
    raise ConnectionAbortedError


def is_complete(answered: list[dict[str, Any]]) -> bool:
    """Whether an import's answer says that it is complete."""
    return bool(answered) and bool(answered[-1].get("end", {}).get("complete"))
