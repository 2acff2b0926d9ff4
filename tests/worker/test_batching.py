"""Batching is invisible: any partition of a list of commands has the effects of the commands one by one."""

import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from typing import Any
from uuid import UUID

import pytest
from asyncpg import Connection, Record
from hypothesis import given
from hypothesis import strategies as st

from shared.connections import Connections
from shared.contracts import (
    BadCommand,
    ChangeNotes,
    ChangeUser,
    Command,
    CreateNote,
    CreateToken,
    DeleteNote,
    DeleteUser,
    Outcome,
    PatchNote,
    PurgeNote,
    RegisterUser,
    RenewHash,
    ReplaceNote,
    RestoreNote,
    RevokeToken,
)
from shared.database import Session
from tests.support.commands import CHEAP_HASH, DIGEST, create, patch, replace
from tests.support.properties import on_real_servers
from worker.apply import ApplyOptions, apply_batch
from worker.cache import Cache

START = datetime(2026, 1, 1, tzinfo=UTC)
EXPIRED_BEFORE = START + timedelta(seconds=30)
REPLAYED_AT = START + timedelta(minutes=9)
OWNERS = st.sampled_from([1, 2, 99])
NOTE_IDS = st.integers(1, 6)
TEXTS = st.sampled_from(["a", "b", "🖋"])
HASHES = st.sampled_from([CHEAP_HASH, CHEAP_HASH.replace("t=1", "t=2")])
VERSIONS = st.none() | st.tuples(st.integers(1, 3))
# Few ids and fingerprints, so that redeliveries and reused keys occur.
REPEATED_IDS = st.uuids() | st.integers(1, 8).map(lambda number: UUID(int=number))
FINGERPRINTS = st.sampled_from(["one", "one", "one", "two"])
NAMES = st.sampled_from(["Ada", "ADA", "\uff41\uff44\uff41", "Bob", "bob", "Cleo"])
NOTES: tuple[type[Command], ...] = (
    *(CreateNote, CreateNote, ReplaceNote, PatchNote, DeleteNote, DeleteNote, RestoreNote, RestoreNote, PurgeNote),
    ChangeNotes,
)
OPERATIONS: dict[str, type[Command]] = {
    "create": CreateNote,
    "replace": ReplaceNote,
    "patch": PatchNote,
    "delete": DeleteNote,
}
ACCOUNTS: tuple[type[Command], ...] = (
    RegisterUser,
    ChangeUser,
    RenewHash,
    DeleteUser,
    CreateToken,
    RevokeToken,
)

STORED = {
    "notes": "*",
    "tombstones": "id, owner_id, title, description, created_date, updated_date, version, mod_revision, erased",
    "note_versions": "note_id as id, version, owner_id, body",
    "users": "id, name, folded_name, password_hash, deleted_date is null, "
    "case when deleted_date is null then (credentials_version, updated_date, revision) end",
    "personal_tokens": "*",
    "commands": "id, owner_id, fingerprint, attempt_id, status, reason, note_version, replayed_at, body, command::text",
}
UNCHANGED = """
create function refuse_unchanged() returns trigger language plpgsql as $$
begin raise exception '% is written without a change', tg_table_name; end $$;
create trigger refuse_unchanged after update on notes for each row
    when (old.* is not distinct from new.*) execute function refuse_unchanged();
create trigger refuse_unchanged after update on users for each row
    when (old.* is not distinct from new.*) execute function refuse_unchanged();
"""
Batches = list[list[Command]]


def renewed_hash(command_id: UUID) -> str:
    """A hash that no other command has, since each salt is random."""
    return CHEAP_HASH.replace("c2FsdHNhbHQ", b64encode(command_id.bytes[-8:]).decode().rstrip("="))


