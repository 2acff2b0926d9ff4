"""One service's clock is wrong, for a while or from its start: no accepted write fails, and all times are Postgres'."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dev.backend import ROOT, Services
from tests.support import canaries
from tests.support.accounts import sign_up
from tests.support.canaries import NOTE
from tests.support.harness import eventually
from tests.support.isolation import fresh_database, fresh_prefix
from tests.support.proxy import free_port
from tests.support.stack import Load, Process, Stack, check, running_stack
from tests.support.wrong_clocks import DAY, HOUR, MONTH, SettableClock, needs_libfaketime

OFFSETS = (HOUR, -HOUR, DAY, -DAY, 4 * DAY, -4 * DAY, MONTH, -MONTH)
WRONG_SECONDS = 1.0
SERVICES = ("gateway", "worker")

pytestmark = needs_libfaketime


class Clocks:
    """A stack whose services each have a settable clock."""

    def __init__(self, stack: Stack, clocks: dict[str, SettableClock]) -> None:
        self.stack = stack
        self._clocks = clocks

    def __getitem__(self, service: str) -> SettableClock:
        return self._clocks[service]

    def process(self, service: str) -> Process:
        return self.stack.gateway if service == "gateway" else self.stack.worker

    async def restart(self, service: str, seconds: float = 0) -> None:
        """Restarts the service with its clock this far ahead."""
        await self.process(service).stop()
        self[service].set(seconds)
        await self.process(service).start()


@pytest.fixture(scope="module")
async def clocks(servers: Services, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clocks]:
    folder = tmp_path_factory.mktemp("clocks")
    async with (
        fresh_database(servers, template) as database_url,
        fresh_prefix(servers) as prefix,
        running_stack(database_url, servers, prefix, folder) as stack,
    ):
        clocks = {service: SettableClock(folder / f"{service}.clock") for service in SERVICES}
        await asyncio.gather(stack.gateway.stop(), stack.worker.stop())
        stack.gateway = stack.gateway.variant(None, **metrics(), **clocks["gateway"].environment)
        stack.worker = stack.worker.variant(None, **metrics(), **clocks["worker"].environment)
        try:
            await asyncio.gather(stack.worker.start(), stack.gateway.start())
            yield Clocks(stack, clocks)
        finally:
            await asyncio.gather(stack.gateway.kill(), stack.worker.kill())


def metrics() -> dict[str, str]:
    """A port for a process's metrics."""
    return {"INKWELL_METRICS_PORT": str(free_port())}


async def check_times(stack: Stack) -> None:
    """Checks that the time of every command agrees with Postgres' time of its decision, within a tolerance."""
    [(early, late)] = await stack.query(
        "select min(extract(epoch from decided_at - issued_at)), max(extract(epoch from decided_at - issued_at))"
        " from commands"
    )
    assert -1 < early <= late < 30


@pytest.mark.parametrize("service", SERVICES)
async def test_clock_that_jumps_under_load_fails_no_write_and_dates_none_wrongly(clocks: Clocks, service: str) -> None:
    load = Load(clocks.stack.client)

    async with load.running():
        for offset in OFFSETS:
            with clocks[service].wrong(offset):
                await asyncio.sleep(WRONG_SECONDS)

    await check(load, clocks.stack)
    assert set(load.statuses) == {201}
    await check_times(clocks.stack)


@pytest.mark.parametrize("offset", [2 * HOUR, -2 * HOUR, -MONTH])
async def test_services_that_start_with_a_wrong_clock_go_by_postgres(clocks: Clocks, offset: int) -> None:
    load = Load(clocks.stack.client)

    await asyncio.gather(*(clocks.restart(service, offset) for service in SERVICES))
    async with load.running(clients=2):
        await asyncio.sleep(WRONG_SECONDS)
    for service in SERVICES:
        clocks[service].set(0)

    await check(load, clocks.stack)
    assert set(load.statuses) == {201}
    await check_times(clocks.stack)


@pytest.mark.parametrize("offset", [2 * HOUR, -2 * HOUR])
async def test_tokens_of_a_gateway_with_a_wrong_clock_are_good_elsewhere_and_the_reverse(
    clocks: Clocks, tmp_path: Path, offset: int
) -> None:
    stack, here = clocks.stack, clocks.stack.client
    clock = SettableClock(tmp_path / "other.clock")
    clock.set(offset)
    other = stack.gateway.variant(None, **metrics(), **clock.environment).twin(port := free_port())
    await other.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as there:
            there.headers.update((await sign_up(there)).headers)
            for headers in (here.headers, there.headers):
                auth = {"Authorization": headers["authorization"]}
                for client in (here, there):
                    assert (await client.post("/notes/", json=NOTE, headers=auth)).status_code == 201
            made = await there.post("/auth/tokens", json={"name": "script", "scopes": ["notes:read", "notes:write"]})
            personal = {"Authorization": f"Bearer {made.json()['token']}"}
            for client in (here, there):
                assert (await client.get("/notes/", headers=personal)).status_code == 200
            pending = await there.post("/notes/", json=NOTE, headers={"Prefer": "respond-async"})
            auth = {"Authorization": there.headers["authorization"]}
            polled = await here.get(pending.headers["location"], headers=auth | {"Prefer": "wait=5"})
            assert polled.json()["status"] == "applied"
    finally:
        await other.kill()
    await check_times(stack)


