"""Postgres and the broker fail under load, in one way after another; Inkwell keeps its promises and recovers."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import asyncpg
import httpx
import pytest
from testcontainers.core.container import DockerContainer

from dev.backend import ROOT
from shared import broker_metrics
from shared.doctor import check_broker
from shared.topology import Topology
from tests.support.harness import eventually
from tests.support.stack import Load, Stack, check
from tests.system.servers import Servers
from worker.settings import WorkerSettings

PAUSE_SECONDS = float(os.environ.get("PAUSE_SECONDS", "10"))
"""Longer than the worker retries before it closes its channels; `make outages` pauses for a minute."""
SHORT_SECONDS = float(os.environ.get("SHORT_SECONDS", "2"))
WAIT_SECONDS = 0.5
PUBLISH_TIMEOUT_SECONDS = 5.0
WITHDRAWN = 1000

pytestmark = pytest.mark.needs_docker


@pytest.fixture
async def stack(breakable: Servers, tmp_path: Path) -> AsyncIterator[Stack]:
    async with breakable.stack(tmp_path, wait_seconds=str(WAIT_SECONDS)) as stack:
        yield stack


Fault = Callable[[Servers, Stack], Awaitable[None]]


async def postgres_restarts(servers: Servers, _: Stack) -> None:
    await servers.restart_postgres()


async def postgres_is_killed(servers: Servers, _: Stack) -> None:
    await asyncio.to_thread(servers.postgres.get_wrapped_container().kill)
    await asyncio.sleep(SHORT_SECONDS)
    await asyncio.to_thread(servers.postgres.get_wrapped_container().start)


async def postgres_is_paused(servers: Servers, _: Stack) -> None:
    async with paused(servers.postgres):
        await asyncio.sleep(PAUSE_SECONDS)


async def database_links_are_half_open(_: Servers, stack: Stack) -> None:
    stack.links["worker-database"].strand()
    stack.links["gateway-database"].strand()
    await eventually(lambda: logged(stack, "batch not applied"))


async def postgres_is_read_only(servers: Servers, _: Stack) -> None:
    await servers.psql("alter system set default_transaction_read_only = on", "select pg_reload_conf()")
    await asyncio.sleep(SHORT_SECONDS)
    writable = "set default_transaction_read_only = off"
    await servers.psql(writable, "alter system reset default_transaction_read_only", "select pg_reload_conf()")


async def grant_is_revoked(_: Servers, stack: Stack) -> None:
    await stack.script("revoke insert on commands from inkwell_worker")
    await asyncio.sleep(SHORT_SECONDS)
    await stack.script("grant insert on commands to inkwell_worker")


async def disk_is_full(servers: Servers, stack: Stack) -> None:
    def run(command: str) -> None:
        servers.postgres.exec(["bash", "-c", command])

    await asyncio.to_thread(run, "mkdir -p /small/space && chown postgres /small/space")
    with_space = await asyncpg.connect(stack.database_url)
    await with_space.execute("create tablespace small location '/small/space'")
    await with_space.execute("alter table commands set tablespace small")
    await asyncio.to_thread(run, "dd if=/dev/zero of=/small/filler bs=64k")
    await eventually(lambda: logged(stack, "53100"))
    await asyncio.sleep(SHORT_SECONDS)
    await asyncio.to_thread(run, "rm /small/filler")
    await with_space.close()


POSTGRES_FAULTS: dict[Fault, str] = {
    postgres_restarts: "",
    postgres_is_killed: "",
    postgres_is_paused: "",
    database_links_are_half_open: "",
    postgres_is_read_only: "25006",
    grant_is_revoked: "42501",
    disk_is_full: "53100",
}


LONG = pytest.mark.long
"""The fault runs inject these, too."""
OFTEN = (postgres_restarts, postgres_is_killed, postgres_is_paused)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=LONG if fault in OFTEN else ()) for fault in POSTGRES_FAULTS],
    ids=lambda fault: fault.__name__,
)
async def test_while(fault: Fault, breakable: Servers, stack: Stack) -> None:
    """Checks that every write is answered 202, nothing fails, and all is applied within 30 s of the fault's end."""
    async with Load(stack.client).running() as load:
        await eventually(lambda: wrote(load, stack))
        await fault(breakable, stack)
        await asyncio.sleep(1)

    assert set(load.statuses) <= {201, 202}, load.statuses
    assert load.slowest_seconds < WAIT_SECONDS + PUBLISH_TIMEOUT_SECONDS + 1
    assert load.titles(202)
    assert await logged(stack, POSTGRES_FAULTS[fault])
    await check(load, stack)


