"""Metrics in Prometheus's format, on a separate port.

A thread serves them, so that they can be scraped even while the event loop is blocked.
"""

import asyncio
from collections.abc import Callable

from prometheus_client import Gauge, Histogram, start_http_server

from shared.listening import single_socket_host
from shared.settings import ServiceSettings, exit_with_problems

LAG_INTERVAL_SECONDS = 0.25

BROKER_CONNECTED = Gauge("inkwell_broker_connected", "1 while the service can publish to or consume from the broker")
PARTITIONS_DIFFER = Gauge("inkwell_partitions_differ", "1 while INKWELL_PARTITIONS differs from the broker's number")
CONNECTIONS_USED = Gauge("inkwell_database_connections_used", "Connections to Postgres in use")
CONNECTIONS_LIMIT = Gauge("inkwell_database_connections_limit", "Maximum number of connections to Postgres")
LOOP_TASKS = Gauge("inkwell_event_loop_tasks", "Tasks of the event loop that have not ended")
CLOCK_OFFSET = Gauge("inkwell_clock_offset_seconds", "How far this machine's clock is ahead of Postgres'")
LOOP_LAG = Histogram(
    "inkwell_event_loop_lag_seconds",
    "Delay with which the event loop runs a timer",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def serve_metrics(settings: ServiceSettings) -> None:
    """Serve this process's metrics if a port is set; exits with 2 if it cannot be opened."""
    if settings.metrics_port is None:
        return
    try:
        start_http_server(settings.metrics_port, single_socket_host(settings.metrics_host))
    except OSError as error:
        address = f"{settings.metrics_host}:{settings.metrics_port}"
        exit_with_problems(f"INKWELL_METRICS_PORT: cannot listen on {address} ({error})")


async def watch_loop(sample: Callable[[], None] | None = None) -> None:
    """Measure the event loop's lag until cancelled; `sample` updates other metrics at the same interval."""
    loop = asyncio.get_running_loop()
    LOOP_TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
    while True:
        due = loop.time() + LAG_INTERVAL_SECONDS
        await asyncio.sleep(LAG_INTERVAL_SECONDS)
        LOOP_LAG.observe(max(0.0, loop.time() - due))
        if sample:
            sample()
