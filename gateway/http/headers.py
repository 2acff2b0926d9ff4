"""Adds the headers of every response, including errors: security, caching and request id.

A header set by the handler takes precedence. Sources: OWASP's cheat sheet on REST security, RFC 9111 and RFC 7240.
"""

from gateway.http.requests import Request
from gateway.http.responses import RawHeaders
from gateway.telemetry.request_ids import REQUEST_ID_HEADER

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
"""For all other responses."""


def add_defaults(own: RawHeaders, request: Request, request_id: bytes) -> RawHeaders:
    """Add the default headers that the response lacks; names are in lower case."""
    names = {name for name, _ in own}
    if names.isdisjoint(SECURITY_NAMES):  # nearly always: spares a look-up for each header
        headers = [*own, *SECURITY]
    else:
        headers = [*own, *(header for header in SECURITY if header[0] not in names)]
    headers.append((REQUEST_ID_HEADER, request_id))
    if is_https(request):
        headers += HTTPS_ONLY
    if b"cache-control" not in names:
        headers += REVALIDATED if b"etag" in names and request.method in {"GET", "HEAD"} else NOT_STORED
    return headers


def is_https(request: Request) -> bool:
    """Whether the client used https, according to ASGI or a proxy; a forged header affects only its sender."""
    return request.scope["scheme"] == "https" or request.headers_by_name.get(b"x-forwarded-proto") == b"https"
