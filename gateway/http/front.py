"""Handles each request in order: id, head, route, caller, parts, handler, errors, headers, metrics.

FastAPI documents the operations and runs the lifespan; requests do not pass through it (docs/decisions/0028).
"""

import re
import time
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import aclosing
from http import HTTPStatus
from typing import Generic, Protocol, TypeVar

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from gateway.caller import Authentication, Caller
from gateway.http.cors import CrossOriginPolicy
from gateway.http.headers import add_defaults
from gateway.http.operations import PUBLIC, Operation
from gateway.http.request_head import HEAD_PROBLEM
from gateway.http.requests import Request
from gateway.http.responses import Response, render
from gateway.http.routes import Routes, choose_operation
from gateway.problems import (
    BAD_REQUEST,
    INSUFFICIENT_SCOPE,
    INTERNAL_ERROR,
    MISDIRECTED_REQUEST,
    REALM,
    ProblemError,
)
from gateway.telemetry.metrics import ACTIVE_REQUESTS, BUGS, RequestInfo, observe_request
from gateway.telemetry.request_ids import REQUEST_ID_HEADER, choose_request_id
from gateway.telemetry.tracing import add_request_attributes, start_request_span
from shared.contracts import Scope as TokenScope
from shared.logs import IDS

_PORT = re.compile(rb":\d*$")

log = structlog.get_logger()


class Resources(Protocol):
    """The resources passed to handlers; the front itself needs only authentication."""

    @property
    def authentication(self) -> Authentication:
        """What authenticates callers."""


ResourcesT = TypeVar("ResourcesT", bound=Resources)


class Front(Generic[ResourcesT]):
    """Answers requests with the operations of an app."""

    def __init__(
        self,
        operations: Iterable[Operation[ResourcesT]],
        *,
        root_path: str,
        body_limit_bytes: int,
        hosts: Collection[str],
        cors_origins: Collection[str],
    ) -> None:
        self._routes = Routes(operations)
        self._root_path = root_path
        self._body_limit_bytes = body_limit_bytes
        self._hosts = {host.encode() for host in hosts}
        """The accepted values of `Host`, without the port; empty to accept any."""
        self._cross_origin = CrossOriginPolicy(cors_origins) if cors_origins else None
        self._active = 0
        self.resources: ResourcesT | None = None
        """Set by the lifespan."""
        ACTIVE_REQUESTS.set_function(lambda: self._active)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        request = Request(scope, receive, self._strip_prefix(scope["path"]))
        info = RequestInfo(choose_request_id(request.headers_by_name.get(REQUEST_ID_HEADER)))
        IDS.set({"request_id": info.id.decode()})  # replaces the ids of the connection's previous request
        self._active += 1
        try:
            with start_request_span(scope, request.path, request.headers_by_name.get(b"traceparent")) as span:
                response = await self._answer(request, info)
                info.status = response.status
                add_request_attributes(span, scope, info)
                try:
                    await self._send(response, request, info, send)
                except Exception:
                    info.status = HTTPStatus.INTERNAL_SERVER_ERROR  # `RequestCycle.run_asgi` answers it
                    raise
        finally:
            self._active -= 1
            observe_request(request.method, info, time.perf_counter() - started)
        # A stream may last for hours: it is no active request, and its time is not the request's duration.
        if response.stream:
            await send_stream(response.stream, send, is_wanted=request.method != "HEAD")

    async def _answer(self, request: Request, info: RequestInfo) -> Response:
        """Return the operation's response, or the problem with which the request is rejected."""
        try:
            self._check_head(request)
            if self._cross_origin and self._cross_origin.is_preflight(request):
                return self._cross_origin.answer_preflight(request.headers)
            return await self._perform(request, info)
        except Exception as error:  # noqa: BLE001 - unexpected errors become 500
            return render(to_problem(error))

    def _check_head(self, request: Request) -> None:
        """Raise the ProblemError with which the protocol has rejected the request, or 421 for another host."""
        if problem := request.scope["state"].get(HEAD_PROBLEM):
            raise problem
        if self._hosts:
            check_host(request.headers_by_name.get(b"host", b"").lower(), self._hosts)

    async def _perform(self, request: Request, info: RequestInfo) -> Response:
        """Route, authorize and read the request, and return its handler's response."""
        operations, request.path_parameters = self._routes.resolve(request.path)
        info.route = next(iter(operations.values())).path  # the same for all of them
        operation = choose_operation(operations, request.method)
        request.body_limit_bytes = operation.body_limit_bytes or self._body_limit_bytes
        request.check_declared_length()
        resources = self.resources
        if resources is None:
            raise RuntimeError("the app's lifespan has not started")
        if operation.requires != PUBLIC and not (operation.exempts and operation.exempts(resources, request)):
            request.caller = await authorize(request, operation.requires, resources.authentication)
        for reader in operation.readers:
            request.parts[reader] = await reader.read(request)
        return await operation.handler(resources, request)

    async def _send(self, response: Response, request: Request, info: RequestInfo, send: Send) -> None:
        """Send the response, or only the head of a streamed one, whose duration then excludes the stream."""
        headers, body = response.encode()
        headers = add_defaults(headers, request, info.id)
        start: Message = {"type": "http.response.start", "status": response.status, "headers": headers}
        if self._cross_origin and b"origin" in request.headers_by_name:
            await self._cross_origin.send(start, send, request_headers=request.headers)
        elif self._cross_origin:  # otherwise a cache could serve this response to a page of another origin
            headers.append((b"vary", b"Origin"))
            await send(start)
        else:
            await send(start)
        await send({"type": "http.response.body", "body": body, "more_body": response.stream is not None})

    def _strip_prefix(self, path: str) -> str:
        """Return the path without the `root_path`, which a proxy may have removed, and without a trailing slash.

        Only whole segments count: `/inkwell` does not begin with the prefix `/ink`.
        """
        rest = path.removeprefix(self._root_path)
        return (rest if rest.startswith("/") else path).removesuffix("/") or "/"


