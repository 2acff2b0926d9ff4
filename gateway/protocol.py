"""uvicorn's HTTP protocol, with bounds on what a connection may send before there is a request to answer.

The parser keeps a request's head in memory, however long it is, and waits for its end, however long that takes.
"""

import asyncio
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.errors import ProblemError
from gateway.headers import NOT_STORED, SECURITY
from gateway.middleware import HEADERS_LIMIT_BYTES, TARGET_LIMIT_BYTES
from gateway.request_ids import HEADER, new_request_id

HEAD_LIMIT_BYTES = 2 * (TARGET_LIMIT_BYTES + HEADERS_LIMIT_BYTES)
"""More than what the application refuses by itself, with the separators; one read of the socket is not counted."""
HEAD_TIMEOUT_SECONDS = 10.0


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose next request's head is too long, or not there in time."""

    _head_bytes = 0
    _head_timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """The time for the first head starts."""
        super().connection_made(transport)
        self._start_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn does."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As uvicorn does, and then looks whether the connection still owes the rest of a head."""
        before = self.scope
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()
            return
        if self._head_timeout is None:
            self._start_waiting()
        self._head_bytes = self._head_bytes + len(data) if self.scope is before else 0
        if self._head_bytes > HEAD_LIMIT_BYTES and not self._has_head():
            detail = f"The request's head is larger than {HEAD_LIMIT_BYTES} bytes"
            self._refuse(ProblemError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", detail))

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP is answered with a problem too."""
        self._refuse(ProblemError(HTTPStatus.BAD_REQUEST, "bad_request", msg))

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return self._has_head() and cycle is not None and not cycle.response_complete

    def _has_head(self) -> bool:
        """Whether the newest request's head is complete: uvicorn then writes its method down."""
        return "method" in (self.scope or {})

    def _start_waiting(self) -> None:
        self._head_timeout = self.loop.call_later(HEAD_TIMEOUT_SECONDS, self.shutdown)

    def _stop_waiting(self) -> None:
        if self._head_timeout is not None:
            self._head_timeout.cancel()
            self._head_timeout = None

    def _refuse(self, problem: ProblemError) -> None:
        response = problem.response()
        own = (HEADER, new_request_id()), (b"connection", b"close")
        headers = (*response.raw_headers, *SECURITY, *NOT_STORED, *own)
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[response.status_code] + lines + b"\r\n" + bytes(response.body))
        self.transport.close()
