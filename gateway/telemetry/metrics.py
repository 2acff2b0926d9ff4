"""The gateway's metrics; the values of labels are the API's routes, methods, statuses and codes, never a client's text.

Gauges are computed when they are scraped, at no cost to requests.
"""

from dataclasses import dataclass
from functools import cache
from http import HTTPMethod

from prometheus_client import Counter, Gauge, Histogram

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
KNOWN_METHODS = frozenset(HTTPMethod)
"""All others are counted as `_OTHER`: a client must not choose the value of a label."""

# Named after OpenTelemetry's semantic conventions.
REQUEST_DURATION = Histogram(
    "http_server_request_duration_seconds",
    "Time from the request's head to the end of its response",
    ["http_request_method", "http_route", "http_response_status_code"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
ACTIVE_REQUESTS = Gauge("http_server_active_requests", "Requests in progress")

KEPT_PAGES_BYTES = Gauge("inkwell_kept_pages_bytes", "Bytes of pages of lists kept in memory")

PUBLISHED_COMMANDS = Histogram("inkwell_publisher_batch_commands", "Commands in a message", buckets=COUNTS)
CONFIRM_DURATION = Histogram(
    "inkwell_publisher_confirm_duration_seconds", "Time from handing a message over until it is confirmed or refused"
)
BACKLOG_COMMANDS = Gauge("inkwell_publisher_backlog_commands", "Commands waiting to be handed over to the broker")
BACKLOG_BYTES = Gauge("inkwell_publisher_backlog_bytes", "Bytes of these commands")
UNPUBLISHED = Counter(
    "inkwell_writes_not_accepted", "Writes answered `not_accepted`, `overloaded` or `unconfirmed`", ["code"]
)
for _code in ("not_accepted", "overloaded", "unconfirmed"):
    UNPUBLISHED.labels(_code)  # exported as 0: `increase` does not count a series that begins at 1
WAITING = Gauge("inkwell_writes_waiting", "Writes and polls waiting for an outcome")
BUGS = Counter("inkwell_bugs", "Requests answered 500 because of an unexpected error, which is a bug")
STREAMS = Gauge("inkwell_streams", "Open streams of changes")
STREAMS_LIMIT = Gauge("inkwell_streams_limit", "Limit of open streams of changes on this gateway")
HINTS_CONNECTED = Gauge(
    "inkwell_hints_connected", "1 while the gateway receives hints of changes, which open streams need"
)
READS_FAILED = Counter("inkwell_reads_failed", "Reads that Postgres did not answer")


@dataclass(slots=True)
class RequestInfo:
    """The data of a request for metrics and traces."""

    id: bytes
    route: str = ""
    """The path of its operation; empty without one."""
    status: int | None = None
    """None until the request is answered."""


def observe_request(method: str, info: RequestInfo, seconds: float) -> None:
    """Record a request's duration."""
    _get_histogram(method if method in KNOWN_METHODS else "_OTHER", info.route, str(info.status or "")).observe(seconds)


@cache
def _get_histogram(method: str, route: str, status: str) -> Histogram:
    """Return the histogram with these labels; cached, since `labels` costs as much as `observe`."""
    return REQUEST_DURATION.labels(method, route, status)
