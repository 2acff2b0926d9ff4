"""One key, many attempts: over two gateways, while services are killed, links break and queues fill."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from dev.backend import Services
from tests.support.canaries import NOTE
from tests.support.harness import dated, decided, eventually
from tests.support.stack import Load, Process, Stack, check, running_stack

OTHER = {"title": "other", "description": ""}
KEY = {"Idempotency-Key": '"the key"', "Prefer": "wait=25"}
ATTEMPTS = 50
PUBLISH_TIMEOUT_SECONDS = 1.5
VICTIMS = [
    ("worker", signal.SIGKILL),
    ("gateway", signal.SIGTERM),
    ("worker", signal.SIGTERM),
    ("gateway", signal.SIGKILL),
    ("worker", signal.SIGKILL),
]


@dataclass
class Retrying:
    """Clients that repeat each request with its key until a 201, and then once more at the other gateway."""

    clients: list[httpx.AsyncClient]
    responses: dict[str, list[httpx.Response]] = field(default_factory=dict)
    """By title."""
    _stopping: bool = False

    @asynccontextmanager
    async def running(self, count: int = 8) -> AsyncIterator[None]:
        """Writes during the block, and finishes what it has started."""
        tasks = [asyncio.create_task(self._write()) for _ in range(count)]
        try:
            yield
        finally:
            self._stopping = True
            await asyncio.gather(*tasks)

    async def _write(self) -> None:
        while not self._stopping:
            title = uuid4().hex
            self.responses[title] = [await self._created(title), await self._created(title)]

    async def _created(self, title: str) -> httpx.Response:
        while True:
            with suppress(httpx.TransportError):
                note, headers = {"title": title, "description": ""}, {"Idempotency-Key": title}
                response = await random.choice(self.clients).post("/notes", json=note, headers=headers)  # noqa: S311
                if response.status_code == 201:
                    return response
                assert response.status_code in {202, 503, 504}, response.text
            await asyncio.sleep(0.05)


@pytest.fixture
async def clients(stack: Stack) -> AsyncIterator[list[httpx.AsyncClient]]:
    """A client of each of two gateways."""
    async with stack.second_gateway() as second:
        yield [stack.client, second]


@pytest.fixture
async def impatient(servers: Services, database_url: str, queue_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack with short waits for confirms and outcomes, and with short queues."""
    settings = {
        "wait_seconds": "0.1",
        "publish_timeout_seconds": str(PUBLISH_TIMEOUT_SECONDS),
        "queue_limit_bytes": "20000",
    }
    async with running_stack(database_url, servers, queue_prefix, tmp_path, **settings) as stack:
        yield stack


async def attempt(clients: Sequence[httpx.AsyncClient], count: int) -> list[httpx.Response]:
    """The responses to this many concurrent attempts, alternating between the gateways."""
    return await asyncio.gather(
        *(clients[each % len(clients)].post("/notes", json=NOTE, headers=KEY) for each in range(count))
    )


async def assert_one_effect(stack: Stack, responses: list[httpx.Response]) -> None:
    """Checks that the note exists once and that every response is its 201, exactly one of them not a replay."""
    [note] = (await stack.client.get("/notes")).json()
    assert {(response.status_code, response.text) for response in responses} == {(201, responses[0].text)}
    assert dated(responses[0].json()) == dated(note)
    assert sum("idempotent-replayed" not in response.headers for response in responses) == 1


async def test_attempts_at_two_gateways_at_once_have_one_effect(stack: Stack, clients: list[httpx.AsyncClient]) -> None:
    await assert_one_effect(stack, await attempt(clients, ATTEMPTS))


async def test_attempts_whose_worker_is_killed_have_one_effect(stack: Stack, clients: list[httpx.AsyncClient]) -> None:
    await stack.slow_down_stores(1)
    attempts = asyncio.create_task(attempt(clients, ATTEMPTS))
    await eventually(lambda: is_storing(stack))
    await stack.worker.kill()
    await stack.worker.start()

    await assert_one_effect(stack, await attempts)


async def test_attempt_whose_gateway_is_killed_can_be_repeated_at_another(
    stack: Stack, clients: list[httpx.AsyncClient]
) -> None:
    await stack.worker.stop()
    lost = asyncio.create_task(stack.client.post("/notes", json=NOTE, headers=KEY))
    await asyncio.sleep(0.3)
    await stack.gateway.kill()
    await asyncio.gather(lost, return_exceptions=True)
    await stack.worker.start()
    repeated = await attempt(clients[1:], 2)
    await stack.gateway.start()

    responses = repeated + await attempt(clients, 2)
    assert {(response.status_code, response.text) for response in responses} == {(201, responses[0].text)}
    assert all("idempotent-replayed" in response.headers for response in responses)
    assert await stack.titles() == {NOTE["title"]}


