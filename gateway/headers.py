"""The headers that every answer has, errors and unknown paths included: security, caching, its id and, if wanted, CORS.

A header that a route sets itself wins. Why these: OWASP's cheat sheet on REST security, RFC 9111 and RFC 7240.
"""

from collections.abc import Collection
from http import HTTPStatus

from fastapi import FastAPI, Response
from starlette.datastructures import Headers as RequestHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import ProblemError
from gateway.metrics import told_of
from gateway.openapi import HEADERS
from gateway.request_ids import HEADER, REQUEST, request_id_of
from shared.telemetry import IDS

Headers = tuple[tuple[bytes, bytes], ...]

SECURITY: Headers = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
SECURITY_NAMES = frozenset(name for name, _ in SECURITY)
HTTPS_ONLY: Headers = ((b"strict-transport-security", b"max-age=31536000"),)
REVALIDATED: Headers = ((b"cache-control", b"private, no-cache"), (b"vary", b"Authorization"))
"""Of a read that has an entity tag: its reader may keep it, and asks with the tag whether it still holds."""
NOT_STORED: Headers = ((b"cache-control", b"no-store"), (b"vary", b"Authorization, Prefer"))
"""Of everything else."""

REQUESTED_HEADERS_LIMIT_CHARACTERS = 2048
"""Limit on `Access-Control-Request-Headers`; the answer echoes it, and proxies limit response headers."""
ALLOWED_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def install_headers(app: FastAPI, cors_origins: Collection[str]) -> None:
    """Gives every answer its headers, also the 500 that is made outside of all the app's middleware."""
    build = app.build_middleware_stack

    def build_with_headers() -> ASGIApp:
        return DefaultHeaders(CrossOriginRequests(build(), cors_origins) if cors_origins else build())

    app.build_middleware_stack = build_with_headers  # type: ignore[method-assign]  # add_middleware stays inside of it


class DefaultHeaders:
    """Gives each request its id, and its answer the headers that the route has not set; tells the status."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        request_id = scope[REQUEST] = request_id_of(scope)
        IDS.set({"request_id": request_id.decode()})  # not those of the request before on the same connection

        async def send_with_defaults(message: Message) -> None:
            if message["type"] == "http.response.start":
                told_of(scope).status = str(message["status"])
                message["headers"] = with_defaults(message["headers"], scope)
            await send(message)

        await self.app(scope, receive, send_with_defaults)


def with_defaults(own: Collection[tuple[bytes, bytes]], scope: Scope) -> list[tuple[bytes, bytes]]:
    """An answer's own headers, which have small letters, and those of the defaults that are not among them."""
    names = {name for name, _ in own}
    if names.isdisjoint(SECURITY_NAMES):
        headers = [*own, *SECURITY]
    else:
        headers = [*own, *(header for header in SECURITY if header[0] not in names)]
    headers.append((HEADER, scope[REQUEST]))
    if came_over_https(scope):
        headers += HTTPS_ONLY
    if b"cache-control" not in names:
        headers += REVALIDATED if b"etag" in names and scope["method"] in {"GET", "HEAD"} else NOT_STORED
    return headers


def came_over_https(scope: Scope) -> bool:
    """Whether the client used https, as far as it or a proxy says; who lies about it deceives only himself."""
    return scope["scheme"] == "https" or (b"x-forwarded-proto", b"https") in scope["headers"]


class CrossOriginRequests(CORSMiddleware):
    """CORS: pages of the given origins may send any header; credentials are bearer tokens, never cookies."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=ALLOWED_METHODS,
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=HEADERS,
        )

    def preflight_response(self, request_headers: RequestHeaders) -> Response:
        """Answer a preflight; a rejection is a problem document."""
        response = super().preflight_response(request_headers)
        wanted = request_headers.get("access-control-request-headers", "")
        if len(wanted) > REQUESTED_HEADERS_LIMIT_CHARACTERS:
            detail = f"Access-Control-Request-Headers is longer than {REQUESTED_HEADERS_LIMIT_CHARACTERS} characters"
            return ProblemError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", detail).response()
        if wanted:
            response.headers["Access-Control-Allow-Headers"] = ", ".join(map(str.strip, wanted.split(",")))
        if response.status_code < HTTPStatus.BAD_REQUEST:
            return response
        problem = ProblemError(response.status_code, "bad_request", bytes(response.body).decode()).response()
        problem.headers.update({name: value for name, value in response.headers.items() if name not in problem.headers})
        return problem
