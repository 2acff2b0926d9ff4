"""Inkwell without telemetry, to measure its cost: no counters, no measurements, no request ids.

`python -m bench.limit.silent gateway`, or `worker`.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

import gateway.__main__
import gateway.http.front
import gateway.writes.submission
import shared.database
import worker.__main__
import worker.consumer
from shared.tracing import NO_OP

NO_ID = b"-"


def always(value: object = None) -> Callable[..., Any]:
    """A function that returns the value."""
    return lambda *_, **__: value


SILENCED = (
    (Counter, "inc", always()),
    (Gauge, "set", always()),
    (Histogram, "observe", always()),
    (gateway.http.front, "observe_request", always()),
    (gateway.http.front, "choose_request_id", always(NO_ID)),
    (gateway.http.front, "IDS", SimpleNamespace(set=always())),
    (gateway.writes.submission, "bind_ids", always()),
    (gateway.writes.submission, "start_publish_span", always(NO_OP)),
    (shared.database, "start_span", always(NO_OP)),
    (worker.consumer, "count_applied", always()),
)


def silence() -> None:
    """Remove the telemetry of this process."""
    for owner, name, silent in SILENCED:
        getattr(owner, name)  # raises if it has been renamed, instead of keeping it silently
        setattr(owner, name, silent)


if __name__ == "__main__":
    silence()
    service = sys.argv.pop(1)
    {"gateway": gateway.__main__, "worker": worker.__main__}[service].main()
