"""The worker's handling of valid and invalid messages, on a real broker and a real Postgres."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aio_pika
import pytest
from asyncpg import Connection, Record
from yarl import URL

from shared.connections import Connections
from shared.contracts import (
    LARGEST_MESSAGE_BYTES,
    CreateNote,
    encode_batch,
    encode_command,
)
from shared.topology import Topology
from tests.support import harness
from tests.support.commands import Publish, create
from tests.support.harness import eventually
from tests.support.proxy import proxy_to
from worker import fold, handlers
from worker.consumer import Consumer
from worker.decisions import NoteWritten
from worker.deliveries import BATCH_BYTES
from worker.settings import WorkerSettings
from worker.subscriptions import HELD_BYTES, prefetch_count

POISON_TRIGGER = """
create function refuse() returns trigger language plpgsql as $$
begin
  raise exception 'poisoned' using errcode = 'check_violation';
end $$;
create constraint trigger poison after insert on notes initially deferred
  for each row when (new.title = 'poison') execute function refuse();
"""


async def outcomes(database: "Connection[Record]") -> dict[str, int]:
    rows = await database.fetch("select status, count(*) from commands group by status")
    return {row["status"]: row["count"] for row in rows}


async def test_poison_in_a_batch_of_500_fails_alone(
    publish: Publish, database: "Connection[Record]", worker_settings: WorkerSettings
) -> None:
    await database.execute(POISON_TRIGGER)
    poison = create("poison")
    await publish(*[create() for _ in range(250)], poison, *[create() for _ in range(249)])

    async with harness.worker(worker_settings):
        await eventually(lambda: _has_outcomes(database, {"applied": 499, "failed": 1}))

    row = await database.fetchrow("select id, reason, command from commands where status = 'failed'")
    assert row
    assert (row["id"], row["reason"]) == (poison.id, "data_error")
    assert json.loads(row["command"]) == json.loads(encode_command(poison))
    assert await database.fetchval("select count(*) from notes") == 499


async def test_command_whose_handler_raises_fails_alone(
    publish: Publish, database: "Connection[Record]", worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fold, "create_note", raising_for("poison"))
    await publish(create(), create("poison"), create())

    async with harness.worker(worker_settings):
        await eventually(lambda: _has_outcomes(database, {"applied": 2, "failed": 1}))

    assert await database.fetchval("select reason from commands where status = 'failed'") == "handler_error"


async def test_second_command_that_fails_in_the_same_way_is_not_failed_but_waits_for_the_cause_to_go(
    publish: Publish, database: "Connection[Record]", worker_settings: WorkerSettings
) -> None:
    await database.execute(POISON_TRIGGER)
    await publish(create(), create("poison"), create("poison"), create())

    async with harness.worker(worker_settings):
        await eventually(lambda: _has_outcomes(database, {"applied": 1, "failed": 1}))
        await asyncio.sleep(1)
        assert await outcomes(database) == {"applied": 1, "failed": 1}
        await database.execute("drop trigger poison on notes")
        await eventually(lambda: _has_outcomes(database, {"applied": 3, "failed": 1}))


async def test_unreadable_goes_to_a_queue_of_its_own_and_its_neighbors_are_applied(
    publish: Publish,
    channel: aio_pika.abc.AbstractChannel,
    database: "Connection[Record]",
    worker_settings: WorkerSettings,
) -> None:
    no_id, bad_data = b'{"type": "note.create"}', json.loads(encode_command(create()))
    bad_data["data"] = {"title": 1}
    await publish(create(), no_id, json.dumps(bad_data).encode(), create())
    await publish(b"\xff not json")

    async with harness.worker(worker_settings):
        await eventually(lambda: _has_outcomes(database, {"applied": 2, "failed": 1}))
        queue = await channel.get_queue(Topology(worker_settings.queue_prefix, 2).unreadable_queue)
        first, second = [await _next(queue) for _ in range(2)]

    assert (json.loads(first), second) == (json.loads(no_id), b"[\xff not json]")


async def test_unreadable_message_stays_however_often_it_is_looked_at(
    publish: Publish, channel: aio_pika.abc.AbstractChannel, worker_settings: WorkerSettings
) -> None:
    await publish(b"\xff not json")

    async with harness.worker(worker_settings):
        queue = await channel.get_queue(Topology(worker_settings.queue_prefix, 2).unreadable_queue)
        for _ in range(30):
            looked_at = await eventually(lambda: queue.get(no_ack=False, fail=False))
            await looked_at.reject(requeue=True)

        assert await _next(queue) == b"[\xff not json]"


async def test_newer_version_of_a_known_type_pauses_its_partition_and_no_other(
    publish: Publish,
    channel: aio_pika.abc.AbstractChannel,
    database: "Connection[Record]",
    worker_settings: WorkerSettings,
) -> None:
    newer = json.loads(encode_command(create()))
    newer["dataversion"] = 2
    topology = Topology(worker_settings.queue_prefix, 2)
    queue = topology.command_queue(0)

    async with harness.worker(worker_settings) as consumer:
        await publish(json.dumps(newer).encode())
        await publish(create("behind the newer one"))
        await eventually(lambda: _consumes(consumer, {1}))
        other = aio_pika.Message(encode_batch([encode_command(create("in another partition"))]))
        await channel.default_exchange.publish(other, topology.command_queue(1))
        await eventually(lambda: _has_outcomes(database, {"applied": 1}))
        assert await database.fetchval("select title from notes") == "in another partition"

    async def waiting() -> int | None:
        return (await channel.declare_queue(queue, passive=True)).declaration_result.message_count

    assert await eventually(waiting) == 2


@pytest.mark.parametrize("count", ["abc", {"a": 1}, -1])
async def test_strange_delivery_count_is_no_reason_to_stop(
    channel: aio_pika.abc.AbstractChannel,
    database: "Connection[Record]",
    worker_settings: WorkerSettings,
    count: Any,
) -> None:
    topology = Topology.of(worker_settings)
    await harness.declare_on(channel, topology)
    message = aio_pika.Message(encode_batch([encode_command(create())]), headers={"x-delivery-count": count})
    await channel.default_exchange.publish(message, topology.command_queue(0))

    async with harness.worker(worker_settings):
        await eventually(lambda: _has_outcomes(database, {"applied": 1}))


async def test_worker_stops_while_it_connects(worker_settings: WorkerSettings) -> None:
    url = URL(str(worker_settings.broker_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 5672) as link:
        link.freeze("down")
        slow = worker_settings.model_dump() | {"broker_url": str(url.with_host("127.0.0.1").with_port(link.port))}
        settings = WorkerSettings.model_validate(slow)
        connections = Connections(settings.database_url, "test", size=1)
        consumer = Consumer(settings, connections)
        running = asyncio.create_task(consumer.run())
        await asyncio.wait([running], timeout=1)
        consumer.stop()
        link.thaw()

        await asyncio.wait_for(running, 5)
        connections.close()
    assert not consumer.partitions


async def test_batch_that_was_committed_but_not_acknowledged_has_one_effect(
    publish: Publish, database: "Connection[Record]", worker_settings: WorkerSettings
) -> None:
    command = create()
    for _ in range(2):  # as the broker does when the acknowledgement is lost
        await publish(command)
        async with harness.worker(worker_settings):
            await eventually(lambda: _has_outcomes(database, {"applied": 1}))

    assert await database.fetchval("select count(*) from notes") == 1


def raising_for(title: str) -> Callable[[CreateNote, int], NoteWritten]:
    """`create_note` with a bug for one title."""
    create_note = handlers.create_note

    def create_note_with_a_bug(command: CreateNote, note_id: int) -> NoteWritten:
        if command.data.title == title:
            raise RuntimeError("a bug")
        return create_note(command, note_id)

    return create_note_with_a_bug


async def _has_outcomes(database: "Connection[Record]", expected: dict[str, int]) -> bool:
    return await outcomes(database) == expected


async def _consumes(consumer: Consumer, partitions: set[int]) -> bool:
    return consumer.partitions == partitions


async def _next(queue: aio_pika.abc.AbstractQueue) -> bytes:
    async def message() -> aio_pika.abc.AbstractIncomingMessage | None:
        return await queue.get(fail=False, no_ack=True)

    return (await eventually(message)).body


@pytest.mark.parametrize("partitions", [1, 2, 8, 16, 100, 170])
@pytest.mark.parametrize("wanted", [1, 20, 1000])
def test_worker_prefetches_no_more_of_the_largest_messages_than_its_memory_holds(
    worker_settings: WorkerSettings, partitions: int, wanted: int
) -> None:
    settings = worker_settings.model_copy(update={"prefetch_messages": wanted})

    assert 1 <= prefetch_count(settings, partitions) <= wanted
    assert prefetch_count(settings, partitions) * partitions * LARGEST_MESSAGE_BYTES <= HELD_BYTES


def test_default_settings_prefetch_what_they_say(worker_settings: WorkerSettings) -> None:
    default = WorkerSettings.model_fields["prefetch_messages"].default

    assert prefetch_count(worker_settings, 8) == worker_settings.prefetch_messages == default


async def test_batch_takes_no_more_messages_once_it_has_its_bytes(
    publish: Publish, database: "Connection[Record]", worker_settings: WorkerSettings
) -> None:
    for number in range(12):
        await publish(create(f"{number}", "x" * 1_000_000))

    async with harness.worker(worker_settings):
        await eventually(lambda: _has_outcomes(database, {"applied": 12}))

    transactions = await database.fetch("select count(*) from notes group by xmin::text")
    assert max(row["count"] for row in transactions) <= BATCH_BYTES // 1_000_000 + 1
    assert [row["title"] for row in await database.fetch("select title from notes order by id")] == [
        f"{number}" for number in range(12)
    ]
