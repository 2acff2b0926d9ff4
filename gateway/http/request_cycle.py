"""One request and its response on a connection, and the flow control of both directions."""

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gateway.http.request_head import build_bad_request
from gateway.problems import ProblemError
from gateway.telemetry.metrics import BUGS

CLOSE = (b"connection", b"close")
CHUNKED = (b"transfer-encoding", b"chunked")
SLICE_BYTES = 64 * 1024
"""Written at once: more would fill the memory if the client does not read."""


class RequestCycle(RequestResponseCycle):
    """A request and its response."""

    transport: "ResponseTransport"
    _status: int
    _headers: list[tuple[bytes, bytes]]
    _failure: ProblemError | None = None
    _more_parts = True
    """Whether the application has more parts of the body."""
    _unsent: bytes | memoryview = b""
    """What is left to send of the current part."""
    streaming: asyncio.Task[object] | None = None
    """The task that is sending a streamed body."""

    def disconnect(self) -> None:
        """Record that the client has disconnected; wakes the request, and cancels a stream."""
        self.disconnected = True
        self.message_event.set()
        if self.streaming:
            self.streaming.cancel()

    def fail(self, problem: ProblemError) -> None:
        """Make `receive` raise the problem, and close the connection after the response."""
        self._failure = problem
        self.keep_alive = False
        self.message_event.set()

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next part of the body; raises the ProblemError given to `fail`."""
        message = await super().receive()
        if self._failure and not self.response_complete:
            raise self._failure
        return message

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Run the application; if it is cancelled, at the end of a drain, close the connection without a response.

        No status would be correct: it is unknown whether the request had its effect.
        """
        try:
            await app(self.scope, self.receive, self.send)
            if self._unsent:  # only now, so that a slow client does not count as a slow application
                await self._send_rest()
        except asyncio.CancelledError:
            self.disconnected = True
            self.transport.close()
        except Exception as error:  # an error of the front itself, or of a stream: it answers those of handlers
            BUGS.inc()
            if self.response_started:
                self.logger.error("bug: a response ends before it is complete; please report it", exc_info=error)
                self.transport.close()
            else:
                self.logger.error("bug: answering a request with 500; please report it", exc_info=error)
                await self.send_500_response()

    async def send(self, message: ASGISendEvent) -> None:
        """Send the head together with the first part of the body: each system call costs as much as a handler.

        The rest of a large part is sent as the client reads; that of a whole body, once the application has returned.
        """
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = [*self.default_headers, *message["headers"]]
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        self._more_parts = bool(message.get("more_body", False))
        if self.disconnected and self._more_parts and (task := asyncio.current_task()):
            task.cancel()  # `disconnect` could not: the client left before the stream began
        if self.disconnected or message["type"] != "http.response.body":
            return
        head = b"" if self.response_started else self._begin(is_streamed=self._more_parts)
        body = b"" if self.scope["method"] == "HEAD" else message["body"]
        if len(body) > SLICE_BYTES:
            self._unsent = memoryview(body)[SLICE_BYTES:]
            body = body[:SLICE_BYTES]
        self._write(head, body)
        if self._more_parts and self._unsent:
            await self._send_rest()

    async def _send_rest(self) -> None:
        """Send what is left of the current part, as the client reads it."""
        while self._unsent:
            await self.flow.drain()
            if self.disconnected:
                break
            data = self._unsent[:SLICE_BYTES]
            self._unsent = self._unsent[SLICE_BYTES:] or b""  # an empty view would keep the whole body in memory
            self._write(b"", data)

    def _write(self, head: bytes, data: bytes | memoryview) -> None:
        is_last = not self._unsent and not self._more_parts
        self.transport.write(head + (frame_chunk(data, is_last=is_last) if self.chunked_encoding else data))
        if is_last:
            self._end()

    def _begin(self, *, is_streamed: bool) -> bytes:
        """Return the head; a streamed body is sent in chunks, or until the connection closes in HTTP/1.0."""
        if is_streamed:
            self.streaming = asyncio.current_task()
        self.chunked_encoding = is_streamed and self.scope["method"] != "HEAD" and self.scope["http_version"] == "1.1"
        if self.chunked_encoding:
            self._headers.append(CHUNKED)
        # The client may omit a body that no 100 (Continue) requested: what follows would be ambiguous.
        lacks_body = self.waiting_for_100_continue and self.more_body
        if CLOSE in self._headers:
            self.keep_alive = False
        elif lacks_body or not self.keep_alive:
            self.keep_alive = False
            self._headers.append(CLOSE)
        self.waiting_for_100_continue = False
        self.response_started = True
        lines = [b"%b: %b\r\n" % header for header in self._headers]
        return b"".join((STATUS_LINE[self._status], *lines, b"\r\n"))

    def _end(self) -> None:
        self.response_complete = True
        self.streaming = None
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def frame_chunk(data: bytes | memoryview, *, is_last: bool) -> bytes:
    """Return the data as a chunk of a chunked body, after the last one with the end of the body."""
    chunk = b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if data else b""
    return chunk + b"0\r\n\r\n" if is_last else chunk


class PiecewiseFlow(FlowControl):
    """Flow control that parses the data already read before it resumes reading."""

    def __init__(self, transport: asyncio.Transport, parse: Callable[[], None]) -> None:
        super().__init__(transport)
        self._parse = parse

    def resume_reading(self) -> None:
        """Let the protocol continue parsing, which resumes the transport as soon as there is room."""
        if self.read_paused:
            asyncio.get_running_loop().call_soon(self._parse)

    def resume_transport(self) -> None:
        """Read from the socket again."""
        super().resume_reading()


class ResponseTransport(asyncio.Transport):
    """The transport that responses write to: counts the bytes, and leaves closing the connection to the protocol."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        super().__init__()
        self._transport = transport
        self._close = close
        self._written_bytes = self._taken_bytes = 0
        self._flowed_at = asyncio.get_running_loop().time()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send the data."""
        self._written_bytes += len(data)
        self._transport.write(data)

    def close(self) -> None:
        """Let the protocol close the connection."""
        self._close()

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be."""
        return self._transport.is_closing()

    def note_flow(self, now: float) -> None:
        """Record that the client has nothing to read."""
        self._flowed_at = now

    def seconds_stalled(self, now: float) -> float:
        """Return how long the client has acknowledged nothing, as far as earlier calls have observed."""
        taken_bytes = self._written_bytes - count_unacknowledged_bytes(self._transport)
        if taken_bytes > self._taken_bytes or taken_bytes == self._written_bytes:
            self._flowed_at = now
        self._taken_bytes = taken_bytes
        return now - self._flowed_at


def count_unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """Count the bytes that the client has not acknowledged: those buffered here and, on Linux, in the kernel."""
    held = transport.get_write_buffer_size()
    try:
        queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return held
    return held + int(struct.unpack("i", queued)[0])


def build_parse_problem(error: httptools.HttpParserError) -> ProblemError:
    """Return the problem that a callback of the parser raised, or else one for the parser's own error."""
    cause = error.__context__
    return cause if isinstance(cause, ProblemError) else build_bad_request(f"The request is not HTTP: {error}")
