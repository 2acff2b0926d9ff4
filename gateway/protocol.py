"""uvicorn's HTTP protocol with strict framing and bounds on what one connection may hold.

httptools parses. This decides how much it gets at once, what is refused, and when a connection ends. Each request gets
one answer, in the order of the requests. A connection is always in one of three states: it has a request in progress,
its keep-alive timer runs, or its client owes a request.
"""

import asyncio
import re
from http import HTTPStatus
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import ProblemError
from gateway.middleware import HEADERS_LIMIT_BYTES, TARGET_LIMIT_BYTES
from gateway.request_cycle import PiecewiseFlow, RequestCycle, bad_request, problem_of, refusal, untaken_bytes
from gateway.settings import GatewaySettings

HEAD_LIMIT_BYTES = 2 * (TARGET_LIMIT_BYTES + HEADERS_LIMIT_BYTES)
"""More than what the application refuses by itself, with the separators."""
FRAMING_LIMIT_BYTES = 8 * 1024
"""Trailers, or the extensions of one chunk."""
HEAD_TIMEOUT_SECONDS = 10.0
PIECE_BYTES = 1024
"""Parsed at once, unless it is known to be body: some dozens of the shortest requests."""
PIPELINE_LIMIT = 8
"""Requests that wait behind the one in progress before the connection is not read any more."""
WATCH_SECONDS = 1.0
VERSIONS = ("1.1", "1.0")
SINGULAR = frozenset((b"host", b"authorization", b"content-length", b"transfer-encoding"))
"""Headers that a request has at most once: of two, a proxy and the gateway may believe different ones."""
HOST = re.compile(rb"(?:[\w.~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*(?::[0-9]*)?|\[[0-9A-Fa-f:.]+\](?::[0-9]*)?", re.ASCII)


