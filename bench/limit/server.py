"""uvicorn's own limit: an ASGI application without a framework, which answers a fixed note."""

from starlette.types import Receive, Scope, Send

from bench.limit.framework import NOTE

HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(NOTE))]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Read nothing."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    status = 201 if scope["method"] == "POST" else 200
    await send({"type": "http.response.start", "status": status, "headers": HEADERS})
    await send({"type": "http.response.body", "body": NOTE})