async def broker_restarts(servers: Servers, _: Stack) -> None:
    await servers.restart_rabbitmq()


async def broker_is_killed(servers: Servers, _: Stack) -> None:
    await asyncio.to_thread(servers.rabbitmq.get_wrapped_container().kill)
    await asyncio.sleep(SHORT_SECONDS)
    await asyncio.to_thread(servers.rabbitmq.get_wrapped_container().start)


async def broker_is_paused(servers: Servers, _: Stack) -> None:
    async with paused(servers.rabbitmq):
        await asyncio.sleep(PAUSE_SECONDS)


async def broker_has_a_memory_alarm(servers: Servers, _: Stack) -> None:
    await servers.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1MB")
    await asyncio.sleep(2 * SHORT_SECONDS)
    await servers.rabbitmqctl("set_vm_memory_high_watermark", "0.6")


async def broker_links_are_half_open(_: Servers, stack: Stack) -> None:
    stack.links["worker-broker"].strand()
    stack.links["gateway-broker"].strand()
    await asyncio.sleep(1)


BROKER_FAULTS = [
    pytest.param(broker_restarts, marks=LONG),
    pytest.param(broker_is_killed, marks=LONG),
    broker_is_paused,
    pytest.param(broker_has_a_memory_alarm, marks=LONG),
    pytest.param(broker_links_are_half_open, marks=LONG),
]


@pytest.mark.parametrize("fault", BROKER_FAULTS, ids=lambda fault: fault.__name__)
async def test_when(fault: Fault, breakable: Servers, stack: Stack) -> None:
    """Checks that reads work, deadlines are met, all recovers within 30 s, and unknown writes are resolved."""
    reads: list[int] = []
    async with Load(stack.client).running() as load, reading(stack.client, reads):
        await eventually(lambda: wrote(load, stack))
        await fault(breakable, stack)
        await eventually(lambda: create(stack), within_seconds=30)

    assert set(reads) == {200}
    assert set(load.statuses) <= {201, 202, 503, 504}, load.statuses
    assert load.titles(503, 504), "the fault was not felt"
    assert load.slowest_seconds < WAIT_SECONDS + PUBLISH_TIMEOUT_SECONDS + 1
    await check(load, stack)
    await told_truthfully(load, stack)


@pytest.mark.long
async def test_writes_withdrawn_while_the_broker_is_blocked_never_act(breakable: Servers, stack: Stack) -> None:
    await eventually(lambda: create(stack))
    await breakable.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1MB")
    await eventually(lambda: is_withdrawn(stack))
    titles = [uuid4().hex for _ in range(WITHDRAWN)]
    at_once = httpx.Limits(max_connections=WITHDRAWN)
    async with httpx.AsyncClient(
        base_url=stack.client.base_url, headers=stack.client.headers, limits=at_once, timeout=60
    ) as client:
        responses = await asyncio.gather(
            *(client.post("/notes/", json={"title": title, "description": ""}) for title in titles)
        )
    await breakable.rabbitmqctl("set_vm_memory_high_watermark", "0.6")

    await eventually(lambda: create(stack), within_seconds=30)
    assert {(response.status_code, response.json()["code"]) for response in responses} == {(503, "not_accepted")}
    assert not set(titles) & await stack.titles()


async def test_deleted_queue_is_declared_and_consumed_again(breakable: Servers, stack: Stack) -> None:
    assert await create(stack)
    for partition in range(2):
        await breakable.rabbitmqctl("delete_queue", f"{stack.queue_prefix}.commands.v1.{partition}")

    await eventually(lambda: create(stack), within_seconds=30)
    assert stack.worker.running
    assert stack.gateway.running


async def test_delivery_that_the_broker_takes_back_for_its_age_has_one_effect(breakable: Servers, stack: Stack) -> None:
    for setting in ("consumer_timeout, 2000", "channel_tick_interval, 500"):
        await breakable.rabbitmqctl("eval", f"application:set_env(rabbit, {setting}).")
    await stack.worker.stop()
    await stack.worker.start()
    lock = await asyncpg.connect(stack.database_url)
    await lock.execute("begin; lock table users in access exclusive mode")
    assert (await stack.client.post("/notes/", json={"title": "held", "description": ""})).status_code == 202
    await eventually(lambda: logged(stack, "the broker ended the subscription"))
    await lock.close()

    await eventually(lambda: exists("held", stack), within_seconds=30)
    await eventually(lambda: create(stack), within_seconds=30)
    assert await stack.value("select count(*) from notes where title = 'held'") == 1
    for setting in ("consumer_timeout, 1800000", "channel_tick_interval, 60000"):
        await breakable.rabbitmqctl("eval", f"application:set_env(rabbit, {setting}).")


