"""A session that holds an owner's row delays only that owner."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import aio_pika
import pytest
from asyncpg import Connection, Record
from structlog.testing import capture_logs

from dev.backend import Services
from shared.connections import Connections
from shared.contracts import ChangeUser
from shared.topology import Topology
from tests.support import harness
from tests.support.commands import Publish, attributes, create, patch
from tests.support.harness import eventually
from worker.apply import apply_batch
from worker.repartition import drain_partition
from worker.settings import WorkerSettings

HELD_SECONDS = int(os.environ.get("HELD_SECONDS", "8"))
LOCKED = "owners are locked by another session; their commands wait, and those of the others are applied"


@pytest.fixture
def worker_settings(worker_settings: WorkerSettings) -> WorkerSettings:
    """With one partition."""
    return worker_settings.model_copy(update={"partitions": 1})


@pytest.fixture
async def owners(database: "Connection[Record]") -> tuple[int, int]:
    """Two users: one whose row gets locked, and one who writes in the meantime."""
    names = "insert into users (name, folded_name) values ('Grace', 'grace'), ('Bob', 'bob') returning id"
    locked, other = [row["id"] for row in await database.fetch(names)]
    return locked, other


@asynccontextmanager
async def held(database: "Connection[Record]", statement: str) -> AsyncIterator[None]:
    """An operator's transaction that executes this and stays open for the block."""
    async with database.transaction():
        await database.execute(statement)
        yield


def rename(owner: int, name: str) -> ChangeUser:
    return ChangeUser.model_validate(attributes() | {"owner": owner, "data": {"name": name}})


async def titles(database: "Connection[Record]", owner: int) -> list[str]:
    rows = await database.fetch("select title from notes where owner_id = $1 order by mod_revision", owner)
    return [row["title"] for row in rows]


async def has(database: "Connection[Record]", owner: int, *expected: str) -> bool:
    return await titles(database, owner) == list(expected)


async def waiting(channel: aio_pika.abc.AbstractChannel, settings: WorkerSettings) -> int | None:
    """The number of messages in the queue of a stopped worker."""
    queue = await channel.declare_queue(Topology.of(settings).command_queue(0), passive=True)
    return queue.declaration_result.message_count


async def test_others_write_on_while_one_owners_row_is_locked_and_that_ones_writes_follow_in_order(
    publish: Publish, database: "Connection[Record]", worker_settings: WorkerSettings, owners: tuple[int, int]
) -> None:
    locked, other = owners
    now = asyncio.get_running_loop().time
    async with harness.worker(worker_settings):
        await publish(create("first", owner=locked), create("first", owner=other))
        await eventually(lambda: has(database, other, "first"))
        with capture_logs() as logs:
            async with held(database, f"select from users where id = {locked} for update"):
                ends, number, slowest = now() + HELD_SECONDS, 0, 0.0
                while now() < ends:
                    number += 1
                    started = now()
                    commands = [create(f"{number}", owner=other)]
                    if number <= 10:
                        commands.insert(0, create(f"{number}", owner=locked))
                    await publish(*commands)
                    expected = ["first", *map(str, range(1, number + 1))]
                    await eventually(partial(has, database, other, *expected))
                    slowest = max(slowest, now() - started)
        await eventually(lambda: has(database, locked, "first", *map(str, range(1, 11))))

    assert number > 10
    assert slowest < HELD_SECONDS / 2
    [warning] = [each for each in logs if each["event"] == LOCKED]
    assert warning["owners"] == [locked]
    assert "55P03" in warning["error"]


async def test_message_is_acknowledged_when_all_in_it_is_decided_and_no_sooner(
    publish: Publish,
    channel: aio_pika.abc.AbstractChannel,
    database: "Connection[Record]",
    worker_settings: WorkerSettings,
    owners: tuple[int, int],
) -> None:
    locked, other = owners
    async with held(database, f"select from users where id = {locked} for update"):
        async with harness.worker(worker_settings):
            await publish(create("0", owner=other))
            await publish(create("1", owner=other), create("parked", owner=locked))
            await publish(create("2", owner=other))
            await publish(create("3", owner=other))
            await eventually(lambda: has(database, other, "0", "1", "2", "3"))
        assert await eventually(lambda: waiting(channel, worker_settings)) == 1  # the others are not redelivered

    async with harness.worker(worker_settings):
        await eventually(lambda: has(database, locked, "parked"))
    assert not await waiting(channel, worker_settings)
    assert await titles(database, other) == ["0", "1", "2", "3"]


async def test_partition_is_not_drained_before_parked_commands_are_decided(
    servers: Services,
    publish: Publish,
    database: "Connection[Record]",
    worker_settings: WorkerSettings,
    owners: tuple[int, int],
) -> None:
    locked, other = owners
    async with harness.worker(worker_settings), await aio_pika.connect(servers.broker_url) as connection:
        async with held(database, f"select from users where id = {locked} for update"):
            await publish(create("parked", owner=locked), create("0", owner=other))
            await eventually(lambda: has(database, other, "0"))
            draining = asyncio.create_task(drain_partition(connection, Topology.of(worker_settings), 0))
            await publish(create("1", owner=other))
            await eventually(lambda: has(database, other, "0", "1"))
            done, _ = await asyncio.wait([draining], timeout=1)
        await draining
        assert await titles(database, locked) == ["parked"]
    assert not done


async def test_note_whose_row_is_locked_delays_its_owner_alone(
    publish: Publish,
    connections: Connections,
    database: "Connection[Record]",
    worker_settings: WorkerSettings,
    owners: tuple[int, int],
) -> None:
    locked, other = owners
    [created] = await apply_batch(connections, [create("Ink", owner=locked)])
    async with harness.worker(worker_settings):
        async with held(database, f"select from notes where id = {created.note_id} for update"):
            await publish(patch(created.note_id or 0, "Pen", owner=locked), create("other", owner=other))
            await eventually(lambda: has(database, other, "other"))
            assert await titles(database, locked) == ["Ink"]
        await eventually(lambda: has(database, locked, "Pen"))


async def test_locked_table_delays_all_owners_and_nothing_is_lost(
    publish: Publish, database: "Connection[Record]", worker_settings: WorkerSettings, owners: tuple[int, int]
) -> None:
    locked, other = owners
    async with harness.worker(worker_settings):
        async with held(database, "lock table notes in access exclusive mode"):
            await publish(create("1", owner=locked), create("1", owner=other))
            await asyncio.sleep(2)
        await eventually(lambda: has(database, locked, "1"))
        await eventually(lambda: has(database, other, "1"))


async def test_account_and_notes_of_a_locked_owner_stay_in_their_order(
    publish: Publish, database: "Connection[Record]", worker_settings: WorkerSettings, owners: tuple[int, int]
) -> None:
    locked, other = owners
    async with harness.worker(worker_settings):
        async with held(database, f"select from users where id = {locked} for update"):
            await publish(create("1", owner=locked), create("1", owner=other))
            await eventually(lambda: has(database, other, "1"))
            await publish(rename(locked, "Ada"), create("2", owner=locked), create("2", owner=other))
            await eventually(lambda: has(database, other, "1", "2"))
            assert await titles(database, locked) == []
        await eventually(lambda: has(database, locked, "1", "2"))
    assert await database.fetchval("select name from users where id = $1", locked) == "Ada"
