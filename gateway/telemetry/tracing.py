"""The spans of a request: one for the whole, one for publishing its command; those of statements are in `database`.

Probes are not traced. Spans name the route, never the path: a command's URL grants access to its outcome.
"""

from http import HTTPStatus
from uuid import UUID

from starlette.types import Scope

from gateway.telemetry.metrics import KNOWN_METHODS, RequestInfo
from shared.contracts import Command
from shared.logs import bind_ids
from shared.topology import Topology
from shared.tracing import (
    CURRENT,
    NO_OP,
    Span,
    SpanKind,
    Tracing,
    find_trace_id,
    is_recording,
    start_root_span,
    start_span,
)

PROBES = "/health/"
REQUEST_ATTRIBUTE = "inkwell.request_id"


def start_request_span(scope: Scope, path: str, traceparent: bytes | None) -> Span:
    """Start a span in the client's trace or in a new one; returns a no-op span unless it is sampled."""
    CURRENT.set(NO_OP)  # replaces the span of the connection's previous request
    if not Tracing.recorder or path.startswith(PROBES):
        return NO_OP
    parent = traceparent.decode("latin-1") if traceparent else None
    span = start_root_span(_build_name(scope), SpanKind.SERVER, parent)
    if span is not NO_OP:
        bind_ids(trace_id=find_trace_id(span.traceparent) or "")
    return span


def _build_name(scope: Scope, route: str = "") -> str:
    """Return the span's name, method and route, whose cardinality is low."""
    if scope["method"] not in KNOWN_METHODS:
        return "HTTP"
    return f"{scope['method']} {route}" if route else str(scope["method"])


def add_request_attributes(span: Span, scope: Scope, info: RequestInfo) -> None:
    """Add the route, the id and the status of the request to its span."""
    if span is NO_OP:
        return
    attributes: dict[str, str | int] = {
        "http.request.method": scope["method"] if scope["method"] in KNOWN_METHODS else "_OTHER",
        "url.scheme": scope["scheme"],
        REQUEST_ATTRIBUTE: info.id.decode(),
    }
    if info.status:
        attributes["http.response.status_code"] = info.status
    if info.route:
        attributes["http.route"] = info.route
    span.update(attributes, _build_name(scope, info.route))
    if info.status and info.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        span.fail(str(info.status))


def start_publish_span(topology: Topology, owner: int, command_id: UUID, model: type[Command]) -> Span:
    """Start a span for publishing a command; the worker continues its trace."""
    if not is_recording():
        return NO_OP
    destination = topology.destination(owner)
    attributes = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": destination,
        "messaging.message.id": str(command_id),
        "inkwell.command.type": model.type_name(),
    }
    return start_span(f"publish {destination}", attributes, SpanKind.PRODUCER)
