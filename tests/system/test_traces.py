"""Traces and log lines of whole processes, with a collector and without."""

import asyncio
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from uuid import uuid4

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.canaries import NOTE
from tests.support.harness import eventually
from tests.support.proxy import free_port
from tests.support.stack import Process, Stack

TRACE = uuid4().hex
SAMPLED = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
POISON = "alter table notes add constraint poison check (title <> 'poison') not valid"


class Collector:
    """A collector that receives traces as OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, str]] = []
        """The trace, the service and the name of each span."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, body: bytes) -> None:
        """Records the spans of an export."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            found = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(each.trace_id.hex(), found["service.name"], each.name) for each in scope.spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    serving = Thread(target=collector.server.serve_forever)
    serving.start()
    yield collector
    collector.server.shutdown()
    serving.join()
    collector.server.server_close()


async def restarted(stack: Stack, **environment: str) -> tuple[Process, Process]:
    """Restarts both services of the stack with other variables."""
    for process in (stack.worker, stack.gateway):
        await process.stop()
    stack.worker, stack.gateway = (each.variant(None, **environment) for each in (stack.worker, stack.gateway))
    for process in (stack.worker, stack.gateway):
        await process.start()
    await eventually(lambda: is_connected(stack))
    return stack.gateway, stack.worker


async def is_connected(stack: Stack) -> bool:
    return bool((await stack.client.get("/health/ready")).json()["dependencies"]["broker"] == "up")


async def test_collector_gets_one_trace_of_both_services_at_the_latest_when_they_stop(
    stack: Stack, collector: Collector
) -> None:
    processes = await restarted(stack, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="60000")
    try:
        created = await stack.client.post("/notes/", json=NOTE, headers=SAMPLED)
        assert created.status_code in {201, 202}
        await eventually(lambda: is_applied(stack))
    finally:
        codes = [await each.stop() for each in processes]

    assert codes == [0, 0]
    found = {(service, name.split()[0]) for trace, service, name in collector.spans if trace == TRACE}
    assert found >= {
        ("inkwell-gateway", "POST"),
        ("inkwell-gateway", "publish"),
        ("inkwell-worker", "process"),
        ("inkwell-worker", "apply"),
        ("inkwell-worker", "INSERT"),
        ("inkwell-worker", "SELECT"),
    }


async def is_applied(stack: Stack) -> bool:
    return bool(await stack.value("select count(*) from notes"))


async def test_collector_that_is_away_costs_no_request_and_hardly_delays_the_end(stack: Stack) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    processes = await restarted(
        stack, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="100", OTEL_EXPORTER_OTLP_TIMEOUT="1"
    )
    try:
        for _ in range(20):
            started = time.monotonic()
            assert (await stack.client.get("/notes/")).status_code == 200
            assert time.monotonic() - started < 2
            await asyncio.sleep(0.05)
        await eventually(lambda: is_told(stack.gateway))
        assert (await stack.client.post("/notes/", json=NOTE)).status_code in {201, 202}
    finally:
        stopping = time.monotonic()
        codes = [await each.stop() for each in processes]

    assert codes == [0, 0]
    assert time.monotonic() - stopping < 10  # including the gateway's drain of a second
    found = [each for each in stack.gateway.events() if "opentelemetry" in str(each) or "traces" in each["event"]]
    assert len(found) == 1


async def is_told(process: Process) -> bool:
    return bool(process.events("traces cannot be exported and are lost; requests are not affected"))


async def test_log_lines_name_the_request_the_command_and_the_trace(stack: Stack, collector: Collector) -> None:
    processes = await restarted(stack, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    try:
        await stack.script(POISON)
        ids = SAMPLED | {"X-Request-ID": "request-1"}
        failed = await stack.client.post("/notes/", json=NOTE | {"title": "poison"}, headers=ids | {"Prefer": "wait=9"})
        assert (failed.status_code, failed.headers["X-Request-ID"]) == (500, "request-1")
        stack.links["gateway-database"].freeze()
        assert (await stack.client.get(failed.json()["command"], headers=ids)).status_code == 503
    finally:
        for each in processes:
            await each.kill()

    [command_id] = [str(row[0]) for row in await stack.query("select id from commands where status = 'failed'")]
    [failure] = stack.worker.events("command failed and is kept as a dead letter; its neighbors are applied")
    assert (failure["command_id"], failure["trace_id"], failure["service"]) == (command_id, TRACE, "inkwell-worker")
    reads = stack.gateway.events("read failed: Postgres is unavailable or rejects it")
    [read] = [each for each in reads if each.get("request_id") == "request-1"]
    assert (read["command_id"], read["trace_id"], read["service"]) == (command_id, TRACE, "inkwell-gateway")
