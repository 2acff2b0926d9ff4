"""Request bodies of any size that are read line by line (NDJSON), with one line at a time in memory."""

import sys
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from gateway.http.media_types import build_media_type_problem, parse_media_type, reject_encoded_body
from gateway.http.requests import OpenApi, Request
from gateway.problems import REQUEST_TIMEOUT, UNSUPPORTED_MEDIA_TYPE

NDJSON = "application/x-ndjson"
UNLIMITED = sys.maxsize
"""The limit on the size of such a body."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a body, without its end."""

    number: int
    """From 1."""
    text: bytes
    """Truncated beyond the limit."""
    size: int
    """The size of the whole line in bytes."""


class Lines:
    """Reads a body as lines, which arrive while the response is sent."""

    problems = (REQUEST_TIMEOUT, UNSUPPORTED_MEDIA_TYPE)
    limit_bytes = UNLIMITED

    def __init__(self, description: str, example: str, line_limit_bytes: int) -> None:
        self._description = description
        self._example = example
        self.line_limit_bytes = line_limit_bytes
        """Of a longer line, only one byte more than this is kept."""

    async def read(self, request: Request) -> AsyncGenerator[Iterator[Line]]:
        """Return the lines that end in each part of the body, possibly none; take them before the next part.

        Raises ProblemError 408 or 415, and while the parts arrive 408 or ClientDisconnect.

        Reads the first part of the body, so that a client that waits for 100 (Continue) gets it before the response.
        """
        reject_encoded_body(request)
        if parse_media_type(request) != NDJSON:
            raise build_media_type_problem(f"Send the body as {NDJSON}")
        part, has_more = await request.receive_part()
        return self._iter_lines(request, part, has_more=has_more)

    async def _iter_lines(self, request: Request, part: bytes, *, has_more: bool) -> AsyncGenerator[Iterator[Line]]:
        splitter = LineSplitter(self.line_limit_bytes)
        yield splitter.split(part)
        while has_more:
            part, has_more = await request.receive_part()
            yield splitter.split(part)
        yield splitter.finish()

    @property
    def openapi(self) -> OpenApi:
        """The request body."""
        schema = {"type": "string", "description": self._description, "examples": [self._example]}
        return {"requestBody": {"required": True, "content": {NDJSON: {"schema": schema}}}}


class LineSplitter:
    """Splits text that arrives in parts into lines."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._number = 0
        self._text = bytearray()
        self._size = 0

    def split(self, part: bytes) -> Iterator[Line]:
        """Yield the lines that end in this part."""
        *ends, rest = part.split(b"\n")
        for end in ends:
            self._append(end)
            yield self._take()
        self._append(rest)

    def finish(self) -> Iterator[Line]:
        """Yield the last line, if no line feed ended it."""
        if self._size:
            yield self._take()

    def _append(self, text: bytes) -> None:
        self._size += len(text)
        self._text += text[: max(0, self._limit_bytes + 1 - len(self._text))]

    def _take(self) -> Line:
        self._number += 1
        line = Line(self._number, bytes(self._text), self._size)
        self._text.clear()
        self._size = 0
        return line
