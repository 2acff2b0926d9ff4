"""Triggers number the writes that come without a revision: from the previous version, or by `psql`."""

import time

import pytest
from asyncpg import CheckViolationError, Connection, Record

from shared.connections import Connections
from tests.support.commands import create, delete, patch
from worker.apply import apply_batch

INSERT = (
    "insert into notes (owner_id, title, description, created_date, updated_date, version) "
    "select $1, 'Ink', '', now(), now(), 1 from generate_series(1, $2)"
)
MANY = 30_000


async def owner_row(database: "Connection[Record]", owner: int = 1) -> tuple[int, int]:
    """The owner's revision, and the revision up to which deletions are purged."""
    row = await database.fetchrow("select revision, purged_revision from users where id = $1", owner)
    assert row
    return row["revision"], row["purged_revision"]


async def mod_revisions(database: "Connection[Record]") -> list[int]:
    return [row[0] for row in await database.fetch("select mod_revision from notes order by id")]


async def test_note_that_is_inserted_without_a_number_gets_its_owners_next_one(database: "Connection[Record]") -> None:
    await database.execute(INSERT, 1, 1)
    await database.execute(INSERT, 1, 1)

    assert await mod_revisions(database) == [1, 2]
    assert await owner_row(database) == (2, 0)


async def test_note_that_is_changed_without_a_number_gets_its_owners_next_one(database: "Connection[Record]") -> None:
    await database.execute(INSERT, 1, 2)
    await database.execute("update notes set title = 'by hand', version = version + 1 where id = 2")

    assert await mod_revisions(database) == [1, 2]
    assert await owner_row(database) == (2, 0)


async def test_deletion_without_a_tombstone_outdates_all_that_was_listed_before(database: "Connection[Record]") -> None:
    await database.execute(INSERT, 1, 2)
    await database.execute("delete from notes where id = 2")

    assert await owner_row(database) == (2, 2)


async def test_worker_numbers_its_writes_by_itself(connections: Connections, database: "Connection[Record]") -> None:
    await apply_batch(connections, [create(), create(), patch(1, "changed"), patch(1, "changed"), delete(2), delete(9)])

    assert await mod_revisions(database) == [3]
    assert await owner_row(database) == (6, 0)
    tombstone = await database.fetchrow("select id, owner_id, title, version, mod_revision from tombstones")
    assert tombstone
    assert tuple(tombstone) == (2, 1, "Ink", 1, 5)


async def test_note_that_is_made_and_deleted_in_one_batch_leaves_its_tombstone(
    connections: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(connections, [create("Ink"), patch(1, "Pen"), delete(1)])

    tombstone = await database.fetchrow("select title, version, mod_revision from tombstones")
    assert tombstone
    assert tuple(tombstone) == ("Pen", 2, 3)
    assert await owner_row(database) == (3, 0)


async def test_transaction_of_the_version_before_is_numbered_as_one(database: "Connection[Record]") -> None:
    await database.execute(INSERT, 1, 1)
    async with database.transaction():
        await database.execute("select from users where id = 1 for no key update")
        await database.execute(INSERT, 1, 2)
        await database.execute("update notes set title = 'changed'")

    assert await mod_revisions(database) == [2, 2, 2]
    assert await owner_row(database) == (2, 0)


async def test_note_of_a_user_whom_the_same_transaction_has_made_is_numbered(database: "Connection[Record]") -> None:
    async with database.transaction():
        owner = await database.fetchval("insert into users default values returning id")
        await database.execute(INSERT, owner, 1)

    assert await mod_revisions(database) == [1]
    assert await owner_row(database, owner) == (1, 0)


async def test_note_that_is_handed_to_another_owner_is_seen_by_both(database: "Connection[Record]") -> None:
    other = await database.fetchval("insert into users default values returning id")
    await database.execute(INSERT, 1, 1)

    await database.execute("update notes set owner_id = $1", other)

    assert await mod_revisions(database) == [1]
    assert await owner_row(database, other) == (1, 0)
    assert await owner_row(database) == (2, 2)


@pytest.mark.parametrize(
    "correction",
    ["name = 'Ada', folded_name = 'ada'", "credentials_version = credentials_version + 1", "deleted_date = now()"],
)
async def test_account_that_is_changed_by_hand_gets_the_next_number(
    database: "Connection[Record]", correction: str
) -> None:
    await database.execute(f"update users set {correction} where id = 1")  # noqa: S608 - from above
    assert await owner_row(database) == (1, 0)


async def test_correction_after_an_update_that_changed_nothing_is_numbered(database: "Connection[Record]") -> None:
    await database.execute(INSERT, 1, 1)
    async with database.transaction():
        await database.execute("update users set name = name where id = 1")
        await database.execute("update notes set title = 'by hand'")

    assert await mod_revisions(database) == [2]
    assert await owner_row(database) == (2, 0)


async def test_deletion_by_hand_of_a_note_that_was_brought_back_is_not_taken_for_the_first_one(
    connections: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(connections, [create(), delete(1)])
    await database.execute(
        "insert into notes (id, owner_id, title, description, created_date, updated_date, version) "
        "select id, owner_id, title, description, created_date, updated_date, version from tombstones"
    )
    assert await owner_row(database) == (3, 0)

    await database.execute("delete from notes")

    assert await owner_row(database) == (4, 4)


async def test_truncation_outdates_the_lists_of_all_owners(database: "Connection[Record]") -> None:
    await database.execute(INSERT, 1, 1)

    await database.execute("truncate notes")

    assert await owner_row(database) == (2, 2)


@pytest.mark.parametrize("statement", ["update notes set title = 'by hand'", "delete from notes"])
async def test_correction_in_a_session_with_tables_of_the_same_names_is_numbered(
    database: "Connection[Record]", statement: str
) -> None:
    await database.execute(INSERT, 1, 1)
    await database.execute("create temp table users as select * from public.users")
    await database.execute("create temp table tombstones as select * from notes")

    await database.execute(statement)

    assert await database.fetchval("select revision from public.users where id = 1") == 2


async def test_revision_can_be_raised_by_hand_and_not_lowered(database: "Connection[Record]") -> None:
    await database.execute("update users set revision = 100 where id = 1")
    with pytest.raises(CheckViolationError, match="user 1 cannot go back from 100 to 99"):
        await database.execute("update users set revision = 99, name = 'Ada' where id = 1")
    await database.execute(INSERT, 1, 1)

    assert await mod_revisions(database) == [101]


@pytest.mark.parametrize("statement", ["update notes set title = 'by hand'", "delete from notes"])
async def test_correction_of_very_many_notes_by_hand_writes_their_owner_once(
    database: "Connection[Record]", statement: str
) -> None:
    started = time.monotonic()
    await database.execute(INSERT, 1, MANY)
    await database.execute(statement)

    assert time.monotonic() - started < 30  # an update of the owner for each would take minutes
    assert (await owner_row(database))[0] == 2


async def test_version_before_removes_a_user_who_has_left_tombstones(
    connections: Connections, database: "Connection[Record]"
) -> None:
    owner = await database.fetchval("insert into users default values returning id")
    await apply_batch(connections, [create(owner=owner), delete(1, owner=owner)])

    await database.execute("set role inkwell_worker")
    await database.execute("delete from users where id = $1", owner)

    assert await database.fetchval("select count(*) from tombstones") == 0
