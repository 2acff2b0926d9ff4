"""One request and its response on a connection, and the flow control of both directions."""

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent
from uvicorn._types import Scope as UvicornScope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.http.request_head import bad_request
from gateway.problems import ProblemError


class RequestCycle(RequestResponseCycle):
    """A request and its response."""

    transport: "ResponseTransport"
    _failure: ProblemError | None = None

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
        """Run the application; if it is cancelled, at the end of a drain, close the connection without an answer.

        No status would be correct: it is unknown whether the request had its effect.
        """

        async def run(scope: UvicornScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                self.disconnected = True
                self.transport.close()

        await super().run_asgi(run)

    async def send(self, message: ASGISendEvent) -> None:
        """Send a part of the response."""
        if self.waiting_for_100_continue and self.more_body:
            self.keep_alive = False  # the client may omit the body now: what follows is ambiguous
        if message["type"] == "http.response.start":
            self.transport.hold_next_write()
            await super().send(message)
        else:
            await super().send(message)
            self.transport.flush()  # a response to HEAD writes no body


class PiecewiseFlow(FlowControl):
    """Flow control that parses the data already read before it resumes reading."""

    def __init__(self, transport: asyncio.Transport, parse: Callable[[], None]) -> None:
        super().__init__(transport)
        self._parse = parse

    def resume_reading(self) -> None:
        """Let the protocol continue parsing; it resumes the transport if there is room."""
        if self.read_paused:
            asyncio.get_running_loop().call_soon(self._parse)

    def resume_transport(self) -> None:
        """Read from the socket again."""
        super().resume_reading()


class ResponseTransport(asyncio.Transport):
    """The transport given to responses: counts the bytes written, and lets the protocol close the connection."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        super().__init__()
        self._transport = transport
        self._close = close
        self._written_bytes = self._taken_bytes = 0
        self._is_holding = False
        self._held = b""
        self._flowed_at = asyncio.get_running_loop().time()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send the data, together with what is held."""
        if self._is_holding:
            self._is_holding, self._held = False, bytes(data)
            return
        if self._held:
            self._held, data = b"", self._held + data
        self._written_bytes += len(data)
        self._transport.write(data)

    def hold_next_write(self) -> None:
        """Send what is written next together with the write after it: a system call costs as much as a handler."""
        self._is_holding = True

    def flush(self) -> None:
        """Send what is held."""
        self._is_holding = False
        if self._held:
            self.write(b"")

    def close(self) -> None:
        """Let the protocol close the connection."""
        self.flush()
        self._close()

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be."""
        return self._transport.is_closing()

    def note_flow(self, now: float) -> None:
        """Record that the client has nothing to read."""
        self._flowed_at = now

    def seconds_stalled(self, now: float) -> float:
        """Return how long the client has not acknowledged anything, as observed by these calls."""
        taken_bytes = self._written_bytes - count_unacknowledged_bytes(self._transport)
        if taken_bytes > self._taken_bytes:
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
    """Return the problem that a callback raised, or else one for the parser's error."""
    cause = error.__context__
    return cause if isinstance(cause, ProblemError) else bad_request(f"The request is not HTTP: {error}")
