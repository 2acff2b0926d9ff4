"""A rolling restart under load: every process and both servers in turn, and no client loses a write or sees an error.

Clients retry only what the API allows them to (503 and 504), with the key of the first attempt.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support import canaries
from tests.support.accounts import sign_up
from tests.support.harness import eventually
from tests.support.proxy import free_port
from tests.support.stack import Stack
from tests.system.servers import Servers

CLIENTS = 6
RETRIABLE = {"database_unavailable", "not_accepted", "overloaded", "unconfirmed"}
BALANCER_SECONDS = 0.05
RETRY_SECONDS = 0.2
RECOVERY_SECONDS = 30.0
UNDISTURBED = 3
"""How many times each client completes its work before the next restart."""

pytestmark = [pytest.mark.needs_docker, pytest.mark.long]


class Balancer:
    """Sends requests to the ready gateways in turn, like a load balancer with frequent probes."""

    def __init__(self, gateways: list[httpx.AsyncClient]) -> None:
        self._gateways = self._ready = gateways
        self._turns = count()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Probes the gateways during the block."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        while True:
            ready = await asyncio.gather(*map(is_ready, self._gateways))
            self._ready = [client for client, is_up in zip(self._gateways, ready, strict=True) if is_up]
            await asyncio.sleep(BALANCER_SECONDS)

    async def request(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The response of a ready gateway."""
        client = self._ready[next(self._turns) % len(self._ready)]
        return await client.request(method, path, **request)


async def is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/ready")).status_code == 200
    except httpx.TransportError:
        return False


@dataclass
class Load:
    """Clients that write and read all the time, and their observations."""

    gateways: Balancer
    phase: str = "before"
    refusals: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """The number of refusals by phase and code."""
    versions: dict[str, int] = field(default_factory=dict)
    """The notes that must exist, by title."""
    rounds: Counter[int] = field(default_factory=Counter)
    _stopping: bool = False

    @asynccontextmanager
    async def running(self, headers: list[dict[str, str]]) -> AsyncIterator[None]:
        """A client for each user during the block; fails as soon as one of them sees a violation."""
        async with asyncio.TaskGroup() as clients:
            for number, each in enumerate(headers):
                clients.create_task(self._use(number, each))
            try:
                yield
            finally:
                self._stopping = True

    async def goes_on(self) -> None:
        """Returns when every client has completed its work a few more times."""
        before = self.rounds.copy()

        async def went_on() -> bool:
            return all(self.rounds[number] >= before[number] + UNDISTURBED for number in range(CLIENTS))

        await eventually(went_on, within_seconds=RECOVERY_SECONDS)

    async def _use(self, number: int, headers: dict[str, str]) -> None:
        while not self._stopping:
            async with asyncio.timeout(2 * RECOVERY_SECONDS):
                await self._do_everything(headers)
            self.rounds[number] += 1

    async def _do_everything(self, headers: dict[str, str]) -> None:
        title = uuid4().hex
        created = await self._write("POST", "/notes/", headers, canaries.NOTE | {"title": title})
        self.versions[title] = 1
        note = f"/notes/{created['id']}"
        assert await self._read(note, headers) == created
        patched = await self._write("PATCH", note, headers, {"description": title})
        self.versions[title] = 2
        newest = await self._read("/notes/?sort=-id&limit=1", headers)
        assert newest == [patched]

    async def _write(self, method: str, path: str, headers: dict[str, str], body: object) -> Any:
        """The note as the write has left it."""
        key = {"Idempotency-Key": uuid4().hex}
        response = await self._until_taken(method, path, headers=headers | key, json=body)
        if response.status_code != 202:
            return response.json()
        while True:
            polled = await self._until_taken(
                "GET", response.headers["Location"], headers=headers | {"Prefer": "wait=2"}
            )
            if (state := polled.json())["status"] != "pending":
                assert state["status"] == "applied", state
                return state["answer"]["body"]

    async def _read(self, path: str, headers: dict[str, str]) -> Any:
        return (await self._until_taken("GET", path, headers=headers)).json()

    async def _until_taken(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The first response that is not a refusal; fails with a response that the client could not expect."""
        while True:
            response = await self.gateways.request(method, path, **request)
            if response.status_code in (200, 201, 202):
                return response
            code = response.json()["code"]
            assert code in RETRIABLE, response.text
            self.refusals[self.phase][code] += 1
            await asyncio.sleep(RETRY_SECONDS)


@pytest.fixture
async def stack(breakable: Servers, tmp_path: Path) -> AsyncIterator[Stack]:
    async with breakable.stack(tmp_path, wait_seconds="2") as stack:
        yield stack


async def test_everything_is_restarted_in_turn_and_no_client_loses_or_doubles_a_write(
    breakable: Servers, stack: Stack
) -> None:
    users = [(await sign_up(stack.client)).headers for _ in range(CLIENTS)]
    async with AsyncExitStack() as exits:
        second_worker, second_gateway = stack.worker.twin(free_port()), stack.gateway.twin(port := free_port())
        for process in (second_worker, second_gateway):
            exits.push_async_callback(process.kill)
            await process.start()
        client = await exits.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30))
        load = Load(Balancer([stack.client, client]))
        async with load.gateways.watching(), load.running(users):
            await load.goes_on()
            for process in (stack.gateway, second_gateway, stack.worker, second_worker):
                load.phase = "processes"
                assert await process.stop() == 0
                await process.start()
                await load.goes_on()
            for load.phase, restart in (
                ("Postgres", breakable.restart_postgres),
                ("RabbitMQ", breakable.restart_rabbitmq),
            ):
                await restart()
                await load.goes_on()

        assert load.refusals.keys() <= {"Postgres", "RabbitMQ"}, load.refusals
        assert load.refusals["Postgres"].keys() <= {"database_unavailable"}
        assert load.refusals["RabbitMQ"].keys() <= {"not_accepted", "unconfirmed"}
        assert load.refusals["RabbitMQ"], "the restart was not felt"
        await told_once(load, stack)


async def told_once(load: Load, stack: Stack) -> None:
    """Checks that every write has its effect and its outcome once, and that there are no others."""
    notes = await stack.query("select title, version from notes")
    assert sorted(map(tuple, notes)) == sorted(load.versions.items())
    registrations = CLIENTS + 1  # one of them belongs to the stack
    outcomes = await stack.query("select status, count(*) from commands group by status")
    assert [tuple(row) for row in outcomes] == [("applied", registrations + sum(load.versions.values()))]
    assert not await stack.idle_in_transaction()