async def test_requests_repeated_until_they_are_answered_have_one_effect_each_through_kills(
    stack: Stack, clients: list[httpx.AsyncClient]
) -> None:
    retrying = Retrying(clients)
    async with retrying.running():
        for victim, signal_number in VICTIMS:
            process: Process = getattr(stack, victim)
            await asyncio.sleep(random.uniform(0.2, 0.6))  # noqa: S311 - no secret
            await process.stop(signal_number)
            await process.start()

    assert len(retrying.responses) > len(VICTIMS)
    for title, responses in retrying.responses.items():
        assert {response.text for response in responses} == {responses[0].text}, title
    assert await stack.titles() == set(retrying.responses)
    assert await stack.value("select count(*) - count(distinct title) from notes") == 0


async def test_sender_of_another_body_alone_is_refused(stack: Stack, clients: list[httpx.AsyncClient]) -> None:
    [first] = await attempt(clients, 1)
    at_once = KEY | {"Prefer": "respond-async"}
    others = [
        asyncio.create_task(client.post("/notes", json=OTHER, headers=headers))
        for client in clients
        for headers in (KEY, at_once)
    ]
    responses = await attempt(clients, ATTEMPTS)

    await assert_one_effect(stack, [first, *responses])
    for other in await asyncio.gather(*others):
        if other.status_code == 202:
            state = await decided(stack.client, other.headers["location"])
            assert (state["status"], state["answer"]["status"]) == ("rejected", 422)
            assert state["answer"]["body"]["code"] == "idempotency_key_reused"
        else:
            assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("fault", ["confirm held", "message held", "connection lost"])
async def test_write_cut_off_before_its_confirm_is_unconfirmed_and_its_key_gives_one_effect(
    impatient: Stack, fault: str
) -> None:
    stack = impatient
    await eventually(lambda: takes_writes(stack))
    await stack.worker.stop()
    link = stack.links["gateway-broker"]
    link.freeze("up" if fault == "message held" else "down")
    writing = asyncio.create_task(stack.client.post("/notes", json=NOTE, headers=KEY))
    if fault == "connection lost":
        await asyncio.sleep(0.3)
        await link.cut()
        await link.start()
    unconfirmed = await writing
    url = unconfirmed.json()["command"]

    assert (unconfirmed.status_code, unconfirmed.json()["code"]) == (504, "unconfirmed")
    assert 1 <= int(unconfirmed.headers["retry-after"]) <= 5
    assert unconfirmed.elapsed.total_seconds() < PUBLISH_TIMEOUT_SECONDS + 1
    assert (await stack.client.get(url)).json()["status"] == "unknown"

    link.thaw()
    await stack.worker.start()
    repeated = await eventually(lambda: written(stack))
    state = await decided(stack.client, url)
    assert (state["status"], state["answer"]["body"]) == ("applied", repeated.json())
    assert await stack.value("select count(*) from notes where title = 'Ink'") == 1


async def test_full_queue_refuses_writes_and_exactly_the_accepted_are_applied(impatient: Stack) -> None:
    stack = impatient
    await stack.worker.stop()
    async with Load(stack.client).running() as load:
        await eventually(lambda: refused(load, 20))
    assert set(load.statuses) == {202, 503}
    codes = {
        response.json()["code"] for response in load.responses.values() if response and response.status_code == 503
    }
    assert codes == {"overloaded"}
    assert (await stack.client.get("/notes")).json() == []

    await stack.worker.start()
    await check(load, stack)
    assert await stack.titles() == load.accepted
    await eventually(lambda: takes_writes(stack))


async def is_storing(stack: Stack) -> bool:
    running = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"
    return bool(await stack.value(running))


async def takes_writes(stack: Stack) -> bool:
    return (await stack.client.post("/notes", json=OTHER)).status_code == 201


async def written(stack: Stack) -> httpx.Response | None:
    response = await stack.client.post("/notes", json=NOTE, headers=KEY)
    return response if response.status_code == 201 else None


async def refused(load: Load, count: int) -> bool:
    return len(load.titles(503)) >= count
