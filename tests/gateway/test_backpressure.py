"""The responses to writes when too many already wait for the broker or for an outcome."""

import asyncio
from typing import Any

import httpx
import pytest
from asyncpg import Connection, Record

from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.harness import eventually
from worker.settings import WorkerSettings

ASYNC = {"Prefer": "respond-async"}
AWAY = "amqp://nobody:nothing@127.0.0.1:1/"
with_short_queues = pytest.mark.parametrize("queue_limit_bytes", [4096])


def note(title: str) -> dict[str, str]:
    return {"title": title, "description": "x" * 200}


def with_settings(settings: GatewaySettings, **values: Any) -> GatewaySettings:
    return GatewaySettings.model_validate(settings.model_dump() | values)


@with_short_queues
async def test_full_queue_refuses_writes_until_there_is_room_and_exactly_the_accepted_ones_are_applied(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    responses: dict[str, httpx.Response] = {}
    async with harness.gateway(gateway_settings) as client:
        for number in range(60):
            responses[str(number)] = await client.post("/notes", json=note(str(number)), headers=ASYNC)
        refused = [response for response in responses.values() if response.status_code == 503]

        assert {response.status_code for response in responses.values()} == {202, 503}
        assert {response.json()["code"] for response in refused} == {"overloaded"}
        assert {response.headers["content-type"] for response in refused} == {"application/problem+json"}
        assert {response.headers["retry-after"] for response in refused} > {"1", "5"}
        assert (await client.get("/notes")).json() == []

        async with harness.worker(worker_settings):
            await eventually(lambda: created(client))
    titles = [row["title"] for row in await database.fetch("select title from notes order by id")]
    assert titles[:-1] == [title for title, response in responses.items() if response.status_code == 202]


@with_short_queues
async def test_queue_keeps_the_limit_it_was_made_with_when_the_setting_changes(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.gateway(gateway_settings) as client:
        assert (await client.post("/notes", json=note("first"), headers=ASYNC)).status_code == 202

    async with harness.worker(worker_settings), harness.gateway(gateway_settings) as client:
        assert (await client.post("/notes", json=note("second"))).status_code == 201
        assert len((await client.get("/notes")).json()) == 2


async def test_full_backlog_refuses_writes_at_once_and_they_never_have_an_effect(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    small = with_settings(gateway_settings, broker_url=AWAY, backlog_limit_bytes=4096, publish_timeout_seconds=1)
    async with harness.gateway(small) as client:
        responses = await asyncio.gather(*(client.post("/notes", json=note("refused")) for _ in range(40)))
        again = await client.post("/notes", json=note("refused"))

    overloaded = [response for response in responses if response.json()["code"] == "overloaded"]
    assert {response.status_code for response in responses} == {503}
    assert 20 < len(overloaded) < 40
    assert max(response.elapsed.total_seconds() for response in overloaded) < 0.9
    assert all(1 <= int(response.headers["retry-after"]) <= 5 for response in responses)
    assert again.json()["code"] == "not_accepted"  # there is room again, but still no broker
    async with harness.gateway(gateway_settings) as client, harness.worker(worker_settings):
        await eventually(lambda: created(client))
    assert await database.fetchval("select string_agg(title, ',') from notes") == "last"


async def test_empty_backlog_takes_a_command_of_any_size(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    small = with_settings(gateway_settings, backlog_limit_bytes=4096, description_max_length=5000)
    async with harness.worker(worker_settings), harness.gateway(small) as client:
        assert (await client.post("/notes", json={"title": "long", "description": "x" * 5000})).status_code == 201


@with_short_queues
async def test_overload_is_not_kept_for_its_key(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.gateway(gateway_settings) as client:

        async def refused() -> str | None:
            key = {"Idempotency-Key": str(asyncio.get_running_loop().time())}
            response = await client.post("/notes", json=note("refused"), headers=ASYNC | key)
            return key["Idempotency-Key"] if response.status_code == 503 else None

        key = await eventually(refused, every_seconds=0.01)
        async with harness.worker(worker_settings):
            await eventually(lambda: created(client))
            written = await client.post("/notes", json=note("other"), headers={"Idempotency-Key": key})
    assert written.status_code == 201
    assert "idempotent-replayed" not in written.headers


@pytest.mark.parametrize("limit", [0, 1, 3])
async def test_writes_beyond_the_waiters_are_accepted_at_once(gateway_settings: GatewaySettings, limit: int) -> None:
    settings = with_settings(gateway_settings, waiters_limit=limit, wait_seconds=1)
    async with harness.gateway(settings) as client:
        await client.post("/notes", json=note("first"), headers=ASYNC)  # the gateway has connected by now
        responses = await asyncio.gather(*(client.post("/notes", json=note("waits")) for _ in range(10)))
        impatient = [response for response in responses if response.elapsed.total_seconds() < 0.9]

    assert {response.status_code for response in responses} == {202}
    assert len(impatient) == 10 - limit


async def test_gateway_without_room_for_waiters_accepts_writes_and_answers_polls(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with (
        harness.worker(worker_settings),
        harness.gateway(with_settings(gateway_settings, waiters_limit=0)) as client,
    ):
        accepted = await client.post("/notes", json=note("waits"), headers={"Prefer": "wait=10"})

        assert accepted.status_code == 202
        assert "preference-applied" not in accepted.headers
        assert (await harness.decided(client, accepted.headers["location"]))["status"] == "applied"


async def test_polls_count_as_waiters(gateway_settings: GatewaySettings) -> None:
    async with harness.gateway(with_settings(gateway_settings, waiters_limit=1)) as client:
        url = (await client.post("/notes", json=note("waits"), headers=ASYNC)).headers["location"]
        polls = await asyncio.gather(*(client.get(url, headers={"Prefer": "wait=1"}) for _ in range(5)))

    patient = [poll for poll in polls if poll.elapsed.total_seconds() >= 1]
    assert [poll.headers.get("preference-applied") for poll in patient] == ["wait=1"]
    assert sum("preference-applied" in poll.headers for poll in polls) == 1


async def created(client: httpx.AsyncClient) -> bool:
    return (await client.post("/notes", json=note("last"))).status_code == 201
