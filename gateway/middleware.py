"""What holds for every request before routing, as plain ASGI."""

import asyncio
import re
from collections.abc import Collection, Mapping
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import ProblemError

TARGET_LIMIT_BYTES = 8 * 1024
HEADERS_LIMIT_BYTES = 32 * 1024
HEADERS_LIMIT = 100
BODY_TIMEOUT_SECONDS = 30.0
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
PORT = re.compile(r":\d*$")


def route_path(scope: Scope) -> str:
    """The path without the `root_path`, whether or not the proxy has removed it."""
    path: str = scope["path"]
    rest = path.removeprefix(scope["root_path"])
    return rest if rest.startswith("/") else path or "/"


class UniformRequests:
    """Serves each path with and without the `root_path` and a trailing slash, and HEAD wherever GET.

    The server drops HEAD's body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on in its plain form."""
        if scope["type"] == "http":
            path = route_path(scope).removesuffix("/") or "/"
            scope = {**scope, "path": scope["root_path"] + path}
            if scope["method"] == "HEAD":
                scope["method"] = "GET"
        await self.app(scope, receive, send)


class LimitedHeads:
    """Refuses a request whose target is over its limit with 414, and whose headers are over theirs with 431."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] == "http" and (problem := head_problem(scope)):
            await problem.response()(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def head_problem(scope: Scope) -> ProblemError | None:
    """What is wrong with the size of a request's head; some of it travels with the command."""
    if len(scope["raw_path"]) + len(scope["query_string"]) > TARGET_LIMIT_BYTES:
        detail = f"Path and query are longer than {TARGET_LIMIT_BYTES} bytes"
        return ProblemError(HTTPStatus.REQUEST_URI_TOO_LONG, "uri_too_long", detail)
    headers = scope["headers"]
    if len(headers) > HEADERS_LIMIT or sum(len(name) + len(value) for name, value in headers) > HEADERS_LIMIT_BYTES:
        detail = f"The headers are more than {HEADERS_LIMIT} or larger than {HEADERS_LIMIT_BYTES} bytes"
        return ProblemError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", detail)
    return None


class KnownHosts:
    """Refuses with 421 what was asked of another host than this one.

    Where nobody signs in, a page from elsewhere could otherwise have its own host's name lead here (DNS rebinding), and
    would be taken for the user's own.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] == "http" and PORT.sub("", Headers(scope=scope).get("host", "").lower()) not in self.hosts:
            detail = f"Ask {' or '.join(self.hosts)}, or have INKWELL_TRUST_NETWORK say that strangers are kept out"
            problem = ProblemError(HTTPStatus.MISDIRECTED_REQUEST, "misdirected_request", detail)
            await problem.response()(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class LimitedBodies:
    """Refuses a request body over the limit with 413: at once where its length is declared, else while it comes.

    One that has not come in time is refused with 408.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int, exceptions: Mapping[str, int]) -> None:
        self.app = app
        self.limit_bytes = limit_bytes
        self.exceptions = exceptions
        """The limits of the paths that have others."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with a body that cannot exceed the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit_bytes = self.exceptions.get(route_path(scope), self.limit_bytes)
        if int(Headers(scope=scope).get("content-length", 0)) > limit_bytes:
            await too_large(limit_bytes).response()(scope, receive, send)
            return
        received, is_due = 0, True
        deadline = asyncio.get_running_loop().time() + BODY_TIMEOUT_SECONDS

        async def limited() -> Message:
            nonlocal received, is_due
            try:
                async with asyncio.timeout_at(deadline if is_due else None):
                    message = await receive()
            except TimeoutError:
                raise too_late() from None
            received += len(message.get("body", b""))
            is_due = message.get("more_body", False)
            if received > limit_bytes:
                raise too_large(limit_bytes)
            return message

        await self.app(scope, limited, send)


def too_large(limit_bytes: int) -> ProblemError:
    """413."""
    detail = f"The body is larger than {limit_bytes} bytes"
    return ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", detail)


def too_late() -> ProblemError:
    """408; the rest of the body would be in the way of the next request."""
    detail = f"The body has not arrived within {BODY_TIMEOUT_SECONDS:.0f} seconds"
    return ProblemError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", detail, headers={"Connection": "close"})
