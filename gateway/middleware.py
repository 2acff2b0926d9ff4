"""What holds for every request before routing, as plain ASGI."""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import ProblemError


class UniformRequests:
    """Serves each path with and without its trailing slash, and HEAD wherever GET; the server drops HEAD's body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on in its plain form."""
        if scope["type"] == "http":
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
            if scope["method"] == "HEAD":
                scope["method"] = "GET"
        await self.app(scope, receive, send)


class LimitedHeaders:
    """Refuses a request whose headers are over the limit with 431: some of them travel with the command."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if (
            scope["type"] == "http"
            and sum(len(name) + len(value) for name, value in scope["headers"]) > self.limit_bytes
        ):
            detail = f"The headers are larger than {self.limit_bytes} bytes"
            too_large = ProblemError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", detail)
            await too_large.response()(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class LimitedBodies:
    """Refuses a request body over the limit with 413: at once where its length is declared, else while it comes."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with a body that cannot exceed the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if int(Headers(scope=scope).get("content-length", 0)) > self.limit_bytes:
            await self.too_large.response()(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit_bytes:
                raise self.too_large
            return message

        await self.app(scope, limited, send)

    @property
    def too_large(self) -> ProblemError:
        """413."""
        detail = f"The body is larger than {self.limit_bytes} bytes"
        return ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", detail)
