"""The gateway's metrics; no label has more values than the API has routes, methods and statuses.

Gauges are read when they are scraped, and cost requests nothing.
"""

from dataclasses import dataclass
from functools import cache
from http import HTTPMethod

from prometheus_client import Counter, Gauge, Histogram

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

KEPT_PAGES_BYTES = Gauge("inkwell_kept_pages_bytes", "Pages of lists in memory")

PUBLISHED_COMMANDS = Histogram("inkwell_publisher_batch_commands", "Commands in a message", buckets=COUNTS)
CONFIRM_DURATION = Histogram(
    "inkwell_publisher_confirm_duration_seconds", "From handing a message over to the broker's word on it"
)
BACKLOG_COMMANDS = Gauge("inkwell_publisher_backlog_commands", "Commands that wait to be handed over")
BACKLOG_BYTES = Gauge("inkwell_publisher_backlog_bytes", "Their size")
UNPUBLISHED = Counter(
    "inkwell_writes_not_accepted", "Writes answered `not_accepted`, `overloaded` or `unconfirmed`", ["code"]
)
for _code in ("not_accepted", "overloaded", "unconfirmed"):
    UNPUBLISHED.labels(_code)  # there from the start, so that a first change can be seen
WAITING = Gauge("inkwell_writes_waiting", "Writes and polls that wait for an outcome")
READS_FAILED = Counter("inkwell_reads_failed", "Reads that Postgres did not answer")


@dataclass(slots=True)
class RequestInfo:
    """The data of a request for metrics and traces."""

    id: bytes
    route: str = ""
    """The path of its operation; empty if there is none."""
    status: int | None = None
    """None while it is not answered."""

    @property
    def status_label(self) -> str:
        """The status; empty while it is not answered."""
        return str(self.status or "")


def observe_request(method: str, info: RequestInfo, seconds: float) -> None:
    """Record a request's duration."""
    _find_histogram(method if method in METHODS else "_OTHER", info.route, info.status_label).observe(seconds)


@cache
def _find_histogram(method: str, route: str, status: str) -> Histogram:
    """Return the histogram with these labels, cached: `labels` costs as much as `observe`."""
    return REQUEST_DURATION.labels(method, route, status)
