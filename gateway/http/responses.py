"""The response that a handler returns; the front adds the headers that every response has."""

import json
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from gateway.problems import ProblemError

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
RawHeaders = list[tuple[bytes, bytes]]
_BREAK = re.compile(r"[\r\n\0]")
_WITHOUT_LENGTH = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


@dataclass(slots=True)
class Response:
    """A response, with the headers specific to it."""

    body: str | bytes = b""
    status: int = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str = JSON
    stream: AsyncGenerator[bytes] | None = None
    """The parts of a body of unknown length, instead of `body`; cancelled when the client disconnects."""

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers, including the body's media type."""
        return {**self.headers, "Content-Type": self.media_type} if self.body else self.headers

    def encode(self) -> tuple[RawHeaders, bytes]:
        """Return the headers and the body for ASGI; a character that cannot be encoded becomes `?`.

        Raises ValueError for a header with a line break, which could inject another header.
        """
        if broken := [name for name, value in self.headers.items() if _BREAK.search(value)]:
            raise ValueError(f"line breaks in the headers {', '.join(broken)}")
        body = self.body.encode(errors="replace") if isinstance(self.body, str) else self.body
        headers = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in self.headers.items()]
        if body or self.stream:
            headers.append((b"content-type", self.media_type.encode()))
        if self.status not in _WITHOUT_LENGTH and not self.stream:
            headers.append((b"content-length", b"%d" % len(body)))
        return headers, body


async def start_stream(
    stream: AsyncGenerator[bytes], media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response once the stream has yielded its first part, an empty one.

    A problem before that is answered like any other. A stream that has started also ends properly if it is not read.
    """
    await anext(stream)
    return Response(headers=dict(headers or {}), media_type=media_type, stream=stream)


def render(error: ProblemError) -> Response:
    """Return the response with a problem."""
    body = json.dumps(error.problem.model_dump(exclude_none=True), ensure_ascii=False, separators=(",", ":"))
    return Response(body, error.kind.status, dict(error.headers), PROBLEM_JSON)