async def test_doctor_reports_a_memory_alarm(breakable: Servers, stack: Stack) -> None:
    assert (await examined(stack))["alarms"] == "ok"

    await breakable.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        findings = await examined(stack)
    finally:
        await breakable.rabbitmqctl("set_vm_memory_high_watermark", "0.6")

    assert [check for check, verdict in findings.items() if verdict == "problem"] == ["alarms"]


async def test_doctor_counts_what_a_worker_has_and_has_not_acknowledged(
    breakable: Servers, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_metrics, "PORT", breakable.broker_metrics_port)
    environment = {name.removeprefix("INKWELL_").lower(): value for name, value in stack.environment.items()}
    settings = WorkerSettings.model_validate(environment)
    await stack.worker.stop()
    for number in range(5):
        response = await stack.client.post("/notes", json={"title": f"{number}", "description": ""})
        assert response.status_code == 202

    async def messages(state: str) -> int:
        found = [finding.found async for finding in check_broker(settings, "test")]
        return sum(map(int, re.findall(rf"(\d+) {state}", "; ".join(found))))

    async def are_counted() -> bool:
        return (await messages("messages wait"), await messages("are unacknowledged")) == (0, 5)

    topology = Topology.of(settings)
    async with await aio_pika.connect(breakable.services.broker_url) as connection:
        for partition in range(topology.partitions):
            queue = await (await connection.channel()).get_queue(topology.command_queue(partition))
            await queue.consume(ignore)
        await eventually(are_counted, within_seconds=30)


async def ignore(_: object) -> None:
    """What a stuck worker logs."""


async def examined(stack: Stack) -> dict[str, str]:
    """The findings of a worker's doctor, which needs the worker's environment."""
    environment = {**os.environ, **stack.environment}
    command = [sys.executable, "-m", "worker", "doctor", "--json"]
    ended = await asyncio.to_thread(
        subprocess.run, command, env=environment, cwd=ROOT, check=False, capture_output=True
    )
    lines = map(json.loads, ended.stdout.splitlines())
    return {line["check"]: line["level"] for line in lines}


@asynccontextmanager
async def paused(container: DockerContainer) -> AsyncIterator[None]:
    """Stops every process of a container for the block; their sockets stay open."""
    await asyncio.to_thread(container.get_wrapped_container().pause)
    try:
        yield
    finally:
        await asyncio.to_thread(container.get_wrapped_container().unpause)


@asynccontextmanager
async def reading(client: httpx.AsyncClient, statuses: list[int]) -> AsyncIterator[None]:
    """Reads all the time and records the statuses."""

    async def read() -> None:
        while True:
            statuses.append((await client.get("/notes/?limit=1")).status_code)
            await asyncio.sleep(0.1)

    async with AsyncExitStack() as exits:
        task = asyncio.create_task(read())
        exits.callback(task.cancel)
        yield


async def told_truthfully(load: Load, stack: Stack) -> None:
    """Checks that the URL of each unconfirmed write says `applied` if it has an effect, and `unknown` if not."""
    titles = await stack.titles()
    for title in load.titles(504):
        response = load.responses[title]
        assert response
        state: dict[str, Any] = (await stack.client.get(response.json()["command"])).json()
        assert state["status"] == ("applied" if title in titles else "unknown")


async def wrote(load: Load, stack: Stack) -> bool:
    return len(load.titles(201) & await stack.titles()) > 10


async def create(stack: Stack) -> bool:
    response = await stack.client.post("/notes/", json={"title": uuid4().hex, "description": ""})
    return response.status_code == 201


async def is_withdrawn(stack: Stack) -> bool:
    """Whether the gateway has noticed that it is blocked: a write is refused, not unconfirmed."""
    response = await stack.client.post("/notes/", json={"title": uuid4().hex, "description": ""})
    return response.status_code == 503


async def exists(title: str, stack: Stack) -> bool:
    return title in await stack.titles()


async def logged(stack: Stack, text: str) -> bool:
    """Whether the worker has logged an error that contains the text."""
    return any(text in str(event) for event in stack.worker.events() if event.get("level") == "warning")
