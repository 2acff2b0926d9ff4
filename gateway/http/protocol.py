"""uvicorn's HTTP protocol with strict framing and bounds on what one connection may hold.

httptools parses; this module decides how much it parses at once, which requests are rejected, and when a connection
closes. Each request gets one response, in the order of the requests. A connection is answering a request, idle, or
awaiting the rest of a request. One timer per connection watches it: one per request would cost more than parsing does.

It overrides internals of uvicorn, whose version uv.lock pins; tests/gateway/test_edge.py says what they must do.
"""

import asyncio
import re
from enum import Enum, auto
from typing import cast
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.http.request_cycle import (
    PiecewiseFlow,
    RequestCycle,
    ResponseTransport,
    build_parse_problem,
)
from gateway.http.request_head import (
    HEAD_PROBLEM,
    HEADERS_LIMIT_BYTES,
    TARGET_LIMIT_BYTES,
    RequestHead,
    build_bad_request,
)
from gateway.problems import HEADERS_TOO_LARGE, REQUEST_TIMEOUT, ProblemError
from gateway.settings import GatewaySettings

HEAD_LIMIT_BYTES = 2 * (TARGET_LIMIT_BYTES + HEADERS_LIMIT_BYTES)
"""A backstop for a head that never ends; `RequestHead.find_excess` checks a complete one (414, 431)."""
FRAMING_LIMIT_BYTES = 8 * 1024
"""Limit on the trailers, and on the extensions of a chunk."""
HEAD_TIMEOUT_SECONDS = 10.0
PIECE_BYTES = 1024
"""Parsed at once outside a body; a piece can contain a few dozen of the shortest requests."""
TURN_BYTES = 64 * 1024
"""Parsed before other connections have their turn: a chunk of one byte costs as much as one of a thousand."""
PIPELINE_LIMIT = 8
"""Requests queued behind the one in progress before the gateway stops reading from the connection."""
LINGER_SECONDS = 2.0
"""How long input is discarded after the last response: closing with unread input sends a reset that can destroy it."""
SHUTDOWN_BODY_SECONDS = 5.0
"""How long an incomplete body may still take when the gateway stops."""
WATCH_SECONDS = 1.0
ENCODED_SLASH = re.compile("%2F", re.IGNORECASE)
"""Kept encoded: a proxy's rules do not treat it as a separator of segments."""


class Part(Enum):
    """The part of a request that is being parsed."""

    NONE = auto()
    HEAD = auto()
    BODY = auto()


