"""What takes too long in a worker ends, and its messages are delivered again."""

import asyncio
from typing import Any

import pytest
from asyncpg import Connection, Record
from structlog.testing import capture_logs

from shared.contracts import Outcome
from tests.support import harness
from tests.support.commands import Publish, create
from tests.support.harness import eventually
from worker import consumer as consumer_module
from worker import retry
from worker.consumer import Consumer
from worker.deliveries import Batch
from worker.settings import WorkerSettings
from worker.subscriptions import Subscription, Subscriptions


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


async def test_batch_that_postgres_refuses_for_too_long_goes_back_to_its_queue_and_has_one_effect(
    publish: Publish, database: "Connection[Record]", worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.5)
    async with harness.worker(worker_settings) as consumer:
        async with database.transaction():
            await database.execute("lock table commands in exclusive mode")
            await publish(create("refused"))
            await eventually(lambda: gives_back(consumer))
        await eventually(lambda: has_outcome(database))

    assert await database.fetchval("select count(*) from notes where title = 'refused'") == 1


@pytest.mark.parametrize("is_noticed", [True, False])
async def test_batch_whose_channel_is_lost_before_its_acknowledgement_has_one_effect(
    publish: Publish,
    database: "Connection[Record]",
    worker_settings: WorkerSettings,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_noticed: bool,
) -> None:
    losses: list[int] = []

    async def notice_late(_all: Subscriptions, _channel: object, _partition: int, subscription: Subscription) -> None:
        await subscription.ended.wait()
        await asyncio.sleep(0.2)

    async def apply_and_lose(batch: Batch, *arguments: Any) -> list[Outcome]:
        outcomes = await retry.apply_with_retries(batch, *arguments)
        if not losses:
            losses.append(len(outcomes))
            await batch.deliveries[0].message.channel.close()
        return outcomes

    monkeypatch.setattr(consumer_module, "apply_with_retries", apply_and_lose)
    if not is_noticed:
        monkeypatch.setattr(Subscriptions, "_watch", notice_late)
    with capture_logs() as logs:
        async with harness.worker(worker_settings):
            await publish(create("once"))
            await eventually(lambda: has_applied_again(logs))

    assert losses == [1]
    assert any(line["event"].startswith("acknowledgement dropped") for line in logs) is not is_noticed
    assert await database.fetchval("select count(*) from notes where title = 'once'") == 1


async def has_applied_again(logs: list[Any]) -> bool:
    """Whether a redelivered message has been applied."""
    return any(line["event"] == "batch applied" and line["redelivered"] for line in logs)


async def gives_back(consumer: Consumer) -> bool:
    """Whether it has closed its channels."""
    return not consumer.partitions


async def has_outcome(database: "Connection[Record]") -> bool:
    return bool(await database.fetchval("select count(*) from commands where status = 'applied'"))