@pytest.mark.parametrize("service", SERVICES)
async def test_wrong_clock_is_logged_once_and_measured(clocks: Clocks, service: str) -> None:
    process = clocks.process(service)
    before = len(process.events())

    with clocks[service].wrong(HOUR):
        await eventually(lambda: offset_is(process, HOUR))
        await asyncio.sleep(3)
    await eventually(lambda: offset_is(process, 0))

    events = process.events()[before:]
    warnings = [event for event in events if "differs from Postgres'" in str(event.get("event"))]
    assert [round(event["offset_seconds"]) for event in warnings] == [HOUR]
    assert [event["level"] for event in warnings] == ["warning"]
    assert [event for event in events if "agrees with Postgres' again" in str(event.get("event"))]


async def offset_is(process: Process, seconds: int) -> bool:
    metrics = await metrics_of(process)
    return abs(float(metrics["inkwell_clock_offset_seconds"]) - seconds) < 1


async def metrics_of(process: Process) -> dict[str, str]:
    port = process.environment["INKWELL_METRICS_PORT"]
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"http://127.0.0.1:{port}/metrics")).text.splitlines()
    return dict(line.split(" ", 1) for line in lines if not line.startswith("#") and " " in line)


@pytest.mark.parametrize("service", SERVICES)
async def test_doctor_compares_the_clocks(clocks: Clocks, tmp_path: Path, service: str) -> None:
    levels = {0: "ok", 3: "warning", 10: "problem", -10: "problem"}

    found = await asyncio.gather(*(clock_by_doctor(clocks, tmp_path, service, offset) for offset in levels))

    assert found == list(levels.values())


async def clock_by_doctor(clocks: Clocks, folder: Path, service: str, offset: int) -> str:
    """The doctor's verdict on a clock this far ahead."""
    clock = SettableClock(folder / f"{offset}.clock")
    clock.set(offset)
    command, environment = [sys.executable, "-m", service, "doctor", "--json"], clocks.process(service).environment
    doctor = await asyncio.to_thread(
        subprocess.run, command, env=environment | clock.environment, cwd=ROOT, capture_output=True, text=True
    )
    [finding] = [each for each in map(json.loads, doctor.stdout.splitlines()) if each["check"] == "clock"]
    return str(finding["level"])


async def test_wrong_clock_locks_no_user_out_for_longer_than_the_limit(clocks: Clocks) -> None:
    wrong = {"username": "unknown", "password": canaries.PASSWORD + "!"}
    client = clocks.stack.client

    with clocks["gateway"].wrong(MONTH):
        responses = [await client.post("/auth/token", data=wrong) for _ in range(11)]
    after = await client.post("/auth/token", data=wrong)

    assert [response.status_code for response in responses] == [400] * 10 + [429]
    assert (after.status_code, int(after.headers["retry-after"]) <= 60) == (429, True)


async def test_command_of_a_gateway_that_has_never_seen_postgres_is_applied(
    servers: Services, database_url: str, queue_prefix: str, tmp_path: Path
) -> None:
    clock = SettableClock(tmp_path / "gateway.clock")
    async with running_stack(database_url, servers, queue_prefix, tmp_path) as stack:
        await stack.gateway.stop()
        for name in ("gateway-database", "worker-database"):
            await stack.links[name].cut()
        clock.set(-4 * DAY)
        stack.gateway = stack.gateway.variant(
            None, **clock.environment, INKWELL_AUTH="none", INKWELL_TRUST_NETWORK="true"
        )
        await stack.gateway.start()
        try:
            responses = [await stack.client.post("/notes/", json=NOTE) for _ in range(3)]
            for name in ("gateway-database", "worker-database"):
                await stack.links[name].start()
            states = [await decided(stack.client, response.headers["location"]) for response in responses]
        finally:
            await stack.gateway.kill()

    assert [response.status_code for response in responses] == [202] * 3
    assert [state["status"] for state in states] == ["applied"] * 3


async def decided(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """The state of a command once it has an outcome; there is none while Postgres is down."""

    async def state() -> dict[str, Any] | None:
        response = await client.get(url)
        return dict(response.json()) if response.status_code == 200 and response.json()["answer"] else None

    return await eventually(state, within_seconds=30)
