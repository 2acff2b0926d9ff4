"""How the workers take slots, and how the slots determine the assignment of the partitions."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from math import ceil

import aio_pika
import httpx
import pytest
from asyncpg import Connection, Record
from sqlalchemy import make_url

from dev.backend import Services
from shared.clock import Clock
from shared.contracts import Outcome, encode_batch, encode_command
from shared.database import Session, Statement, connect
from shared.primary import Primary
from shared.topology import Topology
from tests.support import harness
from tests.support.commands import create
from tests.support.harness import eventually
from tests.support.proxy import Proxy, proxy_to
from worker import consumer, partition_assignment, subscriptions
from worker.consumer import Consumer
from worker.deliveries import Batch
from worker.failures import Applier
from worker.health import create_health_app
from worker.partition_assignment import PartitionAssignment, find_slot
from worker.retry import apply_with_retries
from worker.settings import WorkerSettings
from worker.traces import BatchTrace

INTERVAL_SECONDS = 0.1
PARTITIONS = 2

Publish = Callable[[int], Awaitable[None]]


class Worker(PartitionAssignment):
    """The part of a worker that takes a slot."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings, Clock())

    async def has(self, slot: int) -> bool:
        return self.slot == slot

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Worker"]:
        task = asyncio.create_task(self.run())
        try:
            await self.wait_for_slot()
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture
async def publish(servers: Services, worker_settings: WorkerSettings) -> AsyncIterator[Publish]:
    """Publishes one command to a partition."""
    topology = Topology.of(worker_settings)
    async with await aio_pika.connect(servers.broker_url) as connection:
        channel = await connection.channel(on_return_raises=True)
        await harness.declare_on(channel, topology)

        async def publish(partition: int) -> None:
            message = aio_pika.Message(encode_batch([encode_command(create())]))
            await channel.default_exchange.publish(message, topology.command_queue(partition))

        yield publish


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots are checked more often than in production."""
    monkeypatch.setattr(partition_assignment, "CHECK_INTERVAL_SECONDS", INTERVAL_SECONDS)


def test_every_worker_has_a_partition_and_none_more_than_twice_its_share() -> None:
    for partitions in range(1, 65):
        for workers in range(1, partitions + 1):
            shares = Counter(find_slot(partition, range(workers), partitions) for partition in range(partitions))
            assert set(shares) == set(range(workers))
            assert max(shares.values()) <= ceil(2 * partitions / workers)


def test_four_workers_have_two_of_eight_partitions_each() -> None:
    assert [find_slot(partition, range(4), 8) for partition in range(8)] == [0, 0, 2, 2, 1, 1, 3, 3]


def test_neighbor_has_the_partitions_of_a_slot_that_nobody_holds() -> None:
    assert [find_slot(partition, {0, 1, 3}, 8) for partition in range(8)] == [0, 0, 0, 0, 1, 1, 3, 3]


def test_worker_beyond_the_number_of_partitions_has_none() -> None:
    assert {find_slot(partition, {0, 8, 100}, 8) for partition in range(8)} == {0}
    assert find_slot(0, {8, 100}, 8) is None


async def test_smallest_slots_are_taken_first(worker_settings: WorkerSettings) -> None:
    async with AsyncExitStack() as running:
        workers = [await running.enter_async_context(Worker(worker_settings).running()) for _ in range(4)]
        assert [worker.slot for worker in workers] == [0, 1, 2, 3]


async def test_slots_are_of_one_queue_prefix(worker_settings: WorkerSettings) -> None:
    other = worker_settings.model_copy(update={"queue_prefix": "other"})
    async with Worker(worker_settings).running() as mine, Worker(other).running() as theirs:
        assert (mine.slot, theirs.slot) == (0, 0)


async def test_workers_that_start_at_once_have_a_slot_each(worker_settings: WorkerSettings) -> None:
    async with AsyncExitStack() as running:
        workers = [Worker(worker_settings) for _ in range(6)]
        await asyncio.gather(*(running.enter_async_context(worker.running()) for worker in workers))
        assert sorted(worker.slot or 0 for worker in workers) == list(range(6))


async def test_freed_slot_is_taken_by_the_highest_and_no_other_worker_moves(worker_settings: WorkerSettings) -> None:
    workers = [Worker(worker_settings) for _ in range(4)]
    async with AsyncExitStack() as running:
        async with workers[0].running():
            for worker in workers[1:]:
                await running.enter_async_context(worker.running())
        await eventually(lambda: workers[3].has(0))
        await asyncio.sleep(3 * INTERVAL_SECONDS)
        assert [worker.slot for worker in workers[1:]] == [1, 2, 0]


async def test_several_that_move_at_once_end_with_the_smallest_slots_and_hold_no_others(
    worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    workers = [Worker(worker_settings) for _ in range(6)]
    async with AsyncExitStack() as staying:
        async with AsyncExitStack() as leaving:
            for number, worker in enumerate(workers):
                await (leaving if number in (0, 2, 3) else staying).enter_async_context(worker.running())
        left = [workers[number] for number in (1, 4, 5)]
        await eventually(lambda: have(left, {0, 1, 2}))
        assert left[0].slot == 1
        assert await taken(database) == [0, 1, 2]


async def test_slot_stays_while_postgres_is_away_and_is_taken_again(
    worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    async with linked(worker_settings) as (settings, link), Worker(settings).running() as worker:
        await link.cut()
        await eventually(lambda: frees(database, 0))
        await asyncio.sleep(3 * INTERVAL_SECONDS)
        assert worker.slot == 0
        await link.start()
        await eventually(lambda: takes(database, 0))
        assert worker.slot == 0


async def test_slot_that_another_worker_took_while_postgres_was_down_is_left_to_it(
    worker_settings: WorkerSettings,
) -> None:
    async with (
        linked(worker_settings) as (settings, link),
        Worker(settings).running() as away,
        Worker(worker_settings).running() as other,
    ):
        await link.cut()
        await eventually(lambda: other.has(0))
        await link.start()
        await eventually(lambda: away.has(1))
        assert (away.slot, other.slot) == (1, 0)


async def test_worker_moves_to_its_new_slot_and_goes_on(
    worker_settings: WorkerSettings, database: "Connection[Record]", publish: Publish
) -> None:
    async with AsyncExitStack() as running:
        async with Worker(worker_settings).running():
            consuming = await running.enter_async_context(harness.worker(worker_settings))
            assert consuming.slot == 1
            for _ in range(50):
                await publish(0)
        await eventually(lambda: has_moved(consuming))
        await publish(0)
        await eventually(lambda: has_notes(database, 51))
    assert await database.fetchval("select count(*) from commands") == 51


async def test_partition_is_given_back_to_the_worker_that_it_belongs_to_and_taken_over_when_that_one_stops(
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    appliers: list[Applier] = []
    published = 0

    async def apply(batch: Batch, applier: Applier, trace: BatchTrace, stopping: asyncio.Event) -> list[Outcome]:
        appliers.append(applier)
        return await apply_with_retries(batch, applier, trace, stopping)

    async def publish_until_applied_by(worker: Consumer) -> None:
        nonlocal published
        while worker._applier not in appliers[-1:]:
            await publish(1)
            published += 1
            await asyncio.sleep(INTERVAL_SECONDS)

    monkeypatch.setattr(subscriptions, "KEPT_SECONDS", INTERVAL_SECONDS)
    monkeypatch.setattr(consumer, "apply_with_retries", apply)
    async with asyncio.timeout(20), harness.worker(worker_settings) as first:
        await publish_until_applied_by(first)
        async with harness.worker(worker_settings) as second:
            await publish_until_applied_by(second)
            await publish(1)
            await eventually(lambda: has_notes(database, published + 1))
            assert appliers[-1] is second._applier
        await publish_until_applied_by(first)
        await eventually(lambda: has_notes(database, published + 1))


async def test_partitions_of_a_worker_that_does_not_consume_are_served_by_another(
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscriptions, "KEPT_SECONDS", INTERVAL_SECONDS)
    async with Worker(worker_settings).running(), harness.worker(worker_settings) as consuming:
        assert consuming.slot == 1
        for _ in range(20):
            await publish(0)
            await asyncio.sleep(INTERVAL_SECONDS / 2)
        await eventually(lambda: has_notes(database, 20))


async def test_worker_that_can_have_no_slot_stands_by_and_consumes_all_the_same(
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        partition_assignment, "TAKE", Statement("select no_such_function($1, $2)", partition_assignment.TAKE.parameters)
    )
    async with harness.worker(worker_settings) as consuming:
        await publish(0)
        await eventually(lambda: has_notes(database, 1))
        assert consuming.slot is None


async def test_standby_worker_is_ready_and_reports_its_slot(worker_settings: WorkerSettings) -> None:
    async with AsyncExitStack() as running:
        for _ in range(PARTITIONS):
            await running.enter_async_context(Worker(worker_settings).running())
        consuming = await running.enter_async_context(harness.worker(worker_settings))
        app = httpx.ASGITransport(create_health_app(consuming))
        client = await running.enter_async_context(httpx.AsyncClient(transport=app, base_url="http://worker"))
        response = await client.get("/health/ready")

    assert response.status_code == 200
    assert response.json() == {"status": "consuming", "slot": PARTITIONS, "partitions": [0, 1]}


@asynccontextmanager
async def linked(settings: WorkerSettings) -> AsyncIterator[tuple[WorkerSettings, Proxy]]:
    """Settings of a worker whose link to Postgres can be cut."""
    url = make_url(str(settings.database_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 5432) as link:
        moved = url.set(host="127.0.0.1", port=link.port).render_as_string(hide_password=False)
        yield WorkerSettings.model_validate(settings.model_dump() | {"database_url": moved}), link


async def have(workers: Sequence[Worker], slots: set[int]) -> bool:
    return {worker.slot for worker in workers} == slots


async def taken(database: "Connection[Record]") -> list[int]:
    """The slots that are held in the test's database."""
    rows = await database.fetch(
        "select objid::int as slot from pg_locks where locktype = 'advisory' and objsubid = 2 "
        "and database = (select oid from pg_database where datname = current_database()) order by 1"
    )
    return [row["slot"] for row in rows]


