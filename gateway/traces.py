"""The steps of a request: the whole of it, and the publishing of its command; the SELECTs are steps of their own.

Probes are not traced. A path is told by its template alone: a command's URL lets in whoever has it.
"""

from uuid import UUID

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.metrics import METHODS, told_of
from gateway.middleware import route_path
from gateway.request_ids import REQUEST
from gateway.settings import GatewaySettings
from shared.contracts import Command
from shared.messaging import Topology
from shared.telemetry import identify_lines
from shared.tracing import CURRENT, UNRECORDED, Kind, Step, Tracing, is_recorded, start, step, trace_id_of

PROBES = "/health/"
SERVER_ERROR = "5"


def install_traces(app: FastAPI) -> None:
    """Traces the requests of the app, if traces are wanted at all."""
    if Tracing.recorder:
        build = app.build_middleware_stack
        app.build_middleware_stack = lambda: TracedRequests(build())  # type: ignore[method-assign]


class TracedRequests:
    """Makes a step of each request that is sampled; stands inside of what measures it and gives it its id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        CURRENT.set(UNRECORDED)  # not that of the request before on the same connection
        request = begun(scope)
        if request is UNRECORDED:
            await self.app(scope, receive, send)
            return
        identify_lines(trace_id=trace_id_of(request.traceparent) or "")
        with request:
            try:
                await self.app(scope, receive, send)
            finally:
                tell(request, scope)


def begun(scope: Scope) -> Step:
    """The step of a request, in the trace that its client has begun or in a new one."""
    if scope["type"] != "http" or route_path(scope).startswith(PROBES):
        return UNRECORDED
    for name, value in scope["headers"]:
        if name == b"traceparent":
            return start(name_of(scope), Kind.SERVER, value.decode("latin-1"))
    return start(name_of(scope), Kind.SERVER)


def name_of(scope: Scope, route: str = "") -> str:
    """The name of a request's span, which has no more values than there are methods and routes."""
    if scope["method"] not in METHODS:
        return "HTTP"
    return f"{scope['method']} {route}" if route else str(scope["method"])


def tell(request: Step, scope: Scope) -> None:
    """Completes the request's step with its route, its id and its status, as the measuring has them."""
    told = told_of(scope)
    attributes: dict[str, str | int] = {
        "http.request.method": scope["method"] if scope["method"] in METHODS else "_OTHER",
        "url.scheme": scope["scheme"],
        REQUEST: scope[REQUEST].decode(),
    }
    if told.status:
        attributes["http.response.status_code"] = int(told.status)
    if told.route:
        attributes["http.route"] = told.route
    request.describe(attributes, name_of(scope, told.route))
    if told.status.startswith(SERVER_ERROR):
        request.fail(told.status)


def publishing(settings: GatewaySettings, owner: int, command_id: UUID, model: type[Command]) -> Step:
    """The step of publishing a command, whose worker goes on with its trace."""
    if not is_recorded():
        return UNRECORDED
    topology = Topology.of(settings)
    destination = topology.destination(topology.partition_of(owner))
    attributes = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": destination,
        "messaging.message.id": str(command_id),
        "inkwell.command.type": model.model_fields["type"].default,
    }
    return step(f"publish {destination}", attributes, Kind.PRODUCER)
