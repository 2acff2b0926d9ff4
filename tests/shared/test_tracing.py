"""Traces: one tree from the request to its SQL, without anything that users write; no spans if disabled."""

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.settings import GatewaySettings
from shared.settings import EXIT_BAD_SETTING
from shared.tracing import Tracing, configure_tracing, find_trace_id, is_enabled
from shared.tracing.recorder import SdkRecorder
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.commands import create
from tests.support.harness import eventually
from worker.deliveries import Batch, Delivery
from worker.settings import WorkerSettings
from worker.traces import trace_batch

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Records every span of this process."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(Tracing, "recorder", SdkRecorder(SimpleSpanProcessor(exporter), "inkwell-test"))
    return exporter


@pytest.fixture
async def traced(
    exporter: InMemorySpanExporter, gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway and a worker whose spans are recorded."""
    async with harness.worker(worker_settings), harness.gateway(gateway_settings) as client:
        await eventually(lambda: is_up(client))
        exporter.clear()
        yield client


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def children(spans: Sequence[ReadableSpan], parent: ReadableSpan) -> list[ReadableSpan]:
    return [each for each in spans if each.parent and each.parent.span_id == parent.context.span_id]


async def finished(exporter: InMemorySpanExporter, name: str) -> Sequence[ReadableSpan]:
    """Every span, once there is one with this name."""

    async def spans() -> Sequence[ReadableSpan] | None:
        spans = exporter.get_finished_spans()
        return spans if any(each.name == name for each in spans) else None

    return await eventually(spans)


async def test_write_is_one_tree_from_the_request_to_the_sql(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    created = await traced.post("/notes/", json=NOTE, headers={"traceparent": SAMPLED})

    assert created.status_code == 201
    spans = await finished(exporter, "POST /notes")
    assert {f"{each.context.trace_id:032x}" for each in spans} == {TRACE}
    [request] = [each for each in spans if each.kind is SpanKind.SERVER]
    assert request.parent
    assert f"{request.parent.span_id:016x}" == PARENT
    assert attributes(request) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": "/notes",
        "http.response.status_code": 201,
        "inkwell.request_id": created.headers["x-request-id"],
    }
    [message] = children(spans, request)
    [command] = children(spans, message)
    [batch] = children(spans, command)
    sql = children(spans, batch)
    assert [each.kind for each in (message, command, batch)] == [
        *(SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.INTERNAL)
    ]
    assert [message.name.split()[0], command.name.split()[0], batch.name] == ["publish", "process", "apply batch"]
    assert message.name.split()[1] == command.name.split()[1] == attributes(command)["messaging.destination.name"]
    assert attributes(command)["inkwell.command.outcome"] == "applied"
    assert {each.kind for each in sql} == {SpanKind.CLIENT}
    assert [each.name for each in sql] == [
        "SELECT users notes commands tombstones",
        "INSERT commands UPDATE users INSERT notes",
    ]
    assert {attributes(each)["db.system.name"] for each in sql} == {"postgresql"}
    assert len(spans) == 4 + len(sql)


async def test_read_is_a_request_with_its_sql(traced: httpx.AsyncClient, exporter: InMemorySpanExporter) -> None:
    missing = await traced.get("/notes/999", headers={"traceparent": SAMPLED})

    assert missing.status_code == 404
    spans = await finished(exporter, "GET /notes/{note_id}")
    [request] = [each for each in spans if each.kind is SpanKind.SERVER]
    assert [each.name for each in children(spans, request)] == ["SELECT notes users"]
    assert request.status.status_code is StatusCode.UNSET


async def test_failed_read_is_an_error(exporter: InMemorySpanExporter) -> None:
    async with harness.gateway(harness.settings_without_servers()) as client:
        assert (await client.get("/notes/1")).status_code == 503

    spans = await finished(exporter, "GET /notes/{note_id}")
    assert {span.name: attributes(span)["error.type"] for span in spans} == {
        "GET /notes/{note_id}": "503",
        "SELECT notes users": "ConnectionRefusedError",
    }
    assert all(span.status.status_code is StatusCode.ERROR for span in spans)


async def test_what_is_not_sampled_and_probes_leave_no_span(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    await traced.get("/health/ready")
    created = await traced.post("/notes/", json=NOTE, headers={"traceparent": UNSAMPLED})
    assert (await traced.get(created.headers["location"], headers={"traceparent": UNSAMPLED})).status_code == 200

    await traced.get("/nope")

    assert [each.name for each in await finished(exporter, "GET")] == ["GET"]


async def test_spans_tell_nothing_that_users_write_and_no_url_that_lets_in(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    accepted = await traced.post("/notes/", json=NOTE, headers={"Prefer": "respond-async", "Idempotency-Key": "k" * 20})
    await traced.get(accepted.headers["location"])
    await traced.get("/notes/search", params={"q": NOTE["description"]})

    exported = "".join(each.to_json() for each in await finished(exporter, "GET /notes/search"))
    assert NOTE["description"] not in exported
    assert "k" * 20 not in exported
    assert accepted.headers["location"] not in exported


def test_transaction_of_several_commands_is_linked_to_each(exporter: InMemorySpanExporter) -> None:
    commands = [create(traceparent=f"00-{uuid4().hex}-{PARENT}-01") for _ in range(3)] + [create()]
    batch = Batch(received=[(Delivery(0, Addressed()), command) for command in commands])  # type: ignore[arg-type]

    with trace_batch(batch) as trace, trace.start_transaction_span():
        pass

    transaction, *processed = exporter.get_finished_spans()
    assert [f"{each.context.trace_id:032x}" for each in processed] == [
        find_trace_id(command.traceparent) for command in commands[:3]
    ]
    assert transaction.parent == processed[0].context
    assert [link.context for link in transaction.links] == [each.context for each in processed[1:]]
    assert attributes(transaction) == {"inkwell.batch.commands": 4}


class Addressed:
    exchange, routing_key = "inkwell.commands.v1", "inkwell.commands.v1.0"


def test_services_do_not_load_the_sdk_while_traces_are_off() -> None:
    code = (
        "import sys, gateway.__main__, worker.__main__; from shared.tracing import configure_tracing; "
        "configure_tracing('x'); print([m for m in sys.modules if m.startswith('opentelemetry.sdk') or 'otlp' in m])"
    )

    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_standard_variables_decide(environment: dict[str, str], wanted: bool) -> None:  # noqa: FBT001 - a parameter
    assert is_enabled(environment) is wanted


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_what_there_is_not_is_a_wrong_setting(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        is_enabled(environment)

    assert exit_.value.code == EXIT_BAD_SETTING
    assert "wrong setting: OTEL_" in capsys.readouterr().err


async def is_up(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/health/ready")).json()["dependencies"]["broker"] == "up")


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setitem(sys.modules, "shared.tracing.recorder", None)  # as without OpenTelemetry's SDK

    with pytest.raises(SystemExit) as exit_:
        configure_tracing("inkwell-test")

    assert exit_.value.code == EXIT_BAD_SETTING
    assert "needs Inkwell's extra `traces`" in capsys.readouterr().err