async def takes(database: "Connection[Record]", slot: int) -> bool:
    return slot in await taken(database)


async def frees(database: "Connection[Record]", slot: int) -> bool:
    return slot not in await taken(database)


async def has_moved(consuming: Consumer) -> bool:
    return consuming.slot == 0 and len(consuming.partitions) == PARTITIONS


async def has_notes(database: "Connection[Record]", count: int) -> bool:
    return bool(await database.fetchval("select count(*) = $1 from notes", count))


SLOTS = "select count(*) from pg_stat_activity where application_name = 'inkwell-worker slot'"


async def test_slot_at_a_former_primary_is_given_up(
    worker_settings: WorkerSettings, database: "Connection[Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_assignment, "CHECK_INTERVAL_SECONDS", INTERVAL_SECONDS)
    primary = Primary.of(worker_settings.database_url.get_secret_value())
    async with Worker(worker_settings).running():
        await eventually(lambda: number_of_slots(database, 1))
        assert primary.timeline

        primary.observe(replace(primary.timeline, number=primary.timeline.number + 1))

        await eventually(lambda: number_of_slots(database, 0))


async def number_of_slots(database: "Connection[Record]", number: int) -> bool:
    return bool(await database.fetchval(SLOTS) == number)


async def test_silent_server_ends_the_trust_in_the_idle_sessions_of_the_worker(
    worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_assignment, "CHECK_INTERVAL_SECONDS", INTERVAL_SECONDS)
    monkeypatch.setattr(partition_assignment, "SILENCE_TIMEOUT_SECONDS", 0.5)
    url = make_url(str(worker_settings.database_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 0) as link:
        moved = url.set(host="127.0.0.1", port=link.port).render_as_string(hide_password=False)
        settings = WorkerSettings.model_validate(worker_settings.model_dump() | {"database_url": moved})
        session = await connect(settings.database_url, "test")
        primary = Primary.of(settings.database_url.get_secret_value())
        async with Worker(settings).running():
            assert primary.is_trusted(session)
            link.freeze()

            await eventually(lambda: is_doubted(primary, session), within_seconds=5)
        link.thaw()
        await session.close()


async def is_doubted(primary: Primary, session: Session) -> bool:
    return not primary.is_trusted(session)
