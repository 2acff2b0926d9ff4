"""A command expires by Postgres' clock, and only where its own time is Postgres' too or it may have been decided."""

import asyncio
from datetime import UTC, datetime, timedelta

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from asyncpg import Connection, Record

from dev.backend import Services
from shared.connections import Connections
from shared.contracts import BadCommand, encode_batch, encode_command
from shared.messaging import Topology
from tests import harness
from tests.commands import create
from tests.harness import eventually
from worker.apply import apply_batch
from worker.settings import WorkerSettings

MAX_AGE = timedelta(days=3)
OLD = datetime.now(UTC) - timedelta(days=4)


async def test_command_with_a_time_of_postgres_expires(connections: Connections) -> None:
    old, young = create(time=OLD, may_expire=True), create(may_expire=True)

    outcomes = await apply_batch(connections, [old, young], MAX_AGE)

    assert [(each.status, each.reason) for each in outcomes] == [("failed", "expired"), ("applied", None)]


@pytest.mark.parametrize("days", [-365, -30, -4, 4, 30, 365])
async def test_command_with_a_time_of_another_clock_is_applied_however_old_it_looks(
    connections: Connections, days: int
) -> None:
    time = datetime.now(UTC) + timedelta(days=days)

    [outcome] = await apply_batch(connections, [create(time=time)], MAX_AGE)

    assert outcome.status == "applied"


async def test_command_whose_time_cannot_be_read_is_a_bad_command_as_before(connections: Connections) -> None:
    [outcome] = await apply_batch(connections, [BadCommand(create().id, "invalid_command", "{}")], MAX_AGE)

    assert (outcome.status, outcome.reason) == ("failed", "invalid_command")


async def test_redelivered_command_expires_whatever_clock_its_time_is_of_since_its_outcome_may_have_been_pruned(
    servers: Services, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    topology = Topology.of(worker_settings)
    await harness.declare(servers, topology)
    async with await aio_pika.connect(servers.broker_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(topology.commands_exchange)
        for title in ("again", "first"):
            message = aio_pika.Message(encode_batch([encode_command(create(title, time=OLD))]))
            await exchange.publish(message, topology.command_queue(0))
        await take_without_an_answer(channel, topology.command_queue(0))

    async with harness.worker(worker_settings):
        outcomes = await eventually(lambda: two_outcomes(database))

    assert outcomes == {("failed", "expired"), ("applied", None)}
    assert await database.fetchval("select title from notes") == "first"


async def take_without_an_answer(channel: aio_pika.abc.AbstractChannel, name: str) -> None:
    """Takes the first message of a queue, which comes again when the channel closes."""
    taken: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await channel.set_qos(prefetch_count=1)
    await (await channel.get_queue(name)).consume(taken.put)
    assert b"again" in (await taken.get()).body


async def two_outcomes(database: "Connection[Record]") -> set[tuple[str, str | None]] | None:
    rows = await database.fetch("select status, reason from commands")
    return {(row["status"], row["reason"]) for row in rows} if len(rows) == 2 else None
