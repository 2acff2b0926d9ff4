"""Deleted notes are restored and purged like other writes: compared, in order, exactly once."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace as changed
from datetime import UTC, datetime, timedelta

import pytest
from asyncpg import Connection, Record

from shared.connections import Connections
from shared.contracts import Command, CreateItem, DeleteItem, PatchItem
from tests.support import harness
from tests.support.applying import apply_with_others
from tests.support.commands import create, delete, patch, purge, replace, restore, several
from tests.support.operator import Operator
from tests.worker.test_compare_and_store import statements, waiting_for
from tests.worker.test_replays import expire, id_of
from worker.apply import apply_batch, find_locked, record_failure
from worker.cache import IDS_AHEAD, Cache
from worker.replays import Letter, ReplayedWrite, TrashState
from worker.settings import WorkerSettings
from worker.statements import READ, READ_WITH_TRASH, STORE, STORE_CREATIONS, STORE_WITH_TRASH

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def one(worker_settings: WorkerSettings) -> Iterator[Connections]:
    """The only connection of a worker."""
    with harness.connected(worker_settings, "test") as connections:
        yield connections


async def notes(database: "Connection[Record]") -> list[tuple[int, str, int, int]]:
    rows = await database.fetch("select id, title, version, mod_revision from notes order by id")
    return [tuple(row) for row in rows]


async def trash(database: "Connection[Record]") -> list[tuple[int, str | None, int, int]]:
    rows = await database.fetch("select id, title, version, mod_revision from tombstones order by id")
    return [tuple(row) for row in rows]


async def test_restore_and_purge_take_as_many_statements_as_every_other_change(one: Connections) -> None:
    cache = Cache(IDS_AHEAD)
    await apply_batch(one, [create() for _ in range(9)], cache=cache)

    assert await statements(one, [delete(note) for note in range(1, 9)], cache) == [READ.sql, STORE.sql]
    batch: list[Command] = [restore(1), purge(2), create(), replace(9), delete(9)]
    assert await statements(one, batch, cache) == [READ_WITH_TRASH.sql, STORE_WITH_TRASH.sql]
    assert await statements(one, [restore(999)], cache) == [READ_WITH_TRASH.sql, STORE_CREATIONS.sql]


async def test_restore_removes_the_tombstone_and_keeps_all_but_version_and_update(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create("Ink", "Blue", time=AT), patch(1, "Pen", time=AT + timedelta(hours=9)), delete(1)])
    assert await trash(database) == [(1, "Pen", 2, 3)]

    [outcome] = await apply_batch(one, [restore(1, time=AT)])

    row = await database.fetchrow(
        "select title, description, created_date, updated_date, version, mod_revision from notes"
    )
    assert tuple(row or ()) == ("Pen", "Blue", AT, AT + timedelta(hours=9), 3, 4)
    assert (outcome.http_status, outcome.note_id, outcome.note_version) == (200, 1, 3)
    assert await trash(database) == []


async def test_any_order_in_one_batch_has_the_effects_of_its_commands(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create("1"), create("2"), create("3"), create("4")])
    batch: list[Command] = [
        *(delete(1), restore(1), patch(1, "one"), delete(1), restore(1)),
        *(delete(2), purge(2), restore(2), purge(2)),
        *(delete(3), restore(3), delete(3)),
        *(delete(4), delete(4), purge(4, if_match=(2,)), restore(4, if_match=(1,))),
    ]

    outcomes = await apply_batch(one, batch)

    assert [outcome.http_status for outcome in outcomes] == [
        *(204, 200, 200, 204, 200),
        *(204, 204, 404, 404),
        *(204, 200, 204),
        *(204, 404, 412, 200),
    ]
    assert await notes(database) == [(1, "one", 4, 9), (4, "4", 2, 20)]
    assert await trash(database) == [(2, None, 1, 10), (3, "3", 2, 16)]


async def test_versions_go_on_after_those_of_a_command_that_has_deleted_the_note(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create("Ink")])
    first = several(PatchItem(note_id=1, title="2"), PatchItem(note_id=1, title="3"), DeleteItem(note_id=1))
    then = several(PatchItem(note_id=1, title="5"))

    outcomes = await apply_batch(one, [first, restore(1), then])

    assert [outcome.http_status for outcome in outcomes] == [200, 200, 200]
    assert await notes(database) == [(1, "5", 5, 4)]


@pytest.mark.parametrize(
    "interference",
    ["delete from tombstones", "update tombstones set title = null, description = null"],
    ids=["removed", "erased by housekeeping"],
)
@pytest.mark.parametrize("command", [restore, purge])
async def test_tombstone_that_changes_between_read_and_store_is_read_again(
    one: Connections, database: "Connection[Record]", interference: str, command: Callable[[int], Command]
) -> None:
    await apply_batch(one, [create("Ink"), delete(1)])

    async with waiting_for(database, interference):
        applying = asyncio.create_task(apply_with_others(one, [command(1), create("Nib")]))

    assert [outcome.http_status for outcome in await applying] == [404, 201]
    assert [title for _, title, _, _ in await notes(database)] == ["Nib"]


async def test_tombstone_of_another_version_than_was_read_is_read_again(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create("Ink"), delete(1)])

    async with waiting_for(database, "update tombstones set version = 7, title = 'by hand'"):
        applying = asyncio.create_task(apply_with_others(one, [restore(1)]))

    assert [outcome.note_version for outcome in await applying] == [8]
    assert [title for _, title, _, _ in await notes(database)] == ["by hand"]


@pytest.mark.parametrize("owner", [1, 2])
async def test_deleted_note_whose_id_another_note_has_cannot_be_restored_and_holds_up_nothing(
    one: Connections, database: "Connection[Record]", owner: int
) -> None:
    await database.execute("insert into users (name) values ('Ada')")
    await apply_batch(one, [create("Ink"), delete(1)])
    await database.execute(
        "insert into notes (id, owner_id, title, description, created_date, updated_date, version) "
        "overriding system value values (1, $1, 'another', '', now(), now(), 1)",
        owner,
    )

    outcomes = await asyncio.wait_for(apply_batch(one, [restore(1), create("Nib")]), 5)

    assert [outcome.http_status for outcome in outcomes] == [404, 201]
    assert [title for _, title, _, _ in await notes(database)] == ["another", "Nib"]


async def test_new_notes_get_no_ids_of_deleted_ones_after_a_restore_of_a_sequence_that_lags_behind(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create() for _ in range(20)])
    await apply_batch(one, [delete(note) for note in range(10, 21)])
    await database.execute("select setval('notes_id_seq', 1, false)")

    outcomes = await apply_batch(one, [create(), create()])

    assert [outcome.note_id for outcome in outcomes] == [21, 22]


async def test_owner_whose_tombstone_has_a_later_revision_catches_up(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create(), delete(1)])
    await database.execute("update tombstones set mod_revision = 9")

    [outcome] = await apply_batch(one, [restore(1)])

    assert outcome.status == "applied"
    assert await database.fetchval("select mod_revision from notes") == 10
    assert await database.fetchval("select revision from users where id = 1") == 10


async def test_purge_raises_the_revision_and_leaves_that_of_the_deletion(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create(), delete(1)])
    before = await database.fetchval("select deleted_date from tombstones")

    await apply_batch(one, [purge(1)])

    assert await trash(database) == [(1, None, 1, 2)]
    assert await database.fetchval("select deleted_date from tombstones") == before
    assert await database.fetchval("select revision from users where id = 1") == 3


async def test_owner_whose_tombstone_is_locked_is_found(
    connections: Connections, database: "Connection[Record]"
) -> None:
    await database.execute("insert into users (name) values ('Ada'), ('Bob')")
    for owner in (1, 2, 3):
        [outcome] = await apply_batch(connections, [create(owner=owner)])
        await apply_batch(connections, [delete(outcome.note_id or 0, owner=owner)])

    async with database.transaction():
        await database.execute("select from tombstones where owner_id = 2 for update")
        locked = await find_locked(
            connections, [restore(1), restore(2, owner=2), purge(3, owner=3), restore(2, owner=3)]
        )

    assert locked == {2}


async def test_versions_of_several_writes_are_stored_as_clients_get_them(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create("Ink")])
    same, new = PatchItem(note_id=1, title="Ink"), PatchItem(note_id=1, title="Pen 🖋")
    await apply_batch(
        one, [several(same, new, PatchItem(note_id=1, description="Blue"), CreateItem(title="a", description=""))]
    )
    await apply_batch(one, [patch(1, description="Red"), several(CreateItem(title="b", description=""))])

    kept = await database.fetch("select note_id, version, owner_id from note_versions order by 1, 2")
    [printed] = await apply_batch(one, [patch(1, description="Red")])
    second = await database.fetchval("select body from note_versions where note_id = 1 and version = 3")

    assert [tuple(row) for row in kept] == [(1, 2, 1), (1, 3, 1), (2, 1, 1), (3, 1, 1)]
    assert str(printed.body).startswith('{"id":1,"title":"Pen 🖋","description":"Red",')
    assert second.startswith('{"id":1,"title":"Pen 🖋","description":"Blue",')


async def test_rejected_writes_keep_no_version(one: Connections, database: "Connection[Record]") -> None:
    await apply_batch(one, [create("Ink")])

    [outcome] = await apply_batch(one, [several(PatchItem(note_id=1, title="Pen"), PatchItem(note_id=99, title="Pen"))])

    assert outcome.status == "rejected"
    assert await database.fetchval("select count(*) from note_versions") == 0


async def test_version_that_is_written_again_after_a_restore_of_the_database_is_replaced(
    one: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(one, [create("Ink"), several(PatchItem(note_id=1, title="lost"))])
    await database.execute("update notes set version = 1")

    [outcome] = await apply_batch(one, [several(PatchItem(note_id=1, title="Pen"))])

    assert outcome.status == "applied"
    assert '"title":"Pen"' in await database.fetchval("select body from note_versions where version = 2")


def replayed(command: Command, number: int) -> Command:
    """The replay of one of the commands given to `expire`."""
    return command.model_copy(update={"id": id_of(number), "replayed_at": datetime.now(UTC)})


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("command", [restore, purge])
async def test_failed_restore_or_purge_is_replayed(
    connections: Connections, operator: Operator, database: "Connection[Record]", command: Callable[[int], Command]
) -> None:
    await apply_batch(connections, [create("Ink"), delete(1)])
    await expire(connections, command(1))

    code, [result], _ = await operator("dead-letters", "replay", "--all")

    assert (code, result["result"]) == (0, "applied")
    assert len(await notes(database)) == (command is restore)


@pytest.mark.usefixtures("worker")
async def test_deletion_and_restores_that_expired_come_back_in_their_order(
    connections: Connections, operator: Operator, database: "Connection[Record]"
) -> None:
    await apply_batch(connections, [create("Ink"), create("Nib"), delete(2)])
    await expire(
        connections, *(delete(1), restore(1), patch(1, "Pen"), delete(1), restore(1)), *(restore(2), patch(2, "Quill"))
    )

    code, results, _ = await operator("dead-letters", "replay", "--all")

    assert (code, [each["result"] for each in results]) == (0, ["applied"] * 7)
    assert [title for _, title, _, _ in await notes(database)] == ["Pen", "Quill"]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("command", [restore, purge])
async def test_note_that_was_restored_and_deleted_since_the_failure_needs_force(
    connections: Connections, operator: Operator, database: "Connection[Record]", command: Callable[[int], Command]
) -> None:
    await apply_batch(connections, [create("Ink"), delete(1)])
    await expire(connections, command(1))
    await apply_batch(connections, [restore(1), delete(1)])

    code, [refused], _ = await operator("dead-letters", "replay", "--all")
    assert (code, refused["result"]) == (1, "refused")
    assert "version 1 then, version 2 now" in refused["reason"]
    [superseded] = await apply_batch(connections, [replayed(command(1), 0)])
    assert (superseded.status, superseded.reason) == ("failed", "superseded")

    code, [result], _ = await operator("dead-letters", "replay", "--all", "--force")
    assert (code, result["result"]) == (0, "applied")
    assert [version for _, _, version, _ in await notes(database)] == ([3] if command is restore else [])


async def test_restore_that_failed_does_not_undo_a_later_deletion_by_the_client(connections: Connections) -> None:
    await apply_batch(connections, [create("Ink")])
    await expire(connections, restore(1))
    await apply_batch(connections, [delete(1)])

    [outcome] = await apply_batch(connections, [replayed(restore(1), 0)])

    assert (outcome.status, outcome.reason) == ("failed", "superseded")


@pytest.mark.parametrize("command", [replace(1, "old"), delete(1), patch(1, "old")], ids=["replace", "delete", "patch"])
async def test_change_that_failed_before_the_note_was_deleted_and_restored_is_superseded(
    connections: Connections, command: Command
) -> None:
    await apply_batch(connections, [create("Ink")])
    await expire(connections, command)
    await apply_batch(connections, [delete(1), restore(1)])

    [outcome] = await apply_batch(connections, [replayed(command, 0)])

    assert (outcome.status, outcome.reason) == ("failed", "superseded")


async def test_failed_restore_is_kept_with_the_versions_of_its_note(
    connections: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(connections, [create("Ink"), create("Pen"), delete(1)])
    for note in (1, 2):
        await record_failure(connections, restore(note), "handler_error")

    rows = await database.fetch("select note_id, note_version, body from commands where status = 'failed' order by 1")
    assert [tuple(row) for row in rows] == [(1, 1, '{"versions":{"1":null}}'), (2, None, '{"versions":{"2":1}}')]


LETTER = Letter(owner=1, issued_at=AT, replayed_at=AT)
LIVE_3, TRASHED_3, NOWHERE = TrashState(3, None), TrashState(None, 3), TrashState(None, None)


@pytest.mark.parametrize(
    ("then", "now", "replayed"),
    [
        (TRASHED_3, TRASHED_3, []),
        (LIVE_3, LIVE_3, []),
        (LIVE_3, TRASHED_3, [None]),
        (LIVE_3, TrashState(None, 4), [4, None]),
        (TRASHED_3, TrashState(4, None), [4]),
        (TRASHED_3, NOWHERE, [None]),
    ],
)
def test_restore_follows_replays_of_earlier_letters(
    then: TrashState, now: TrashState, replayed: list[int | None]
) -> None:
    writes = [ReplayedWrite(1, 7, version, AT, AT) for version in replayed]
    others = [changed(write, owner=2) for write in writes] + [changed(write, note_id=8) for write in writes]

    assert not LETTER.is_superseded_in_trash(7, then, now, writes)
    assert LETTER.is_superseded_in_trash(7, then, now, others) is (then != now)


@pytest.mark.parametrize(
    ("then", "now", "replayed"),
    [
        (LIVE_3, TRASHED_3, []),
        (LIVE_3, TrashState(None, 4), [None]),
        (LIVE_3, TrashState(None, 4), [4]),
        (TRASHED_3, TrashState(5, None), [4]),
        (TRASHED_3, NOWHERE, []),
        (NOWHERE, TRASHED_3, [None, 3]),
        (TRASHED_3, TrashState(None, 2), [None]),
    ],
)
def test_restore_is_superseded_by_any_other_write(
    then: TrashState, now: TrashState, replayed: list[int | None]
) -> None:
    writes = [ReplayedWrite(1, 7, version, AT, AT) for version in replayed]

    assert LETTER.is_superseded_in_trash(7, then, now, writes)