@st.composite
def commands(draw: st.DrawFn, ids: st.SearchStrategy[UUID]) -> Command:
    envelope: dict[str, Any] = {
        "id": draw(ids),
        "attempt_id": draw(st.uuids()),
        "owner": draw(OWNERS),
        "credentials_version": draw(st.sampled_from([1, 1, 1, 2])),
        "fingerprint": draw(FINGERPRINTS),
        "time": START + timedelta(minutes=draw(st.integers(0, 5))),
        "may_expire": draw(st.sampled_from([True, None])),
    }
    model = draw(st.sampled_from(NOTES * 3 + ACCOUNTS * 2))
    if model is RegisterUser:
        del envelope["owner"]
    data = {"password_hash": renewed_hash(envelope["id"])} if model is RenewHash else draw(changes(model))
    return model.model_validate(envelope | {"data": data})


@st.composite
def changes(draw: st.DrawFn, model: type[Command]) -> dict[str, Any]:
    """A command's data: for an account, or for a note with its versions and a text that its type allows."""
    if model in ACCOUNTS:
        return draw(account_changes(model))
    if model is ChangeNotes:
        return {"items": draw(st.lists(items(), min_size=1, max_size=4))}
    if model is CreateNote:
        return {"title": draw(TEXTS), "description": draw(TEXTS)}
    data = {
        "note_id": draw(NOTE_IDS),
        "if_match": draw(VERSIONS),
        "if_none_match": draw(VERSIONS | st.sampled_from([None, "*"])),
    }
    if model is ReplaceNote:
        return data | {"title": draw(TEXTS), "description": draw(TEXTS)}
    if model is PatchNote:
        return data | {"title": draw(st.none() | TEXTS), "description": draw(st.none() | TEXTS)}
    return data


@st.composite
def items(draw: st.DrawFn) -> dict[str, Any]:
    """One of several writes."""
    op = draw(st.sampled_from(["create", *OPERATIONS]))
    return draw(changes(OPERATIONS[op])) | {"op": op}


@st.composite
def account_changes(draw: st.DrawFn, model: type[Command]) -> dict[str, Any]:
    if model is RegisterUser:
        return {"name": draw(NAMES), "password_hash": CHEAP_HASH}
    if model is ChangeUser:
        return {"name": draw(st.none() | NAMES), "password_hash": draw(st.none() | HASHES)}
    if model is CreateToken:
        name = draw(TEXTS)
        return {"name": name, "scopes": ["notes:read"], "lifetime_days": 90, "secret_digest": DIGEST}
    return {} if model is DeleteUser else {"token_id": draw(REPEATED_IDS)}


def cut(draw: st.DrawFn, sequence: list[Command]) -> Batches:
    cuts = draw(st.sets(st.integers(1, max(1, len(sequence)))))
    bounds = sorted({0, *cuts, len(sequence)})
    return [sequence[start:end] for start, end in pairwise(bounds)]


@st.composite
def partitioned(draw: st.DrawFn) -> Batches:
    """Any commands, with redeliveries."""
    return cut(draw, draw(st.lists(commands(REPEATED_IDS), min_size=1, max_size=16)))


@st.composite
def with_replays(draw: st.DrawFn) -> Batches:
    """Commands, some of which expire, and later replays of some of these among new ones, each at most once.

    An operator can replay only what has failed before, so a replay is never in the batch of its original.
    """
    first = draw(st.lists(commands(st.uuids()), min_size=1, max_size=12, unique_by=lambda command: command.id))
    replayed = draw(st.lists(st.sampled_from(first), max_size=6, unique_by=lambda command: command.id))
    forced = [draw(st.sampled_from([None, True])) for _ in replayed]
    replays = [
        command.model_copy(update={"replayed_at": REPLAYED_AT, "replay_forced": force})
        for command, force in zip(replayed, forced, strict=True)
    ]
    later = draw(st.permutations(replays + draw(st.lists(commands(st.uuids()), max_size=6))))
    return cut(draw, first) + cut(draw, list(later))


