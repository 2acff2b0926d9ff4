"""Adds the headers of every answer, including errors: security, caching, request id and, if configured, CORS.

A header set by the handler takes precedence. Sources: OWASP's cheat sheet on REST security, RFC 9111 and RFC 7240.
"""

from collections.abc import Collection
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from gateway.http.answers import Answer, RawHeaders, render
from gateway.http.openapi import HEADER_DESCRIPTIONS
from gateway.http.requests import Request
from gateway.http.routes import METHODS
from gateway.problems import BAD_REQUEST, HEADERS_TOO_LARGE, ProblemError
from gateway.telemetry.request_ids import HEADER

FixedHeaders = tuple[tuple[bytes, bytes], ...]

SECURITY: FixedHeaders = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
SECURITY_NAMES = frozenset(name for name, _ in SECURITY)
HTTPS_ONLY: FixedHeaders = ((b"strict-transport-security", b"max-age=31536000"),)
REVALIDATED: FixedHeaders = ((b"cache-control", b"private, no-cache"), (b"vary", b"Authorization"))
"""For a read with an entity tag: the client may store it, and must revalidate it."""
NOT_STORED: FixedHeaders = ((b"cache-control", b"no-store"), (b"vary", b"Authorization, Prefer"))
"""For all other answers."""

REQUESTED_HEADERS_LIMIT_CHARACTERS = 2048
"""Limit on `Access-Control-Request-Headers`, which the answer echoes: proxies limit response headers."""


def add_defaults(own: RawHeaders, request: Request, request_id: bytes) -> RawHeaders:
    """Return an answer's headers, whose names are in lower case, and the defaults of those that it lacks."""
    names = {name for name, _ in own}
    if names.isdisjoint(SECURITY_NAMES):
        headers = [*own, *SECURITY]
    else:
        headers = [*own, *(header for header in SECURITY if header[0] not in names)]
    headers.append((HEADER, request_id))
    if is_https(request):
        headers += HTTPS_ONLY
    if b"cache-control" not in names:
        headers += REVALIDATED if b"etag" in names and request.method in {"GET", "HEAD"} else NOT_STORED
    return headers


def is_https(request: Request) -> bool:
    """Whether the client used https, according to ASGI or a proxy; a forged header affects only its sender."""
    return request.scope["scheme"] == "https" or request.headers_by_name.get(b"x-forwarded-proto") == b"https"


class CrossOriginPolicy(CORSMiddleware):
    """CORS: pages of the given origins may send any header; credentials are bearer tokens, never cookies.

    Starlette's middleware without an inner app: the front calls it to answer preflights and to add headers.
    """

    def __init__(self, origins: Collection[str]) -> None:
        super().__init__(
            _no_app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=HEADER_DESCRIPTIONS,
        )

    def is_preflight(self, request: Request) -> bool:
        """Whether the request asks for permission to send another one."""
        has_headers = {b"origin", b"access-control-request-method"} <= request.headers_by_name.keys()
        return has_headers and request.method == "OPTIONS"

    def answer_preflight(self, headers: Headers) -> Answer:
        """Return the answer to a preflight, a problem if it is rejected."""
        requested = headers.get("access-control-request-headers", "")
        if len(requested) > REQUESTED_HEADERS_LIMIT_CHARACTERS:
            detail = f"Access-Control-Request-Headers is longer than {REQUESTED_HEADERS_LIMIT_CHARACTERS} characters"
            raise ProblemError(HEADERS_TOO_LARGE, detail)
        response = self.preflight_response(headers)
        text = bytes(response.body).decode()
        answered = {name.title(): value for name, value in response.headers.items() if not name.startswith("content-")}
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            return render(ProblemError(BAD_REQUEST, text, headers=answered))
        if requested:
            answered["Access-Control-Allow-Headers"] = ", ".join(map(str.strip, requested.split(",")))
        return Answer(text, response.status_code, answered, "text/plain; charset=utf-8")


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotImplementedError
