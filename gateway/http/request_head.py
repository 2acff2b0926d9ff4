"""The head of a request: its limits, and checks for anything that a proxy could interpret differently."""

import re

import httptools

from gateway.problems import BAD_REQUEST, HEADERS_TOO_LARGE, URI_TOO_LONG, ProblemError

TARGET_LIMIT_BYTES = 8 * 1024
"""Limit on path and query."""
HEADERS_LIMIT_BYTES = 32 * 1024
HEADERS_LIMIT = 100
"""Limit on the number of headers."""
HEAD_PROBLEM = "inkwell.head_problem"
"""The key in a scope's `state` of the problem with which the protocol rejects the request; the front answers it."""
VERSIONS = ("1.1", "1.0")
METHODS_OF_OTHERS = frozenset(
    b"SOURCE DESCRIBE ANNOUNCE SETUP PLAY PAUSE TEARDOWN GET_PARAMETER SET_PARAMETER REDIRECT RECORD FLUSH".split()
)
"""llhttp also parses ICE and RTSP, without saying so; an RTSP request whose method HTTP has too is not recognized."""
SINGULAR = frozenset((b"host", b"authorization", b"content-length", b"transfer-encoding"))
"""Headers that must not be repeated: a proxy and the gateway could each use a different one."""
HOST = re.compile(rb"(?:[\w.~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*(?::[0-9]*)?|\[[0-9A-Fa-f:.]+\](?::[0-9]*)?", re.ASCII)


class RequestHead:
    """Collects and checks the headers of one request."""

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._headers = headers
        self._bytes = 0
        self._seen: dict[bytes, bytes] = {}
        self.body_bytes = 0
        """The `Content-Length`, or 0."""
        self.expects_continue = False

    def add(self, name: bytes, value: bytes) -> None:
        """Add a header, whose name is in lower case; raises ProblemError 400."""
        if name in SINGULAR:
            self._check_singular(name, value)
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expects_continue = True
        if self._bytes <= HEADERS_LIMIT_BYTES and len(self._headers) <= HEADERS_LIMIT:  # above, it is 431
            self._bytes += len(name) + len(value)
            self._headers.append((name, value))

    def find_excess(self, path: bytes, query: bytes) -> ProblemError | None:
        """Return a 414 or 431 for a head over the limits, or None."""
        if len(path) + len(query) > TARGET_LIMIT_BYTES:
            return ProblemError(URI_TOO_LONG, f"Path and query are longer than {TARGET_LIMIT_BYTES} bytes")
        if self._bytes > HEADERS_LIMIT_BYTES or len(self._headers) > HEADERS_LIMIT:
            detail = (
                f"The request has more than {HEADERS_LIMIT} headers, or more than {HEADERS_LIMIT_BYTES} bytes of them"
            )
            return ProblemError(HEADERS_TOO_LARGE, detail)
        return None

    def check(self, method: bytes, version: str, target: bytes) -> httptools.parser.url_parser.URL:
        """Return the parts of the target; raises ProblemError 400."""
        if version not in VERSIONS or method == b"CONNECT" or method in METHODS_OF_OTHERS:
            raise build_bad_request("Use HTTP/1.1 or HTTP/1.0; CONNECT is not supported")
        if version == "1.1" and b"host" not in self._seen:
            raise build_bad_request("HTTP/1.1 requires a Host header")
        if version == "1.0" and b"transfer-encoding" in self._seen:
            raise build_bad_request("HTTP/1.0 has no transfer codings")
        url = httptools.parse_url(target)
        if not url.path or url.fragment is not None or (url.host and not self._is_for(url)):
            raise build_bad_request("The request target must be a path with an optional query, on the host in Host")
        return url

    def _check_singular(self, name: bytes, value: bytes) -> None:
        if name in self._seen:
            raise build_bad_request(f"More than one {name.decode()} header")
        self._seen[name] = value
        if name == b"host" and not HOST.fullmatch(value):
            raise build_bad_request("The Host header is invalid")
        if name == b"content-length":
            self.body_bytes = int(value)
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            raise build_bad_request("The only transfer coding supported is chunked")

    def _is_for(self, url: httptools.parser.url_parser.URL) -> bool:
        """Whether an absolute target has the host of the Host header."""
        host = re.sub(rb":[0-9]*$", b"", self._seen.get(b"host", b"")) if url.host else b""
        return url.schema in {b"http", b"https"} and url.host.lower() == host.strip(b"[]").lower()


def build_bad_request(detail: str) -> ProblemError:
    """Return a 400 for a malformed or unsupported HTTP request."""
    return ProblemError(BAD_REQUEST, detail)
