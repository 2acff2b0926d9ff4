"""Metrics: events are counted with bounded labels, which contain nothing that users write."""

import asyncio
from uuid import uuid4

import httpx
import pytest
from prometheus_client import REGISTRY, generate_latest

from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.harness import eventually

REQUESTS = "http_server_request_duration_seconds_count"
LABELS = ("http_request_method", "http_route", "http_response_status_code")


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def requests(method: str, route: str, status: int) -> float:
    return value(REQUESTS, **dict(zip(LABELS, (method, route, str(status)), strict=True)))


def kinds() -> int:
    """The number of label sets of the request counter."""
    return sum(sample.name == REQUESTS for metric in REGISTRY.collect() for sample in metric.samples)


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/notes/99", "/notes/{note_id}", 404),
        ("HEAD", "/notes/", "/notes", 200),
        ("GET", "/notes?limit=0", "/notes", 422),
        ("POST", "/notes", "/notes", 415),
        ("DELETE", "/notes", "/notes", 405),
        ("GET", "/nowhere", "", 404),
        ("GET", "/" + "x" * 9000, "", 414),
        ("PROPFIND", "/notes", "/notes", 405),
    ],
)
async def test_request_is_counted_by_its_route_and_status(
    shared_client: httpx.AsyncClient, method: str, path: str, route: str, status: int
) -> None:
    counted = "_OTHER" if method == "PROPFIND" else method
    before = requests(counted, route, status)

    response = await shared_client.request(method, path)

    assert response.status_code == status
    assert requests(counted, route, status) == before + 1


async def test_unknown_paths_are_counted_together(shared_client: httpx.AsyncClient) -> None:
    await shared_client.get("/before")
    before = kinds()

    for _ in range(20):
        await shared_client.get(f"/{uuid4()}")

    assert kinds() == before


async def test_write_is_counted_on_its_whole_way(shared_client: httpx.AsyncClient) -> None:
    names = [
        "inkwell_publisher_batch_commands_sum",
        "inkwell_publisher_confirm_duration_seconds_count",
        "inkwell_worker_transaction_duration_seconds_count",
        "inkwell_worker_batch_commands_sum",
        "inkwell_command_apply_delay_seconds_count",
    ]
    applied = {"type": "note.create", "outcome": "applied"}
    before = [value(name) for name in names], value("inkwell_worker_commands_total", **applied)

    assert (await shared_client.post("/notes", json=NOTE)).status_code == 201

    async def counted() -> bool:  # the worker counts after its reply
        return value("inkwell_worker_commands_total", **applied) == before[1] + 1

    await eventually(counted)
    assert [value(name) for name in names] == [each + 1 for each in before[0]]


async def test_write_that_waits_for_a_missing_broker_is_counted(gateway_settings: GatewaySettings) -> None:
    away = {"broker_url": "amqp://nobody:nothing@127.0.0.1:1/", "publish_timeout_seconds": 1}
    names = [f"inkwell_{each}" for each in ("writes_waiting", "publisher_backlog_commands", "publisher_backlog_bytes")]

    async def waits() -> bool:
        return value(names[0]) == 1

    async with harness.gateway(GatewaySettings.model_validate(gateway_settings.model_dump() | away)) as client:
        writing = asyncio.create_task(client.post("/notes", json=NOTE))
        await eventually(waits)
        waiting = [value(name) for name in (*names, "http_server_active_requests")]
        assert (await writing).status_code == 503

    assert (waiting[:2], waiting[2] > len(str(NOTE)), waiting[3]) == ([1, 1], True, 1)
    assert [value(name) for name in names] == [0, 0, 0]


async def test_refused_write_and_failed_read_are_counted(gateway_settings: GatewaySettings) -> None:
    away = {"broker_url": "amqp://nobody:nothing@127.0.0.1:1/", "database_url": "postgresql://n:n@127.0.0.1:1/n"}
    settings = GatewaySettings.model_validate(gateway_settings.model_dump() | away | {"publish_timeout_seconds": 0.1})
    before = value("inkwell_writes_not_accepted_total", code="not_accepted"), value("inkwell_reads_failed_total")

    async with harness.gateway(settings) as client:
        assert (await client.post("/notes", json=NOTE)).status_code == 503
        assert (await client.get("/notes/1")).status_code == 503

    assert value("inkwell_writes_not_accepted_total", code="not_accepted") == before[0] + 1
    assert value("inkwell_reads_failed_total") > before[1]


async def test_tasks_that_have_not_ended_are_counted(gateway_settings: GatewaySettings) -> None:
    ending = asyncio.Event()
    async with harness.gateway(gateway_settings):
        before = value("inkwell_event_loop_tasks")
        tasks = [asyncio.create_task(ending.wait()) for _ in range(1000)]
        during = value("inkwell_event_loop_tasks")
        ending.set()
        await asyncio.wait(tasks)
        after = value("inkwell_event_loop_tasks")

    assert during - before > 900  # other tasks come and go
    assert after - before < 100


async def test_metrics_tell_nothing_that_users_write(shared_client: httpx.AsyncClient) -> None:
    await shared_client.post("/notes", json=NOTE, headers={"Idempotency-Key": "k" * 20})
    await shared_client.get(f"/notes/search?q={NOTE['description']}")

    exposed = generate_latest().decode()

    assert NOTE["description"] not in exposed
    assert "k" * 20 not in exposed
