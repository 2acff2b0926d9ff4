"""One request and its response on a connection, and what a connection can be asked about the bytes that it holds."""

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent
from uvicorn._types import Scope as UvicornScope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.errors import ProblemError
from gateway.headers import NOT_STORED, SECURITY
from gateway.request_ids import HEADER, new_request_id


class RequestCycle(RequestResponseCycle):
    """A request and its response."""

    _failure: ProblemError | None = None

    def fail(self, problem: ProblemError) -> None:
        """Makes `receive` raise the problem; the connection closes after the response."""
        self._failure = problem
        self.keep_alive = False
        self.message_event.set()

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next part of the body; raises ProblemError if there will be none."""
        message = await super().receive()
        if self._failure and not self.response_complete:
            raise self._failure
        return message

    async def send(self, message: ASGISendEvent) -> None:
        """Send a part of the response."""
        if self.waiting_for_100_continue and self.more_body:
            self.keep_alive = False  # the client may now leave the body out: what comes next could be either
        await super().send(message)


class PiecewiseFlow(FlowControl):
    """Flow control that, to resume, first has the protocol parse what was already read."""

    def __init__(self, transport: asyncio.Transport, parse: Callable[[], None]) -> None:
        super().__init__(transport)
        self._parse = parse

    def resume_reading(self) -> None:
        """Have the protocol go on, which resumes the transport if there is room."""
        if self.read_paused:
            asyncio.get_running_loop().call_soon(self._parse)

    def resume_transport(self) -> None:
        """Read from the socket again."""
        super().resume_reading()


def untaken_bytes(transport: asyncio.Transport) -> int:
    """How many bytes of the answers the client has not acknowledged: those held here and, on Linux, by the kernel."""
    held = transport.get_write_buffer_size()
    try:
        queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return held
    return held + int(struct.unpack("i", queued)[0])


def bad_request(detail: str) -> ProblemError:
    """400, for what is not HTTP as it is spoken here."""
    return ProblemError(HTTPStatus.BAD_REQUEST, "bad_request", detail)


def problem_of(error: httptools.HttpParserError) -> ProblemError:
    """The problem that a callback has raised, or that the parser has found."""
    cause = error.__context__
    return cause if isinstance(cause, ProblemError) else bad_request(f"The request is not HTTP: {error}")


def refusal(problem: ProblemError) -> ASGI3Application:
    """Build the application that answers with the problem and with what every answer has."""
    response = problem.response()
    response.raw_headers += [*SECURITY, *NOT_STORED, (HEADER, new_request_id())]

    async def respond(scope: UvicornScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await response(cast("Scope", scope), cast("Receive", receive), cast("Send", send))

    return respond
