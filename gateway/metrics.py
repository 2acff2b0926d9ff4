"""What a gateway counts and measures; no label has more values than the API has routes, methods and statuses.

What a number is now is looked up when somebody asks: it costs no request anything.
"""

import time
from dataclasses import dataclass
from functools import cache
from http import HTTPMethod

from fastapi import FastAPI
from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Receive, Scope, Send

TOLD = "inkwell.told"
"""Where in a request's scope is written down what becomes known of it."""
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
METHODS = frozenset(HTTPMethod)

# Named as OpenTelemetry's semantic conventions are in Prometheus.
REQUEST_DURATION = Histogram(
    "http_server_request_duration_seconds",
    "From the request's head to the end of its answer",
    ["http_request_method", "http_route", "http_response_status_code"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
ACTIVE_REQUESTS = Gauge("http_server_active_requests", "Requests that are not answered yet")

PUBLISHED_COMMANDS = Histogram("inkwell_publisher_batch_commands", "Commands in a message", buckets=COUNTS)
CONFIRM_DURATION = Histogram(
    "inkwell_publisher_confirm_duration_seconds", "From handing a message over to the broker's word on it"
)
BACKLOG_COMMANDS = Gauge("inkwell_publisher_backlog_commands", "Commands that wait to be handed over")
BACKLOG_BYTES = Gauge("inkwell_publisher_backlog_bytes", "Their size")
NOT_ACCEPTED = Counter(
    "inkwell_writes_not_accepted", "Writes answered `not_accepted`, `overloaded` or `unconfirmed`", ["code"]
)
for _code in ("not_accepted", "overloaded", "unconfirmed"):
    NOT_ACCEPTED.labels(_code)  # there from the start, so that a first change can be seen
WAITING = Gauge("inkwell_writes_waiting", "Writes and polls that wait for an outcome")
READS_FAILED = Counter("inkwell_reads_failed", "Reads that Postgres did not answer")


@dataclass(slots=True)
class Told:
    """What becomes known of a request while it is answered."""

    route: str = ""
    """Its template; empty where there is no route for it."""
    status: str = ""
    """Empty where it is not answered."""


def install_metrics(app: FastAPI) -> None:
    """Measures every request of the app, also one that ends in a 500 outside of all the app's middleware."""
    build = app.build_middleware_stack
    app.build_middleware_stack = lambda: MeasuredRequests(build())  # type: ignore[method-assign]


class MeasuredRequests:
    """Measures every request, also those that are refused before they have a route."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._active = 0
        ACTIVE_REQUESTS.set_function(lambda: self._active)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = scope[TOLD] = Told()
        started = time.perf_counter()
        self._active += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._active -= 1
            method = scope["method"] if scope["method"] in METHODS else "_OTHER"
            duration_of(method, told.route, told.status).observe(time.perf_counter() - started)


def told_of(scope: Scope) -> Told:
    """Where to write down what becomes known of the request of this scope."""
    told: Told = scope[TOLD]
    return told


@cache
def duration_of(method: str, route: str, status: str) -> Histogram:
    """The durations of one kind of request; looking them up costs as much as observing them."""
    return REQUEST_DURATION.labels(method, route, status)
