"""What takes too long in a worker ends, and its messages are delivered again."""

import pytest
from asyncpg import Connection, Record

from tests.support import harness
from tests.support.commands import Publish, create
from tests.support.harness import eventually
from worker import consumer as consumer_module
from worker.consumer import Consumer
from worker.settings import WorkerSettings


async def test_batch_that_takes_too_long_goes_back_to_its_queue_and_has_one_effect(
    publish: Publish, database: "Connection[Record]", worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "BATCH_TIMEOUT_SECONDS", 0.5)
    async with harness.worker(worker_settings) as consumer:
        async with database.transaction():
            await database.execute("lock table commands in exclusive mode")  # a worker retries for 15 s
            await publish(create("late"))
            await eventually(lambda: gives_back(consumer))
        await eventually(lambda: has_outcome(database))
        assert not consumer.is_stuck

    assert await database.fetchval("select count(*) from notes where title = 'late'") == 1


async def gives_back(consumer: Consumer) -> bool:
    """Whether it has closed its channels."""
    return not consumer.partitions


async def has_outcome(database: "Connection[Record]") -> bool:
    return bool(await database.fetchval("select count(*) from commands where status = 'applied'"))