class BoundedProtocol(HttpToolsProtocol):
    """Serves one connection."""

    send_timeout_seconds = 30.0

    cycle: RequestCycle
    flow: PiecewiseFlow
    _unparsed = b""
    _is_over = False
    """Whether nothing more is parsed: the connection closes after the responses that it owes."""
    _is_shutting_down = False
    _is_in_head = False
    _is_in_body = False
    _body_left = 0
    """Bytes of the body still to come, if its length was declared."""
    _seen: set[bytes]
    """The headers that a request has at most once and this one has."""
    _has_progressed = False
    """Whether the piece in hand ended a head or a chunk, or had a part of a body."""
    _unproductive_bytes = 0
    """Bytes parsed since the last progress."""
    _upgrade_offered = False
    _owing_since: float | None = None
    _watch: asyncio.TimerHandle | None = None
    _untaken_bytes = 0
    _last_taken = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start to wait for the first request."""
        super().connection_made(transport)
        self.flow = PiecewiseFlow(transport, self._parse)
        self._last_taken = self.loop.time()
        self._watch = self.loop.call_later(WATCH_SECONDS, self._check_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the connection."""
        if self._watch:
            self._watch.cancel()
        self._unset_keepalive_if_required()
        self._is_over, self._unparsed = True, b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, or keep it until there is room for it."""
        if self._is_over:
            return
        self._unparsed += data
        self._parse()

    def shutdown(self) -> None:
        """Close after the requests in progress; those that were not parsed yet are not started."""
        self._is_shutting_down = True
        super().shutdown()

    def _parse(self) -> None:
        """Parse piece by piece until enough requests wait."""
        if self._is_over or self.transport.is_closing():
            return
        if self._unparsed:
            self._unset_keepalive_if_required()
        while self._unparsed and not self._is_full():
            size = max(PIECE_BYTES, self._body_left)
            piece, self._unparsed = self._unparsed[:size], self._unparsed[size:]
            self._has_progressed = False
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as offer:
                self._decline_upgrade(piece[offer.args[0] :])
            except httptools.HttpParserError as error:
                self._refuse(problem_of(error))
            else:
                self._limit_framing(len(piece))
        self._balance()

    def _balance(self) -> None:
        """Read on only where there is room, or to notice that the client closes."""
        if self._is_full() and not self._is_over:
            self.flow.pause_reading()
        else:
            self.flow.resume_transport()

    def _is_answering(self) -> bool:
        cycle: RequestCycle | None = self.cycle  # none before the first request
        return cycle is not None and not cycle.response_complete

    def _owes_a_request(self) -> bool:
        """Whether the client has to send the rest of a request, or its first one."""
        is_idle = self.timeout_keep_alive_task and not self._is_in_head and not self._is_in_body
        return not self._is_answering() and not is_idle

    def _is_full(self) -> bool:
        """Whether what was parsed has to be answered or taken first."""
        if self._is_over or len(self.pipeline) >= PIPELINE_LIMIT:
            return True
        if self._is_shutting_down and not self._is_in_body:
            return True
        return self._is_answering() and len(self.cycle.body) > HIGH_WATER_LIMIT

    def _limit_framing(self, parsed_bytes: int) -> None:
        """Refuse a head, a trailer or a chunk's extension that is too long, before its end is known."""
        self._unproductive_bytes = 0 if self._has_progressed else self._unproductive_bytes + parsed_bytes
        limit = FRAMING_LIMIT_BYTES if self._is_in_body else HEAD_LIMIT_BYTES
        if self._unproductive_bytes > limit:
            part = "trailers or chunk extensions are" if self._is_in_body else "head is"
            detail = f"The request's {part} larger than {limit} bytes"
            self._refuse(ProblemError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", detail))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Parse the request anew without its offer (RFC 9110 §7.8): llhttp stops after a head that has one."""
        self._upgrade_offered, self._unproductive_bytes = False, 0
        head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = [option for option in value.split(b",") if option.strip().lower() != b"upgrade"]
                head.append(b"connection:" + b",".join(options))
            elif name != b"upgrade":
                head.append(name + b":" + value)
        self._unparsed = b"\r\n".join((*head, b"", rest)) + self._unparsed
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _refuse(self, problem: ProblemError) -> None:
        """Answer the request in hand with the problem, after the requests before it, and parse no further."""
        self._is_over, self._unparsed = True, b""
        if not self._is_in_body:
            self.on_message_begin()  # what was read of the head does not count
            self.scope["method"], self.scope["path"], self.scope["query_string"] = "GET", "", b""
            self._start(self._new_cycle(keep_alive=False), refusal(problem))
        elif self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.fail(problem)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._is_in_head = True
        self._seen = set()
        self._body_left = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header without the white space around its value; a trailer has no effect."""
        name, value = name.lower(), value.rstrip(b" \t")
        if self._is_in_body:
            if name == b"connection":
                self.cycle.keep_alive = False  # llhttp may take what follows for none of its business
            return
        if name in SINGULAR:
            self._check_singular(name, value)
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def _check_singular(self, name: bytes, value: bytes) -> None:
        if name in self._seen:
            raise bad_request(f"More than one {name.decode()} header")
        self._seen.add(name)
        if name == b"host" and not HOST.fullmatch(value):
            raise bad_request("The host header is not a host")
        if name == b"content-length":
            self._body_left = int(value)
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            raise bad_request("The one transfer coding here is chunked")

    def on_headers_complete(self) -> None:
        """Start the request, or queue it behind those before it."""
        self._has_progressed = True
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if version not in VERSIONS or method == b"CONNECT":
            raise bad_request("Send HTTP/1.1 or HTTP/1.0, and not CONNECT")
        if version == "1.1" and b"host" not in self._seen:
            raise bad_request("HTTP/1.1 demands a host header")
        if version == "1.0" and b"transfer-encoding" in self._seen:
            raise bad_request("HTTP/1.0 has no transfer codings")
        if self.parser.should_upgrade():
            self._upgrade_offered = True
            return
        url = httptools.parse_url(self.url)
        if not url.path or url.fragment is not None:
            raise bad_request("The request target is not a path with or without a query")
        path = url.path.decode("ascii")
        if not path.startswith(f"{self.root_path}/"):  # the proxy has removed it
            path = self.root_path + path
        self.scope["http_version"] = version
        self.scope["method"] = method.decode("ascii")
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"] = path.encode()
        self.scope["query_string"] = url.query or b""
        self._is_in_head, self._is_in_body = False, True
        keep_alive = version == "1.1" and self.parser.should_keep_alive()
        self._start(self._new_cycle(keep_alive=keep_alive), self.app)

    def _new_cycle(self, *, keep_alive: bool) -> RequestCycle:
        return RequestCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )

    def _start(self, cycle: RequestCycle, app: ASGI3Application) -> None:
        is_free = not self._is_answering()
        self.cycle = cycle
        if is_free:
            self._start_asgi_task(cycle, app)
        else:
            self.pipeline.appendleft((cycle, app))

    def on_body(self, body: bytes) -> None:
        """Hand a part of the body to the request."""
        self._has_progressed = True
        self._body_left -= len(body)
        if not self.cycle.response_complete:
            self.cycle.body += body
            self.cycle.message_event.set()

    def on_chunk_complete(self) -> None:
        """Note that a chunk has ended."""
        self._has_progressed = True

    def on_message_complete(self) -> None:
        """End the request."""
        self._has_progressed = True
        if self._upgrade_offered:
            return
        self._is_in_body = False
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()
        else:  # answered before its body had come
            self._keep_alive()

    def _keep_alive(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _check_progress(self) -> None:
        """Close the connection if its client owes a request, or takes nothing of what was sent, for too long."""
        self._watch = self.loop.call_later(WATCH_SECONDS, self._check_progress)
        now = self.loop.time()
        if not self._owes_a_request():
            self._owing_since = None
        elif self._owing_since is None:
            self._owing_since = now
        elif now - self._owing_since > HEAD_TIMEOUT_SECONDS:
            self.shutdown()
        is_stuck = self.flow.write_paused or self.transport.is_closing()
        untaken = untaken_bytes(self.transport) if is_stuck else 0
        if untaken == 0 or untaken < self._untaken_bytes:
            self._last_taken = now
        elif now - self._last_taken > self.send_timeout_seconds:
            self.transport.abort()
        self._untaken_bytes = untaken


def protocol_for(settings: GatewaySettings) -> type[BoundedProtocol]:
    """The protocol with the limits that the settings name."""
    return type("ConfiguredProtocol", (BoundedProtocol,), {"send_timeout_seconds": settings.send_timeout_seconds})
