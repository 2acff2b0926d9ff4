"""Dead letters that have only expired are replayed together, in the order of their owners' commands."""

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from asyncpg import Connection, Record

from dev.backend import Services
from shared.connections import Connections
from shared.contracts import Command, CreateItem, DeleteItem, PatchItem, encode_command
from shared.topology import Topology
from tests.support.commands import create, delete, patch, replace, several
from tests.support.operator import Operator
from worker.apply import ApplyOptions, apply_batch, record_failure
from worker.command_line import read_arguments
from worker.dead_letters import Sender
from worker.settings import WorkerSettings

OPTIONS = ApplyOptions(max_age=timedelta(days=3))
OLD = datetime.now(UTC) - timedelta(days=4)
NOTES, CHANGES = 7, 100
"""The number of dead letters: a creation for each note, and this many changes of each."""


def id_of(number: int) -> UUID:
    """An id like that of a keyed request, which says nothing about the order."""
    return uuid5(UUID(int=0), str(number))


async def expire(connections: Connections, *commands: Command) -> None:
    """Lets the commands expire in one batch; their ids say nothing about their order."""
    old = [
        command.model_copy(update={"id": id_of(number), "time": OLD, "may_expire": True})
        for number, command in enumerate(commands)
    ]
    assert {outcome.reason for outcome in await apply_batch(connections, old, OPTIONS)} == {"expired"}


async def titles(database: "Connection[Record]") -> list[str]:
    return [row["title"] for row in await database.fetch("select title from notes order by id")]


@pytest.mark.usefixtures("worker")
async def test_all_expired_commands_come_back_in_their_order(
    connections: Connections, database: "Connection[Record]", operator: Operator
) -> None:
    await apply_batch(connections, [create(f"{note}") for note in range(NOTES)])
    changes = [replace(note + 1, f"{note}.{number}") for number in range(CHANGES) for note in range(NOTES)]
    await expire(connections, *changes, *(create(f"new {number}") for number in range(NOTES)))

    code, results, _ = await operator("dead-letters", "replay", "--all", "--reason", "expired")

    assert (code, len(results), {each["result"] for each in results}) == (0, NOTES * (CHANGES + 1), {"applied"})
    last = [f"{note}.{CHANGES - 1}" for note in range(NOTES)]
    assert await titles(database) == last + [f"new {number}" for number in range(NOTES)]
    assert await database.fetchval("select count(*) from notes where version = $1", CHANGES + 1) == NOTES


@pytest.mark.usefixtures("worker")
async def test_several_writes_and_deletes_come_back_as_well(
    connections: Connections, database: "Connection[Record]", operator: Operator
) -> None:
    await apply_batch(connections, [create("one"), create("two"), create("three")])
    await expire(
        connections,
        replace(1, "one, changed"),
        several(PatchItem(note_id=1, description="and again"), PatchItem(note_id=2, title="two, changed")),
        patch(2, description="twice"),
        several(CreateItem(title="four", description=""), DeleteItem(note_id=3)),
        patch(1, title="one, at last"),
        delete(2),
    )

    code, results, _ = await operator("dead-letters", "replay", "--all")

    assert (code, {each["result"] for each in results}) == (0, {"applied"})
    assert await titles(database) == ["one, at last", "four"]


@pytest.mark.usefixtures("worker")
async def test_replay_continues_where_another_has_stopped(
    connections: Connections, database: "Connection[Record]", operator: Operator
) -> None:
    await apply_batch(connections, [create("note")])
    await expire(connections, replace(1, "first"), replace(1, "second"), replace(1, "third"))
    await operator("dead-letters", "replay", id_of(0))

    assert (await operator("dead-letters", "replay", "--all", "--dry-run"))[0] == 0
    code, results, _ = await operator("dead-letters", "replay", "--all")

    assert (code, [each["result"] for each in results]) == (0, ["applied"] * 2)
    assert await titles(database) == ["third"]


@pytest.mark.usefixtures("worker")
async def test_named_commands_are_replayed_in_their_own_order(
    connections: Connections, database: "Connection[Record]", operator: Operator
) -> None:
    await apply_batch(connections, [create("note")])
    await expire(connections, replace(1, "first"), replace(1, "second"))

    await operator("dead-letters", "replay", id_of(1), id_of(0))

    assert await titles(database) == ["second"]


@pytest.mark.usefixtures("worker")
async def test_command_that_a_client_has_overtaken_stays_and_the_others_come_back(
    connections: Connections, database: "Connection[Record]", operator: Operator
) -> None:
    await apply_batch(connections, [create("note"), create("another")])
    await expire(connections, replace(1, "old"), replace(2, "changed"), replace(1, "old, too"))
    await apply_batch(connections, [replace(1, "by a client")])

    code, results, _ = await operator("dead-letters", "replay", "--all")

    assert (code, sorted(each["result"] for each in results)) == (1, ["applied", "refused", "refused"])
    assert await titles(database) == ["by a client", "changed"]