async def send_stream(stream: AsyncGenerator[bytes], send: Send, *, is_wanted: bool) -> None:
    """Send the parts of a body as they become available; a HEAD request wants none of them."""
    async with aclosing(stream) as parts:
        if is_wanted:
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def check_host(host: bytes, hosts: Collection[bytes]) -> None:
    """Raise ProblemError 421 if the request is for another host.

    Prevents DNS rebinding: without authentication, a page of any site whose host name resolves to this machine could
    read and write notes.
    """
    if _PORT.sub(b"", host) not in hosts:
        names = " or ".join(sorted(host.decode() for host in hosts))
        advice = f"Use {names} as the host, or set INKWELL_TRUST_NETWORK if untrusted clients cannot reach this address"
        raise ProblemError(MISDIRECTED_REQUEST, advice)


async def authorize(request: Request, scope: TokenScope, authentication: Authentication) -> Caller:
    """Return the authenticated caller; raises ProblemError 401, 403 if the scope is missing, or 503."""
    confirm = scope is not TokenScope.READ
    caller = await authentication.authenticate(request.headers_by_name.get(b"authorization"), confirm=confirm)
    if scope not in caller.scopes:
        challenge = {"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{scope}"'}
        raise ProblemError(INSUFFICIENT_SCOPE, f"The token lacks the scope {scope}", headers=challenge)
    return caller


def to_problem(error: Exception) -> ProblemError:
    """Return the problem that answers an error; logs an unexpected error as a bug."""
    match error:
        case ProblemError():
            return error
        case ClientDisconnect():
            return ProblemError(BAD_REQUEST, "The request ended early")  # only for metrics: the client has disconnected
        case _:
            BUGS.inc()
            log.error("bug: answering a request with 500; please report it", exc_info=error)
            return ProblemError(INTERNAL_ERROR)
