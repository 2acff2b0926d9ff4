"""Exports and imports of notes as NDJSON streams, in constant memory for any number of notes."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from gateway.api.note_bodies import NoteBodies
from gateway.http.idempotency import IDEMPOTENCY_KEY
from gateway.http.lines import NDJSON, Line
from gateway.http.openapi import describe_response
from gateway.http.operations import Operation, Operations
from gateway.http.parameters import Integer64, Parameters
from gateway.http.requests import OpenApi, Request
from gateway.http.responses import Response, start_stream
from gateway.problems import (
    BODY_TOO_LARGE,
    DISCARDED,
    IDEMPOTENCY_KEY_REUSED,
    IDEMPOTENCY_KEY_SPENT,
    OVERLOADED,
    ProblemError,
)
from gateway.reads.exports import EXPORT_SECONDS
from gateway.resources import Gateway
from gateway.settings import GatewaySettings
from shared.contracts import CreateItem, NoteItems, Scope, print_time

AUTHENTICATION_SECONDS = 10.0
"""How often the caller is authenticated again while notes are transferred."""
CHUNK_LINES = 500
CHUNK_BYTES = 512 * 1024
"""Limits on the lines of one command. If they change, imports that an older gateway began cannot be repeated."""
DISCARD_SECONDS = 60.0
"""How long the remaining lines are read after an import has ended early."""
PINNED_PROBLEMS = (DISCARDED, IDEMPOTENCY_KEY_REUSED, IDEMPOTENCY_KEY_SPENT)
"""Permanent rejections of a chunk under its key; the import continues with the next chunk."""
IGNORED_LINES = ({"export"}, {"end"})
"""The members of the first and the last line of an export."""


class ExportQuery(BaseModel, extra="forbid", use_attribute_docstrings=True):
    """The query parameters of an export."""

    after_id: Integer64 = 0
    """Only notes with greater ids; to continue an interrupted export, the id of its last note"""


EXPORT_QUERY = Parameters(ExportQuery, "query")
exports: Operations[Gateway] = Operations("notes")


def _describe_stream(description: str, lines: str) -> dict[int, OpenApi]:
    content = {NDJSON: {"schema": {"type": "string", "description": lines}}}
    return {200: describe_response(description, content=content)}


@exports.add(
    "GET",
    "/notes/export",
    requires=Scope.READ,
    inputs=(EXPORT_QUERY,),
    media_type=NDJSON,
    responses=_describe_stream(
        "All notes, from one consistent snapshot",
        "First `export` with `revision`, `time` and `after_id`, then the notes by id, then `end` with `complete`, "
        "`notes`, `last_id` and, if the export ended early, possibly `problem`. Without `end` the export was cut off.",
    ),
    problems=(OVERLOADED,),
)
async def export_notes(gateway: Gateway, request: Request) -> Response:
    """Streams all notes, one per line, ordered by id."""
    return await start_stream(_export(gateway, request), NDJSON)


async def _export(gateway: Gateway, request: Request) -> AsyncGenerator[bytes]:
    last_id: int | None = request[EXPORT_QUERY].after_id
    async with gateway.exports.open(request.caller, request[EXPORT_QUERY].after_id) as export:
        yield b""
        start = {"revision": export.revision, "time": print_time(export.time), "after_id": last_id}
        yield print_line({"export": start})
        guard = TransferGuard(gateway, request, EXPORT_SECONDS)
        count = 0
        is_complete = False
        problem: dict[str, object] = {}
        try:
            while not is_complete and await guard.may_continue():
                rows = await export.fetch()
                is_complete = not rows
                if rows:
                    count += len(rows)
                    last_id = rows[-1]["id"]
                    yield "".join(f"{row['note']}\n" for row in rows).encode()
        except ProblemError as error:
            problem = describe_problem(error)
        yield print_line({"end": {"complete": is_complete, "notes": count, "last_id": last_id, **problem}})


class TransferGuard:
    """Checks that a long request may continue: valid credentials, time left, and a gateway that is not stopping."""

    def __init__(self, gateway: Gateway, request: Request, seconds: float) -> None:
        self._gateway = gateway
        self._authorization = request.headers_by_name.get(b"authorization")
        self._now = asyncio.get_running_loop().time
        self._ends_at = self._now() + seconds
        self._authenticated_at = self._now()

    async def may_continue(self) -> bool:
        """Return whether the request may continue; raises ProblemError if the credentials are no longer valid."""
        if self._now() - self._authenticated_at > AUTHENTICATION_SECONDS:
            self._authenticated_at = self._now()
            await self._gateway.authentication.authenticate_again(self._authorization)
        return self._now() < self._ends_at and not self._gateway.replies.draining


def build_transfer_operations(settings: GatewaySettings) -> list[Operation[Gateway]]:
    """Return the operations that export and import notes."""
    bodies = NoteBodies(settings)
    imports: Operations[Gateway] = Operations("notes")

    @imports.add(
        "POST",
        "/notes/import",
        requires=Scope.WRITE,
        inputs=(bodies.lines, IDEMPOTENCY_KEY),
        media_type=NDJSON,
        responses=_describe_stream(
            "The results, as the import proceeds",
            "A line for each chunk, with the numbers of its first and last `lines` and the number `imported` or the "
            "`problem`; one for each bad `line`, with its `problem`; and `end` with `complete`, `imported`, `rejected` "
            "and, if the import ended early, possibly `problem`.",
        ),
        problems=(OVERLOADED,),
    )
    async def import_notes(gateway: Gateway, request: Request) -> Response:
        """Creates a note for each line of the body; with a key, an interrupted import can be repeated safely."""
        return await start_stream(Import(gateway, request, bodies).run(), NDJSON)

    return [*exports, *imports]


class Import:
    """One import, from its lines to the lines of its response."""

    def __init__(self, gateway: Gateway, request: Request, bodies: NoteBodies) -> None:
        self._gateway = gateway
        self._request = request
        self._bodies = bodies
        self._imported = 0
        self._rejected = 0
        self._has_arrived = False
        """Whether the whole body has arrived."""
        self._is_complete = False

    async def run(self) -> AsyncGenerator[bytes]:
        """Yield an empty part, then the lines of the response; raises ShareExhaustedError before the first."""
        problem: dict[str, object] = {}
        with self._gateway.import_permits.permit_at_once(self._request.caller.owner):
            yield b""
            try:
                async for line in self._import_all():
                    yield line
            except ProblemError as error:
                problem = describe_problem(error)
            except ClientDisconnect:
                return
        end = {"complete": self._is_complete, "imported": self._imported, "rejected": self._rejected}
        yield print_line({"end": end | problem})
        # Most clients read no response before they have sent everything, and lose it if the connection is closed.
        with suppress(TimeoutError, ProblemError, ClientDisconnect):
            async with asyncio.timeout(DISCARD_SECONDS):
                async for _ in self._request[self._bodies.lines]:
                    pass

    async def _import_all(self) -> AsyncIterator[bytes]:
        """Yield the results until there are no more lines, or a chunk is not imported."""
        guard = TransferGuard(self._gateway, self._request, float("inf"))
        async for chunk in cut_chunks(self._iter_parts(guard)):
            if not await guard.may_continue():
                return
            items, results = await self._parse(chunk)
            for result in results:
                yield result
            if items:
                members, is_over = await self._import_chunk(chunk, items)
                yield print_line({"lines": [chunk[0].number, chunk[-1].number], **members})
                if is_over:
                    return
        self._is_complete = self._has_arrived

    async def _iter_parts(self, guard: "TransferGuard") -> AsyncIterator[Iterator[Line]]:
        """Yield the lines of each part of the body while the import may continue, since a line may never end."""
        async for part in self._request[self._bodies.lines]:
            if not await guard.may_continue():
                return
            yield part
        self._has_arrived = True

    async def _parse(self, chunk: Sequence[Line]) -> tuple[list[CreateItem], list[bytes]]:
        """Return the notes of the chunk, and the results of its bad lines."""
        items: list[CreateItem] = []
        results: list[bytes] = []
        for line in chunk:
            try:
                item = self._parse_line(line)
            except ProblemError as error:
                item = None
                self._rejected += 1
                results.append(print_line({"line": line.number} | describe_problem(error)))
            if item:
                items.append(item)
            else:  # a bad line takes a hundred times as long as a note
                await asyncio.sleep(0)
        return items, results

    def _parse_line(self, line: Line) -> CreateItem | None:
        """Return the note in the line; None if the line is empty or belongs to the frame of an export."""
        limit = self._bodies.lines.line_limit_bytes
        if line.size > limit:
            raise ProblemError(BODY_TOO_LARGE, f"The line is larger than {limit} bytes")
        if not line.text.strip():
            return None
        try:
            return self._bodies.imported_note.parse(line.text).to_item()
        except ProblemError:
            if not is_frame(line.text):
                raise
        return None

    async def _import_chunk(self, chunk: Sequence[Line], items: list[CreateItem]) -> tuple[dict[str, Any], bool]:
        """Return the result of the chunk, and whether it ends the import."""
        key = self._request[IDEMPOTENCY_KEY]
        notes = NoteItems.model_construct(items=tuple(items))
        try:
            url = await self._gateway.submission.import_notes(self._request.caller, notes, chunk[0].number, key)
        except ProblemError as error:
            is_pinned = error.kind in PINNED_PROBLEMS
            self._rejected += len(items) if is_pinned else 0
            return describe_problem(error), not is_pinned
        if url:
            return {"command": url}, True
        self._imported += len(items)
        return {"imported": len(items)}, False


async def cut_chunks(parts: AsyncIterator[Iterator[Line]]) -> AsyncIterator[Sequence[Line]]:
    """Yield the lines in chunks that depend on the lines alone, so they have the same keys in every repetition."""
    chunk: list[Line] = []
    size = 0
    async for part in parts:
        for line in part:
            if chunk and size + line.size > CHUNK_BYTES:
                yield chunk
                chunk = []
                size = 0
            chunk.append(line)
            size += line.size
            if len(chunk) == CHUNK_LINES:
                yield chunk
                chunk = []
                size = 0
    if chunk:
        yield chunk


def is_frame(text: bytes) -> bool:
    """Whether a line is the first or the last one of an export."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and set(value) in IGNORED_LINES


def describe_problem(error: ProblemError) -> dict[str, object]:
    """Return the problem as a member of a line."""
    return {"problem": error.problem.model_dump(exclude_none=True)}


def print_line(members: dict[str, object]) -> bytes:
    """Return a line of NDJSON."""
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
