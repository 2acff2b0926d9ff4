"""A command queue with wrong arguments is not consumed, and is rebuilt without losing its messages."""

import json
import re
from collections.abc import Sequence

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from asyncpg import Connection, Record
from pamqp.common import FieldTable

from shared.contracts import Command, encode_batch, encode_command
from shared.queues import declare_queue
from shared.topology import Topology, build_quorum_arguments
from tests.support import harness
from tests.support.commands import create
from tests.support.harness import eventually
from worker import queue_check, subscriptions
from worker.command_line import operate_on_queue, read_arguments
from worker.consumer import Consumer
from worker.doctor import examine
from worker.settings import WorkerSettings

QUORUM: FieldTable = {"x-queue-type": "quorum", "x-overflow": "reject-publish", "x-max-length-bytes": 1024**3}
WRONG: dict[str, FieldTable] = {
    "classic": {},
    "classic with a limit": {"x-max-length-bytes": 5000, "x-single-active-consumer": True},
    "classic with a single active consumer": QUORUM | {"x-queue-type": "classic", "x-single-active-consumer": True},
    "without a single active consumer": QUORUM,
    "without one and with another limit": QUORUM | {"x-max-length-bytes": 5000},
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers check more often than in production whether a queue has been rebuilt."""
    monkeypatch.setattr(queue_check, "REFUSED_PAUSE_SECONDS", 0.2)


@pytest.fixture
def topology(worker_settings: WorkerSettings) -> Topology:
    return Topology.of(worker_settings)


async def operator(settings: WorkerSettings, verb: str, partition: int) -> int:
    """Runs `python -m worker queues …`; returns the exit code."""
    return await operate_on_queue(read_arguments(["queues", verb, str(partition)]), settings)


async def put(channel: AbstractChannel, queue: str, *commands: Command) -> None:
    for command in commands:
        message = aio_pika.Message(encode_batch([encode_command(command)]))
        await channel.default_exchange.publish(message, queue)


async def refuse(*consumers: Consumer) -> bool:
    return all(each.refused == {0} and each.partitions == {1} for each in consumers)


async def consume_all(*consumers: Consumer) -> bool:
    return all(each.partitions == {0, 1} and not each.refused for each in consumers)


async def titles(database: "Connection[Record]") -> Sequence[str]:
    return [row["title"] for row in await database.fetch("select title from notes order by id")]


async def holds(database: "Connection[Record]", expected: Sequence[str]) -> bool:
    return await titles(database) == expected


async def order(database: "Connection[Record]", expected: Sequence[str]) -> bool:
    """Whether these notes were created in this order."""
    rows = await database.fetch("select title from notes order by mod_revision")
    return [row["title"] for row in rows] == expected


async def is_paused(consumer: Consumer) -> bool:
    return consumer._subscriptions.has_blocked


@pytest.mark.parametrize("kind", WRONG)
async def test_queue_that_was_made_otherwise_is_not_consumed_until_it_is_remade_and_loses_nothing(
    channel: AbstractChannel, worker_settings: WorkerSettings, database: "Connection[Record]", kind: str
) -> None:
    topology = Topology.of(worker_settings)
    queue, expected = topology.command_queue(0), [f"{number}" for number in range(8)]
    await channel.declare_queue(queue, durable=True, arguments=WRONG[kind])
    await put(channel, queue, *map(create, expected))

    async with harness.starting_worker(worker_settings) as first, harness.starting_worker(worker_settings) as second:
        await eventually(lambda: refuse(first, second))
        assert [(await harness.readiness(each))[0] for each in (first, second)] == [503, 503]
        assert await titles(database) == []
        assert await operator(worker_settings, "remake", 0) == 0

        await eventually(lambda: holds(database, expected))
        await eventually(lambda: consume_all(first, second))
        assert [(await harness.readiness(each))[0] for each in (first, second)] == [200, 200]
    assert await topology.declare_partition(channel, 0) == {}


@pytest.mark.parametrize("kind", WRONG)
async def test_doctor_says_what_is_wrong_with_the_queue_and_what_mends_it(
    channel: AbstractChannel,
    topology: Topology,
    worker_settings: WorkerSettings,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    await channel.declare_queue(topology.command_queue(0), durable=True, arguments=WRONG[kind])

    assert await examine(worker_settings, as_json=False) == 1

    printed = capsys.readouterr().out
    assert re.search(
        rf"inequivalent arg 'x-(queue-type|single-active-consumer)' for queue '{topology.command_queue(0)}'", printed
    )
    assert "python -m worker queues remake 0" in printed


async def test_queue_with_another_limit_is_consumed_and_keeps_it_until_it_is_remade(
    channel: AbstractChannel, topology: Topology, worker_settings: WorkerSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await harness.declare_on(channel, Topology(topology.prefix, topology.partitions, queue_limit_bytes=5000))

    async with harness.worker(worker_settings):
        assert await operator(worker_settings, "remake", 0) == 1
        assert "stop the workers" in capsys.readouterr().err
    assert await topology.declare_partition(channel, 0) == {"x-max-length-bytes": "5000"}

    await eventually(lambda: is_remade(worker_settings))  # the broker soon notices that the worker has stopped

    assert await topology.declare_partition(channel, 0) == {}


async def is_remade(settings: WorkerSettings) -> bool:
    return await operator(settings, "remake", 0) == 0


async def test_interrupted_remaking_keeps_the_partition_waiting_and_goes_on_when_it_is_run_again(
    channel: AbstractChannel,
    topology: Topology,
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
) -> None:
    await declare_queue(channel, topology.parking_queue(0), await build_quorum_arguments(channel))
    await channel.declare_queue(topology.command_queue(0), durable=True)
    await put(channel, topology.parking_queue(0), create("first"))
    await put(channel, topology.command_queue(0), create("second"))

    async with harness.starting_worker(worker_settings) as consumer:
        await eventually(lambda: refuse(consumer))
        assert await operator(worker_settings, "remake", 0) == 0

        await eventually(lambda: holds(database, ["first", "second"]))


@pytest.mark.parametrize("verb", ["remake", "fail-newer"])
async def test_partition_that_there_is_not_has_no_queue(
    channel: AbstractChannel, topology: Topology, worker_settings: WorkerSettings, verb: str
) -> None:
    await harness.declare_on(channel, topology)

    assert await operator(worker_settings, verb, topology.partitions) == 2


def newer(title: str) -> bytes:
    """A command with a version that this worker does not know."""
    return json.dumps(json.loads(encode_command(create(title))) | {"dataversion": 2}).encode()


async def test_operator_fails_commands_of_versions_that_no_worker_will_know_and_the_others_are_applied(
    channel: AbstractChannel,
    topology: Topology,
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscriptions, "BLOCKED_PAUSE_SECONDS", 3)
    await harness.declare_on(channel, topology)
    batches = [
        [newer("forged"), encode_command(create("beside it")), b"1"],
        [newer("forged again")],
        [encode_command(create("behind them"))],
        [encode_command(create("and behind that"))],
    ]
    for events in batches:
        await channel.default_exchange.publish(aio_pika.Message(encode_batch(events)), topology.command_queue(0))

    async with harness.starting_worker(worker_settings) as consumer:
        await eventually(lambda: is_paused(consumer))
        assert await operator(worker_settings, "fail-newer", 0) == 0

        await eventually(lambda: order(database, ["beside it", "behind them", "and behind that"]))
    failed = await database.fetch(
        "select reason, command->'data'->>'title' as title from commands where status = 'failed'"
    )
    assert {tuple(row) for row in failed} == {("newer_version", "forged"), ("newer_version", "forged again")}
    assert (await channel.get_queue(topology.unreadable_queue)).declaration_result.message_count == 1
