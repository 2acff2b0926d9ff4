"""A batch in one transaction: its effects on the notes, and the outcome of each command."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from asyncpg import Connection, Record
from asyncpg.connection import LoggedQuery

from shared.connections import Connections
from shared.contracts import BadCommand, Command, CreateItem, DeleteItem, NoteItem, PatchItem, ReplaceItem
from tests.support.applying import apply_with_others
from tests.support.commands import create, delete, patch, replace, several
from worker.apply import apply_batch

MAX_STATEMENTS = 2
"""To read, and to store."""


async def test_commands_of_one_batch_see_each_other_in_order(
    connections: Connections, database: "Connection[Record]"
) -> None:
    outcomes = await apply_batch(
        connections, [create("one"), replace(1, "two"), replace(1, "three"), delete(1), delete(1)]
    )

    assert [outcome.http_status for outcome in outcomes] == [201, 200, 200, 204, 404]
    assert [json.loads(outcome.body)["title"] for outcome in outcomes if outcome.body] == ["one", "two", "three"]
    assert await database.fetchval("select count(*) from notes") == 0


async def test_same_id_twice_in_one_batch_has_one_effect_and_equal_outcomes(
    connections: Connections, database: "Connection[Record]"
) -> None:
    command = create()

    first, second = await apply_batch(connections, [command, command])

    assert first == second
    assert await database.fetchval("select count(*) from notes") == 1
    assert await database.fetchval("select count(*) from commands") == 1


async def test_same_id_in_two_batches_has_one_effect_and_equal_outcomes(
    connections: Connections, database: "Connection[Record]"
) -> None:
    command = create()

    assert await apply_batch(connections, [command]) == await apply_batch(connections, [command])
    assert await database.fetchval("select count(*) from notes") == 1


async def test_same_id_in_two_transactions_at_once_has_one_effect(
    connections: Connections, database: "Connection[Record]"
) -> None:
    for _ in range(10):
        command = create()
        await asyncio.gather(apply_batch(connections, [command]), apply_batch(connections, [command]))

    assert await database.fetchval("select count(*) from notes") == 10


async def test_command_decided_meanwhile_by_a_session_without_a_lock_keeps_that_outcome_and_has_no_effect(
    connections: Connections, database: "Connection[Record]"
) -> None:
    command = create()
    other = database.transaction()
    await other.start()
    row = "insert into commands (id, fingerprint, status, http_status) values ($1, 'same', 'rejected', 404)"
    await database.execute(row, command.id)
    applying = asyncio.create_task(apply_with_others(connections, [command]))
    await asyncio.wait([applying], timeout=0.1)
    await other.commit()

    [outcome] = await applying
    assert (outcome.status, outcome.http_status) == ("rejected", 404)
    assert await database.fetchval("select count(*) from notes") == 0


@pytest.mark.parametrize("batches", [1, 2])
async def test_same_id_for_another_request_is_rejected_and_has_no_effect(
    connections: Connections, database: "Connection[Record]", batches: int
) -> None:
    mine = create("mine", fingerprint="mine")
    other = create("other", id=mine.id, fingerprint="other")

    if batches == 1:
        _, outcome = await apply_batch(connections, [mine, other])
    else:
        await apply_batch(connections, [mine])
        [outcome] = await apply_batch(connections, [other])

    assert (outcome.http_status, outcome.reason) == (422, "idempotency_key_reused")
    assert await database.fetchval("select string_agg(title, ',') from notes") == "mine"


async def test_another_owners_note_is_not_found_and_stays(
    connections: Connections, database: "Connection[Record]"
) -> None:
    stranger = await database.fetchval("insert into users default values returning id")
    await apply_batch(connections, [create("mine")])

    outcomes = await apply_batch(connections, [replace(1, owner=stranger), delete(1, owner=stranger)])

    assert [outcome.reason for outcome in outcomes] == ["note_not_found"] * 2
    assert tuple(*await database.fetch("select title, version from notes")) == ("mine", 1)


@pytest.mark.parametrize("envelope", [{"owner": 999}, {"credentials_version": 2}])
async def test_owner_who_is_unknown_or_has_new_credentials_is_rejected(
    connections: Connections, database: "Connection[Record]", envelope: dict[str, Any]
) -> None:
    [outcome] = await apply_batch(connections, [create(**envelope)])

    assert (outcome.status, outcome.http_status, outcome.reason) == ("rejected", 401, "credentials_outdated")
    assert await database.fetchval("select count(*) from notes") == 0


async def test_precondition_lets_only_its_versions_through(connections: Connections) -> None:
    batch: list[Command] = [
        create(),
        replace(1, if_match=(2,)),
        replace(1, if_match=(1, 7)),
        delete(1, if_match=(1,)),
        delete(1),
    ]

    outcomes = await apply_batch(connections, batch)

    assert [outcome.http_status for outcome in outcomes] == [201, 412, 200, 412, 204]


async def test_updated_date_never_goes_back(connections: Connections) -> None:
    created, replaced = await apply_batch(
        connections, [create(), replace(1, time=datetime.now(UTC) - timedelta(minutes=5))]
    )

    assert created.body
    assert replaced.body
    assert json.loads(replaced.body)["updated_date"] == json.loads(created.body)["updated_date"]


ROW = "select ctid::text, xmin::text, * from notes"


@pytest.mark.parametrize(
    "unchanging",
    [
        replace(1, "Ink", description="Blue"),
        replace(1, "Ink", description="Blue", if_match=(1, 7)),
        patch(1),
        patch(1, "Ink"),
        patch(1, description="Blue"),
        patch(1, "Ink", "Blue"),
        several(ReplaceItem(note_id=1, title="Ink", description="Blue"), PatchItem(note_id=1, if_match=(1,))),
    ],
    ids=lambda command: command.data.model_dump_json(exclude_none=True),
)
async def test_what_changes_nothing_is_applied_and_leaves_the_note_as_it_is(
    connections: Connections, database: "Connection[Record]", unchanging: Command
) -> None:
    [created] = await apply_batch(connections, [create("Ink", "Blue")])
    before = await database.fetchrow(ROW)
    later = {"id": uuid4(), "time": datetime.now(UTC) + timedelta(minutes=5)}

    [outcome] = await apply_batch(connections, [unchanging.model_copy(update=later)])

    assert (outcome.status, outcome.http_status) == ("applied", 200)
    assert await database.fetchrow(ROW) == before
    if outcome.type == "notes.change":
        items = json.loads(outcome.body or "")["items"]
        assert [(item["status"], item["version"]) for item in items] == [(200, 1), (200, 1)]
    else:
        assert (outcome.body, outcome.note_version) == (created.body, 1)


async def test_condition_is_judged_of_what_would_change_nothing(connections: Connections) -> None:
    batch: list[Command] = [create("Ink"), patch(1, "Ink", if_match=(2,)), patch(1, if_match=(1,)), delete(1, (1,))]

    outcomes = await apply_batch(connections, batch)

    assert [(outcome.http_status, outcome.note_version) for outcome in outcomes] == [
        (201, 1),
        (412, 1),
        (200, 1),
        (204, None),
    ]


async def test_text_that_returns_in_one_batch_has_changed_twice(
    connections: Connections, database: "Connection[Record]"
) -> None:
    await apply_batch(connections, [create("Ink")])

    outcomes = await apply_batch(connections, [patch(1, "Pen"), patch(1, "Pen"), patch(1, "Ink"), patch(1, "Ink")])

    assert [outcome.note_version for outcome in outcomes] == [2, 2, 3, 3]
    assert tuple(*await database.fetch("select title, version from notes")) == ("Ink", 3)


async def test_bad_command_becomes_a_failed_row_that_keeps_it(
    connections: Connections, database: "Connection[Record]"
) -> None:
    bad = BadCommand(uuid4(), "invalid_command", r'{"id": "…", "data": {"title": "\ud800 \u0000"}}')

    outcomes = await apply_batch(connections, [create(), bad, create()])

    assert [outcome.status for outcome in outcomes] == ["applied", "failed", "applied"]
    assert await database.fetchval("select command::text from commands where status = 'failed'") == bad.content


@pytest.mark.parametrize("note_id", [-(2**63), 2**63 - 1])
async def test_extreme_ids_are_not_found(connections: Connections, note_id: int) -> None:
    outcomes = await apply_batch(connections, [replace(note_id), delete(note_id)])

    assert [outcome.reason for outcome in outcomes] == ["note_not_found"] * 2


async def test_a_batch_of_500_takes_as_many_statements_as_a_batch_of_one(connections: Connections) -> None:
    mixed: list[Command] = []
    for note_id in range(1, 101):
        mixed += [create(), replace(note_id), replace(note_id), replace(note_id + 200), delete(note_id)]
    assert len(mixed) == 500

    await apply_batch(connections, [create()])  # the driver looks up the types on a connection's first use
    few = await statements(connections, [create(), delete(1)])
    many = await statements(connections, mixed)

    assert few == many
    assert len(many) <= MAX_STATEMENTS


async def test_a_thousand_writes_at_once_take_as_many_statements_as_one(connections: Connections) -> None:
    mixed: list[NoteItem] = []
    for note_id in range(1, 251):
        mixed += [CreateItem(title="a", description=""), PatchItem(note_id=note_id, title="b")]
        mixed += [ReplaceItem(note_id=note_id, title="c", description=""), DeleteItem(note_id=note_id)]
    await apply_batch(connections, [create() for _ in range(251)])

    few = await statements(connections, [several(CreateItem(title="a", description=""), DeleteItem(note_id=251))])
    many = await statements(connections, [several(*mixed)])

    assert few == many
    assert len(many) <= MAX_STATEMENTS


async def statements(connections: Connections, batch: Sequence[Command]) -> list[str]:
    """The statements that a batch sends to Postgres."""
    seen: list[LoggedQuery] = []
    async with connections.acquire() as session:
        session.add_query_logger(seen.append)
    await apply_batch(connections, batch)
    await asyncio.sleep(0)  # the driver calls its loggers slightly later
    async with connections.acquire() as session:
        session.remove_query_logger(seen.append)
    return [logged.query for logged in seen]


async def test_imported_note_keeps_its_creation_unless_that_is_later_than_the_command(
    connections: Connections, database: "Connection[Record]"
) -> None:
    now = datetime.now(UTC)
    dates = [datetime(1, 1, 2, tzinfo=UTC), now - timedelta(days=1), now + timedelta(days=1), None]
    items = [CreateItem(title="Ink", description="", created_date=date) for date in dates]

    await apply_batch(connections, [several(*items, dataversion=2, time=now)])

    rows = await database.fetch("select created_date, updated_date, version from notes order by id")
    assert [row["created_date"] for row in rows] == [*dates[:2], now, now]
    assert {(row["updated_date"], row["version"]) for row in rows} == {(now, 1)}