@st.composite
def repetitive(draw: st.DrawFn) -> Batches:
    """Many changes of two notes, about half of which change nothing."""
    changes = [
        create("a", "a"),
        create("b", "b"),
        *draw(
            st.lists(
                st.builds(replace, st.integers(1, 2), st.sampled_from("ab"), description=st.sampled_from("ab"))
                | st.builds(patch, st.integers(1, 2), st.sampled_from(["a", "b", None]), st.sampled_from(["a", None])),
                min_size=6,
                max_size=20,
            )
        ),
    ]
    minutes = [draw(st.integers(0, 5)) for _ in changes]
    return cut(
        draw,
        [
            change.model_copy(update={"time": START + timedelta(minutes=1 + minute)})
            for change, minute in zip(changes, minutes, strict=True)
        ],
    )


@pytest.fixture
async def watched(database: "Connection[Record]") -> "Connection[Record]":
    """A database that raises if a row is written without a change."""
    await database.execute(UNCHANGED)
    return database


@on_real_servers
@given(batches=partitioned())
async def test_any_partition_gives_the_same_rows_and_outcomes_as_one_by_one(
    connections: Connections, watched: "Connection[Record]", batches: Batches
) -> None:
    assert await run(connections, watched, batches) == await run(connections, watched, one_by_one(batches))


@on_real_servers
@given(batches=with_replays())
async def test_replays_in_any_partition_give_the_same_rows_and_outcomes_as_one_by_one(
    connections: Connections, watched: "Connection[Record]", batches: Batches
) -> None:
    assert await run(connections, watched, batches) == await run(connections, watched, one_by_one(batches))


@on_real_servers
@given(batches=repetitive())
async def test_changes_that_change_nothing_leave_rows_and_versions_alone_in_any_partition(
    connections: Connections, watched: "Connection[Record]", batches: Batches
) -> None:
    outcomes, rows = await run(connections, watched, batches)

    assert (outcomes, rows) == await run(connections, watched, one_by_one(batches))
    notes = [json.loads(outcome.body) for outcome in outcomes if outcome.body]
    texts = {(note["id"], note["version"]): (note["title"], note["description"]) for note in notes}
    for note in notes:
        text = (note["title"], note["description"])
        assert texts[note["id"], note["version"]] == text
        assert texts.get((note["id"], note["version"] - 1)) != text


class SameIds(Cache):
    """Gives notes the same ids in any batching: an id that a conflict has wasted is used again."""

    def __init__(self) -> None:
        super().__init__()
        self._first = self._next = 1

    def use(self, session: Session) -> None:
        self._first = self._next
        super().use(session)

    def clear(self) -> None:
        self._next = self._first
        super().clear()

    def missing_note_ids(self, batch: Sequence[Command | BadCommand]) -> int:  # noqa: ARG002 - it draws none
        return 0

    def take_note_ids(self) -> Iterator[int]:
        for number in count(self._first):
            self._next = number + 1
            yield number


def one_by_one(batches: Batches) -> Batches:
    return [[command] for batch in batches for command in batch]


async def run(
    connections: Connections, database: "Connection[Record]", batches: Sequence[Sequence[Command]]
) -> tuple[list[Outcome], list[list[Record]]]:
    """The outcomes and the rows that the batches leave in an empty database."""
    await database.execute(
        "truncate users, notes, tombstones, note_versions, commands, personal_tokens restart identity"
    )
    await database.execute(
        "insert into users (name, folded_name, created_date, updated_date) "
        "values ('Ida', 'ida', 'epoch', 'epoch'), ('Ada', 'ada', 'epoch', 'epoch')"
    )
    options = ApplyOptions(max_age=datetime.now(UTC) - EXPIRED_BEFORE)
    cache = SameIds()
    outcomes = [outcome for batch in batches for outcome in await apply_batch(connections, batch, options, cache)]
    return outcomes, [
        await database.fetch(f"select {columns} from {table} order by 1, 2")  # noqa: S608 - from above
        for table, columns in STORED.items()
    ]