class BoundedProtocol(HttpToolsProtocol):
    """Serves one connection."""

    send_timeout_seconds = 30.0

    cycle: RequestCycle
    flow: PiecewiseFlow
    _outgoing: ResponseTransport
    _running: RequestCycle | None = None
    """The request being answered; `cycle` is the newest one."""
    _unparsed = b""
    _is_over = False
    """Whether parsing has ended; the connection closes after its pending responses."""
    _shutting_down_since: float | None = None
    _lingering_since: float | None = None
    _part = Part.NONE
    _body_left = 0
    """Remaining bytes of the body, if its length was declared."""
    _head: RequestHead
    _has_progressed = False
    """Whether the current piece completed a head or a chunk, or contained part of a body."""
    _unproductive_bytes = 0
    """Bytes parsed since the last progress."""
    _upgrade_offered = False
    _awaiting_since: float | None = None
    """When the watch first found the connection idle or awaiting the rest of a request."""
    _watch: asyncio.TimerHandle | None = None
    _turn: asyncio.Handle | None = None
    """The continuation of the parsing, after those of other connections."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start waiting for the first request."""
        super().connection_made(transport)
        self.flow = PiecewiseFlow(transport, self._parse)
        self._outgoing = ResponseTransport(transport, self._close)
        self._watch = self.loop.call_later(WATCH_SECONDS, self._check_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection's resources and wake its requests."""
        if self._watch:
            self._watch.cancel()
        self._end_turn()
        self._is_over = True
        self._unparsed = b""
        for cycle in filter(None, (self._running, *(waiting for waiting, _ in self.pipeline))):
            if not cycle.response_complete:
                cast("RequestCycle", cycle).disconnect()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, or buffer it until there is room."""
        if not self._is_over:
            self._unparsed += data
            if self._turn is None:
                self._parse()

    def shutdown(self) -> None:
        """Close after the requests that are already parsed; start no other."""
        self._shutting_down_since = self._shutting_down_since or self.loop.time()
        if self._lingering_since is None:
            super().shutdown()

    def on_response_complete(self) -> None:
        """Start the next request unless the connection is closing."""
        if self._lingering_since is not None or self.transport.is_closing():
            return
        self._awaiting_since = None
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def _close(self) -> None:
        """Close the connection; lingers first if the client may still be sending."""
        is_quiet = self._part is Part.NONE and not self._unparsed and not self.flow.read_paused
        self._is_over = True
        self._unparsed = b""
        self.pipeline.clear()
        if is_quiet or self.transport.is_closing():
            self.transport.close()
        elif self._lingering_since is None:
            self._lingering_since = self.loop.time()
            self.transport.write_eof()
            self.flow.resume_transport()

    def _parse(self) -> None:
        """Parse piece by piece until enough requests are queued, or it is the turn of other connections."""
        self._end_turn()
        if self._is_over or self.transport.is_closing():
            return
        left = TURN_BYTES
        while self._unparsed and not self._is_full() and left > 0:
            piece = self._take_piece()
            left -= len(piece)
            self._has_progressed = False
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as offer:
                self._decline_upgrade(piece[offer.args[0] :])  # from the first byte after the head
            except httptools.HttpParserError as error:
                has_method = not isinstance(error, httptools.HttpParserInvalidMethodError)
                self._reject(build_parse_problem(error), has_method=has_method)
            else:
                self._limit_framing(len(piece))
        if self._is_full() and not self._is_over:
            self.flow.pause_reading()
        elif self._unparsed and not self._is_over:  # the event loop would go on reading from this connection alone
            self.flow.pause_reading()
            self._turn = self.loop.call_soon(self._parse)
        else:  # also after the last request: only reading detects that the client disconnects
            self.flow.resume_transport()

    def _end_turn(self) -> None:
        if self._turn:
            self._turn.cancel()
            self._turn = None

    def _take_piece(self) -> bytes:
        """Remove the next piece from what is not parsed yet: the rest of a body, if its length is known."""
        size = max(PIECE_BYTES, self._body_left if self._part is Part.BODY else 0)
        piece = self._unparsed[:size]
        self._unparsed = self._unparsed[size:]
        return piece

    def _is_answering(self) -> bool:
        cycle: RequestCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _is_idle(self) -> bool:
        """Whether the connection has had a request, and no other has begun."""
        return self._running is not None and self._part is Part.NONE and not self._is_answering()

    def _is_full(self) -> bool:
        """Whether parsing must pause until requests are answered or bodies are read."""
        is_ending = self._shutting_down_since is not None and self._part is not Part.BODY
        if self._is_over or is_ending or len(self.pipeline) >= PIPELINE_LIMIT:
            return True
        return self._is_answering() and len(self.cycle.body) > HIGH_WATER_LIMIT

    def _limit_framing(self, parsed_bytes: int) -> None:
        """Reject a head, trailers or chunk extensions that are too long, before their end arrives."""
        self._unproductive_bytes = 0 if self._has_progressed else self._unproductive_bytes + parsed_bytes
        is_in_body = self._part is Part.BODY
        limit = FRAMING_LIMIT_BYTES if is_in_body else HEAD_LIMIT_BYTES
        if self._unproductive_bytes > limit:
            part = "trailers or chunk extensions are" if is_in_body else "head is"
            detail = f"The request's {part} larger than {limit} bytes"
            self._reject(ProblemError(HEADERS_TOO_LARGE, detail))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Parse the request again without `Upgrade`, which a server may ignore: llhttp stops after a head with it."""
        self._upgrade_offered = False
        self._unproductive_bytes = 0
        head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = [option for option in value.split(b",") if option.strip().lower() != b"upgrade"]
                head.append(b"connection:" + b",".join(options))
            elif name != b"upgrade":
                head.append(name + b":" + value)
        self._unparsed = b"\r\n".join((*head, b"", rest)) + self._unparsed
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn does: otherwise llhttp would reject what follows a request with `Connection: close`.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _reject(self, problem: ProblemError, *, has_method: bool = True) -> None:
        """Stop parsing, and answer the current request with the problem after those before it."""
        self._is_over = True
        self._unparsed = b""
        if self._part is Part.BODY and self.cycle.response_complete:
            self._close()
        elif self._part is Part.BODY:
            self.cycle.fail(problem)
        else:
            # Without a method of its own, the parser returns that of the request before.
            is_head = has_method and self._part is Part.HEAD and self.parser.get_method() == b"HEAD"
            if self._part is Part.NONE:
                self.on_message_begin()
            self.scope |= {"method": "HEAD" if is_head else "_OTHER", "path": "", "raw_path": b"", "query_string": b""}
            self.scope["state"][HEAD_PROBLEM] = problem
            self._start(self._new_cycle(keep_alive=False), self.app)

    def on_message_begin(self) -> None:
        """Reset the state for a new request."""
        super().on_message_begin()
        if self._is_idle():  # the time for this head begins now; that for the first one began with the connection
            self._awaiting_since = None
        self._part = Part.HEAD
        self._head = RequestHead(self.headers)
        self._body_left = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header, its value stripped of whitespace; trailers are ignored."""
        if self._part is Part.BODY:
            return
        name = name.lower()
        if name == b"transfer-encoding" and value.endswith(b"\t"):  # llhttp would refuse it after the request has begun
            raise build_bad_request("The Transfer-Encoding header ends with a tab")
        self._head.add(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Start the request, or queue it behind those before it."""
        self._has_progressed = True
        method = self.parser.get_method()
        version = self.parser.get_http_version()
        url = self._head.check(method, version, self.url)
        if self.parser.should_upgrade():
            if excess := self._head.find_excess(url.path, url.query or b""):
                raise excess  # parsing again, `_decline_upgrade` would not know the headers that were dropped
            self._upgrade_offered = True
            return
        self._body_left = self._head.body_bytes
        self.expect_100_continue = self._head.expects_continue and version == "1.1"
        path = url.path.decode("ascii")
        if not path.startswith(f"{self.root_path}/"):  # the proxy has removed the prefix
            path = self.root_path + path
        self.scope["http_version"] = version
        self.scope["method"] = method.decode("ascii")
        self.scope["path"] = "%2F".join(map(unquote, ENCODED_SLASH.split(path))) if "%" in path else path
        self.scope["raw_path"] = path.encode()
        self.scope["query_string"] = query = url.query or b""
        if excess := self._head.find_excess(self.scope["raw_path"], query):
            self.scope["state"][HEAD_PROBLEM] = excess
        self._part = Part.BODY
        keep_alive = version == "1.1" and self.parser.should_keep_alive()
        self._start(self._new_cycle(keep_alive=keep_alive), self.app)

    def _new_cycle(self, *, keep_alive: bool) -> RequestCycle:
        return RequestCycle(
            scope=self.scope,
            transport=self._outgoing,
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
        self._awaiting_since = None
        if is_free:
            self._start_asgi_task(cycle, app)
        else:
            self.pipeline.appendleft((cycle, app))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cast("RequestCycle", cycle)
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body to the request."""
        self._has_progressed = True
        self._body_left -= len(body)
        if not self.cycle.response_complete:
            self.cycle.body += body
            self.cycle.message_event.set()

    def on_chunk_complete(self) -> None:
        """Record that a chunk is complete."""
        self._has_progressed = True

    def on_message_complete(self) -> None:
        """Complete the request."""
        if self._upgrade_offered:
            return
        self._has_progressed = True
        self._part = Part.NONE
        self._awaiting_since = None
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()
        if not self.parser.should_keep_alive():  # also by a trailer; llhttp discards what follows
            self.cycle.keep_alive = False
            if self.cycle.response_complete and not self._is_over:
                self._close()

    def _check_progress(self) -> None:
        """Close the connection if it has been idle for too long, or the client sends or reads too slowly."""
        self._watch = self.loop.call_later(WATCH_SECONDS, self._check_progress)
        now = self.loop.time()
        self._close_lingering(now)
        self._close_idle(now)
        self._reject_unfinished_body(now)
        self._abort_stalled(now)

    def _close_lingering(self, now: float) -> None:
        """Close a connection that has lingered for long enough after its last response."""
        if self._lingering_since is not None and now - self._lingering_since > LINGER_SECONDS:
            self.transport.close()

    def _close_idle(self, now: float) -> None:
        """Close a connection without a request, or with one whose rest does not arrive in time."""
        limit = self.timeout_keep_alive if self._is_idle() else HEAD_TIMEOUT_SECONDS
        if self._is_answering():
            self._awaiting_since = None
        elif self._awaiting_since is None:
            self._awaiting_since = now
        elif now - self._awaiting_since > limit:
            self.shutdown()

    def _reject_unfinished_body(self, now: float) -> None:
        """Reject a request whose body is still incomplete some time after the gateway began to stop."""
        since = self._shutting_down_since
        is_late = since is not None and now - since > SHUTDOWN_BODY_SECONDS
        if is_late and self._part is Part.BODY and not self._is_over:
            self._reject(ProblemError(REQUEST_TIMEOUT, "The gateway is stopping"))

    def _abort_stalled(self, now: float) -> None:
        """Abort a connection whose client has read none of the response for too long."""
        is_streaming = self._running is not None and self._running.streaming is not None
        if not self.flow.write_paused and not is_streaming and not self.transport.is_closing():
            self._outgoing.note_flow(now)
        elif self._outgoing.seconds_stalled(now) > self.send_timeout_seconds:
            self.transport.abort()


def build_protocol(settings: GatewaySettings) -> type[BoundedProtocol]:
    """Return a protocol class with the timeouts of the settings, which uvicorn instantiates for each connection."""
    return type("ConfiguredProtocol", (BoundedProtocol,), {"send_timeout_seconds": settings.send_timeout_seconds})