async def test_change_of_a_note_twice_by_one_command_does_not_supersede_the_next_in_the_same_batch(
    connections: Connections,
) -> None:
    await apply_batch(connections, [create("note")])
    twice = several(PatchItem(note_id=1, title="first"), PatchItem(note_id=1, title="second"))
    await expire(connections, twice, replace(1, "third"))
    at = datetime.now(UTC)
    first = twice.model_copy(update={"id": id_of(0), "time": OLD, "replayed_at": at})
    second = replace(1, "third", id=id_of(1), time=OLD, replayed_at=at)

    outcomes = await apply_batch(connections, [first, second])

    assert [outcome.status for outcome in outcomes] == ["applied"] * 2


async def test_client_that_writes_between_two_replays_is_not_overwritten(connections: Connections) -> None:
    await apply_batch(connections, [create("note")])
    await expire(connections, replace(1, "first"), replace(1, "second"))
    at = datetime.now(UTC)
    first, second = (
        replace(1, title, id=id_of(number), time=OLD, replayed_at=at)
        for number, title in enumerate(("first", "second"))
    )

    [applied] = await apply_batch(connections, [first])
    await apply_batch(connections, [replace(1, "by a client")])
    [superseded] = await apply_batch(connections, [second])

    assert (applied.status, superseded.reason) == ("applied", "superseded")


async def test_replay_does_not_expire_however_long_it_waits(connections: Connections) -> None:
    await expire(connections, create())

    [outcome] = await apply_batch(connections, [create(id=id_of(0), time=OLD, replayed_at=OLD)], OPTIONS)

    assert outcome.status == "applied"


async def test_old_replay_of_what_has_no_outcome_any_more_expires(connections: Connections) -> None:
    [outcome] = await apply_batch(connections, [create(time=OLD, replayed_at=OLD)], OPTIONS)

    assert (outcome.status, outcome.reason) == ("failed", "expired")


@pytest.mark.usefixtures("worker")
async def test_reason_chooses_among_the_dead_letters(connections: Connections, operator: Operator) -> None:
    other = create("other")
    await record_failure(connections, other, "data_error")
    await expire(connections, create())

    _, [expired], _ = await operator("dead-letters", "replay", "--all", "--reason", "expired")
    _, [discarded], _ = await operator("dead-letters", "discard", "--all", "--reason", "data_error")

    assert (expired["id"], expired["result"]) == (str(id_of(0)), "applied")
    assert (discarded["id"], discarded["result"]) == (str(other.id), "discarded")


def test_reason_without_all_is_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_arguments(["dead-letters", "replay", str(id_of(0)), "--reason", "expired"])

    assert "--reason goes with --all" in capsys.readouterr().err


@pytest.mark.usefixtures("worker")
async def test_replay_that_fails_again_keeps_its_place(
    connections: Connections, database: "Connection[Record]", operator: Operator
) -> None:
    await database.execute("alter table notes add constraint poison check (title <> 'poison')")
    await expire(connections, create("poison"), create("second"))
    await operator("dead-letters", "replay", id_of(0))

    _, letters, _ = await operator("dead-letters", "list")

    assert [UUID(each["id"]) for each in letters] == [id_of(0), id_of(1)]


@pytest.mark.usefixtures("worker")
async def test_what_the_broker_refuses_is_reported_at_the_end_and_the_others_are_replayed(
    servers: Services,
    worker_settings: WorkerSettings,
    connections: Connections,
    database: "Connection[Record]",
    operator: Operator,
) -> None:
    topology = Topology.of(worker_settings)
    owners = {topology.partition_of(owner): owner for owner in range(1, 20)}
    lost, kept = owners[1], owners[0]
    for owner in (lost, kept):
        await database.execute(
            "insert into users (id) overriding system value values ($1) on conflict (id) do nothing", owner
        )
    await expire(
        connections,
        create("lost", owner=lost),
        create("kept", owner=kept),
        create("lost, too", owner=lost),
        create("kept, too", owner=kept),
    )
    async with await aio_pika.connect(servers.broker_url) as connection:
        channel = await connection.channel()
        await topology.unbind_partition(channel, 1)

        code, results, _ = await operator("dead-letters", "replay", "--all")

        await topology.bind_partition(channel, 1)
    reported = {UUID(each["id"]): (each["result"], each["reason"]) for each in results}
    assert code == 1
    assert reported == {
        id_of(0): ("not sent", "the broker has no queue for it"),
        id_of(1): ("applied", None),
        id_of(2): ("not sent", "an earlier command of its owner was not sent"),
        id_of(3): ("applied", None),
    }
    code, results, _ = await operator("dead-letters", "replay", "--all")
    assert (code, {each["result"] for each in results}) == (0, {"applied"})


@pytest.mark.usefixtures("publish")  # declares the exchange
async def test_after_the_exchange_is_deleted_nothing_is_sent(
    channel: AbstractChannel, worker_settings: WorkerSettings
) -> None:
    async with AsyncExitStack() as exits:
        sender = Sender(worker_settings, exits)
        sender._channel = await sender._new_channel()
        await channel.exchange_delete(Topology.of(worker_settings).commands_exchange)

        reasons = [await sender.send(1, encode_command(create(replayed_at=datetime.now(UTC)))) for _ in range(2)]

    assert reasons == ["the broker has no queue for it"] * 2
