"""A request as passed to handlers: authenticated, and parsed as its operation declares."""

import asyncio
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.types import Receive, Scope

from gateway.caller import Caller
from gateway.problems import BODY_TOO_LARGE, REQUEST_TIMEOUT, ProblemError, ProblemType

BODY_TIMEOUT_SECONDS = 30.0
OpenApi = dict[str, Any]
"""A part of an OpenAPI document."""
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


def describe_header(name: str, description: str, schema: OpenApi, **members: object) -> OpenApi:
    """Return the description of a header as an operation's parameter."""
    return {"name": name, "in": "header", **members, "description": description, "schema": schema}


class Reader(Protocol[T_co]):
    """Reads, validates and documents one part of a request."""

    @property
    def problems(self) -> tuple[ProblemType, ...]:
        """The problems that `read` may raise."""

    @property
    def openapi(self) -> OpenApi:
        """The part as members of an OpenAPI operation."""

    async def read(self, request: "Request") -> T_co:
        """Return the value of the part; raises ProblemError."""


class Request(StarletteRequest):
    """A request, its caller and its parts; `request[NOTE_PATH]` is the value that this reader has read.

    Read a body with `body` or `receive_part`: Starlette's `stream` and `form` have neither a limit nor a timeout.
    """

    def __init__(self, scope: Scope, receive: Receive, path: str) -> None:
        super().__init__(scope, receive)
        self.path = path
        """The path without the `root_path` and a trailing slash."""
        self.headers_by_name: dict[bytes, bytes] = dict(scope["headers"])
        """By name in lower case, the last of a repeated one; a plain dict, because Starlette's `headers` are slow."""
        self.path_parameters: dict[str, str] = {}
        """The values of the parameters in the path."""
        self.caller: Caller
        """Unset if the operation is public, or exempts the request."""
        self.body_limit_bytes = 0
        self.parts: dict[Reader[Any], Any] = {}

    @property
    def url_path(self) -> str:
        """The path with the `root_path`, as clients know it."""
        return str(self.scope["root_path"]) + self.path

    @property
    def query(self) -> bytes:
        """The query string, still encoded."""
        return bytes(self.scope["query_string"])

    def join_header(self, name: bytes) -> str | None:
        """Return the values of a header with commas between them; None if the request lacks it."""
        if name not in self.headers_by_name:
            return None
        return ",".join(value.decode("latin-1") for each, value in self.scope["headers"] if each == name)

    def __getitem__(self, reader: Reader[T]) -> T:  # type: ignore[override]  # Starlette's returns members of the scope
        """Return the value of a part; raises KeyError unless the operation declares its reader."""
        part: T = self.parts[reader]
        return part

    def check_declared_length(self) -> None:
        """Raise ProblemError 413 if the `Content-Length` is over the limit."""
        if int(self.headers_by_name.get(b"content-length", 0)) > self.body_limit_bytes:
            raise self._build_too_large()

    async def body(self) -> bytes:
        """Return the body; raises ProblemError 408 or 413, or ClientDisconnect."""
        parts = list[bytes]()
        size = 0
        more_body = True
        try:
            async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
                while more_body:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more_body = message.get("more_body", False)
                    if size > self.body_limit_bytes:
                        raise self._build_too_large()
        except TimeoutError:
            detail = f"The body did not arrive within {BODY_TIMEOUT_SECONDS:.0f} seconds"
            raise ProblemError(REQUEST_TIMEOUT, detail, headers={"Connection": "close"}) from None
        return b"".join(parts)

    async def receive_part(self) -> tuple[bytes, bool]:
        """Return the next part of the body, and whether more follow.

        Raises ProblemError 408 if it does not arrive in time, or ClientDisconnect.
        """
        try:
            async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
                message = await self.receive()
        except TimeoutError:
            detail = f"No part of the body arrived for {BODY_TIMEOUT_SECONDS:.0f} seconds"
            raise ProblemError(REQUEST_TIMEOUT, detail, headers={"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        return message.get("body", b""), message.get("more_body", False)

    def _build_too_large(self) -> ProblemError:
        return ProblemError(BODY_TOO_LARGE, f"The body is larger than {self.body_limit_bytes} bytes")
