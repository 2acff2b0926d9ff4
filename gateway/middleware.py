"""What holds for every request before routing, as plain ASGI."""

from starlette.types import ASGIApp, Receive, Scope, Send


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
