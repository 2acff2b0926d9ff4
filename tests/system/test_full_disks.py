"""A full disk loses no accepted write, and everything recovers once there is space again."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from shared import broker_metrics
from shared.broker_metrics import read_broker_metrics
from shared.doctor import Finding, Level, check_broker
from tests.support.harness import eventually
from tests.support.stack import Load, Stack, check
from tests.system.compose_servers import ComposeServers, compose_servers
from tests.system.servers import stack_on
from tests.system.test_outages import PUBLISH_TIMEOUT_SECONDS, WAIT_SECONDS, create, logged, reading, wrote
from worker.settings import WorkerSettings

DISK_LIMIT_MEGABYTES = 50
FULL_SECONDS = float(os.environ.get("FULL_SECONDS", "3"))

pytestmark = pytest.mark.needs_docker


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeServers]:
    with compose_servers(tmp_path_factory.mktemp("disks"), DISK_LIMIT_MEGABYTES) as servers:
        yield servers


@pytest.fixture
async def stack(compose: ComposeServers, tmp_path: Path) -> AsyncIterator[Stack]:
    async with stack_on(
        compose.services, f"test-{uuid4().hex[:12]}", tmp_path, wait_seconds=str(WAIT_SECONDS)
    ) as stack:
        yield stack
        for disk in ("postgres", "rabbitmq"):  # also after a failure, which the next test must not meet
            await asyncio.to_thread(compose.free, disk)


async def test_broker_restarts_by_itself_once_its_full_disk_has_room(
    compose: ComposeServers, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_metrics, "PORT", compose.broker_metrics_port)
    settings = settings_of(stack)
    reads: list[int] = []

    async def has_lost_its_queues() -> bool:
        nodes = (await read_broker_metrics(settings.broker_url)).values()
        return any(not node.has_raft for node in nodes)

    async with Load(stack.client).running() as load, reading(stack.client, reads):
        await eventually(lambda: wrote(load, stack))
        await asyncio.to_thread(compose.fill, "rabbitmq")
        await eventually(has_lost_its_queues, within_seconds=150)  # it has space in hand for many messages
        findings = await findings_of(settings)
        await asyncio.to_thread(compose.free, "rabbitmq")
        await eventually(lambda: create(stack), within_seconds=30)

    assert [(finding.level, finding.check) for finding in findings] == [(Level.PROBLEM, "queues")]
    assert "restart the node" in findings[0].advice
    assert set(reads) == {200}
    assert set(load.statuses) <= {201, 202, 503, 504}, load.statuses
    assert load.slowest_seconds < WAIT_SECONDS + PUBLISH_TIMEOUT_SECONDS + 1
    await check(load, stack)


async def test_low_disk_refuses_writes_at_once_and_recovers(compose: ComposeServers, stack: Stack) -> None:
    await eventually(lambda: create(stack))
    await asyncio.to_thread(compose.leave, "rabbitmq", DISK_LIMIT_MEGABYTES - 20)
    await eventually(lambda: refuses(stack), within_seconds=30)
    alarms = [finding for finding in await findings_of(settings_of(stack)) if finding.check == "alarms"]
    async with Load(stack.client).running() as load:
        await asyncio.sleep(3)
    await asyncio.to_thread(compose.free, "rabbitmq")

    assert set(load.statuses) == {503}, load.statuses
    assert load.slowest_seconds < 1
    assert [finding.level for finding in alarms] == [Level.PROBLEM]
    await eventually(lambda: create(stack), within_seconds=30)
    assert not load.titles(503) & await stack.titles()


@pytest.mark.parametrize("is_log_full", [pytest.param(False, marks=pytest.mark.long), True])
async def test_postgres_whose_disk_is_full_applies_what_waits_once_there_is_room(
    compose: ComposeServers, stack: Stack, *, is_log_full: bool
) -> None:
    reads: list[int] = []
    async with Load(stack.client).running() as load, reading(stack.client, reads):
        await eventually(lambda: wrote(load, stack))
        await asyncio.to_thread(compose.fill, "postgres")
        if is_log_full:
            await eventually(lambda: waits_to_start(compose, stack), within_seconds=60)
        else:
            await eventually(lambda: logged(stack, "53100"), within_seconds=60)
        await asyncio.sleep(FULL_SECONDS)
        await asyncio.to_thread(compose.free, "postgres")
        await eventually(lambda: create(stack), within_seconds=30)

    assert set(load.statuses) <= {201, 202}, load.statuses
    assert load.slowest_seconds < WAIT_SECONDS + PUBLISH_TIMEOUT_SECONDS + 1
    assert set(reads) <= ({200, 503} if is_log_full else {200})
    await check(load, stack)


async def waits_to_start(compose: ComposeServers, stack: Stack) -> bool:
    """Whether Postgres has ended because its WAL has no space; each call makes it start a new WAL file until then."""
    with suppress(asyncpg.PostgresError, OSError, TimeoutError):
        await stack.script("select pg_logical_emit_message(true, 'filling', 'x'), pg_switch_wal()")
    return "Postgres waits to start" in await asyncio.to_thread(compose.compose, "logs", "postgres")


async def refuses(stack: Stack) -> bool:
    response = await stack.client.post("/notes/", json={"title": "refused", "description": ""})
    return response.status_code == 503


def settings_of(stack: Stack) -> WorkerSettings:
    environment = {name.removeprefix("INKWELL_").lower(): value for name, value in stack.environment.items()}
    return WorkerSettings.model_validate(environment)


async def findings_of(settings: WorkerSettings) -> list[Finding]:
    return [finding async for finding in check_broker(settings, "test")]
