"""Two workers are invisible: however they interleave, every owner's notes and outcomes are those of one worker."""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from asyncpg import Connection, Record
from hypothesis import given
from hypothesis import strategies as st

from shared.connections import Connections
from shared.contracts import (
    ChangeNotes,
    ChangeUser,
    Command,
    CreateNote,
    DeleteNote,
    Outcome,
    PatchNote,
    PurgeNote,
    ReplaceNote,
    RestoreNote,
)
from shared.database import Session
from tests.support.applying import apply_with_others
from tests.support.properties import on_real_servers
from tests.worker.test_batching import (
    FINGERPRINTS,
    HASHES,
    REPEATED_IDS,
    START,
    Batches,
    changes,
    cut,
)
from worker import apply
from worker.cache import IDS_AHEAD, Cache
from worker.fold import Fold
from worker.sessions import SESSION_SETTINGS
from worker.settings import WorkerSettings
from worker.store import store

EXISTING = 6
"""The initial notes; commands name no others, since the ids of new ones depend on which worker draws them."""
MODELS: tuple[type[Command], ...] = (
    CreateNote,
    ReplaceNote,
    PatchNote,
    DeleteNote,
    RestoreNote,
    PurgeNote,
    ChangeNotes,
    CreateNote,
    ReplaceNote,
    ChangeUser,
)
NOTES = """
insert into notes (owner_id, title, description, created_date, updated_date, version, mod_revision)
select 1 + n % 2, 'a', 'a', 'epoch', 'epoch', 1, 1 from generate_series(1, 6) as n
"""
USERS = """
insert into users (name, folded_name, created_date, updated_date, revision)
values ('Ida', 'ida', 'epoch', 'epoch', 1), ('Ada', 'ada', 'epoch', 'epoch', 1)
"""
STORED = {
    "notes": "owner_id, title, description, created_date, updated_date, version, mod_revision",
    "tombstones": "owner_id, title, description, created_date, updated_date, version, mod_revision",
    "note_versions": "owner_id, version, case when note_id <= 6 then body end",
    "users": "id, name, credentials_version, password_hash, revision",
    "commands": "id, owner_id, fingerprint, attempt_id, status, reason, note_version",
}
Descriptions = list[tuple[object, ...]]
Store = Callable[[Session, Fold], Awaitable[dict[UUID, Outcome]]]


@st.composite
def commands(draw: st.DrawFn) -> Command:
    model = draw(st.sampled_from(MODELS))
    data = {"password_hash": draw(HASHES)} if model is ChangeUser else draw(changes(model))
    envelope: dict[str, Any] = {
        "id": draw(REPEATED_IDS),
        "attempt_id": draw(st.uuids()),
        "owner": draw(st.sampled_from([1, 2, 99])),
        "credentials_version": draw(st.sampled_from([1, 1, 1, 2])),
        "fingerprint": draw(FINGERPRINTS),
        "time": START + timedelta(minutes=draw(st.integers(0, 5))),
    }
    return model.model_validate(envelope | {"data": data})


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[list[Command], Batches, Batches, list[int]]:
    """Commands, their distribution over two workers, and the order in which the workers store."""
    several = draw(st.lists(commands(), min_size=1, max_size=12))
    turns = draw(st.lists(st.integers(0, 1), max_size=30))
    return several, cut(draw, several), cut(draw, several), turns


class Turns:
    """Makes two workers store in a chosen order, so that one's reads are outdated by the other's stores."""

    def __init__(self, order: list[int], store: Store) -> None:
        self._order = deque(order)
        self._store = store
        self._working = {0, 1}
        self._changed = asyncio.Condition()

    async def store(self, session: Session, fold: Fold) -> dict[UUID, Outcome]:
        """The worker's own, when it is this worker's turn; a transaction holds locks and does not wait."""
        me = int(asyncio.current_task().get_name())  # type: ignore[union-attr]
        if not session.is_in_transaction():
            async with self._changed:
                await self._changed.wait_for(lambda: self._is_turn_of(me))
                if self._order:
                    self._order.popleft()
                self._changed.notify_all()
        return await self._store(session, fold)

    def _is_turn_of(self, worker: int) -> bool:
        return not self._order or self._order[0] == worker or len(self._working) == 1

    async def leave(self, worker: int) -> None:
        """The worker has finished its batches."""
        async with self._changed:
            self._working.discard(worker)
            self._changed.notify_all()


@pytest.fixture
def workers(worker_settings: WorkerSettings) -> Iterator[list[Connections]]:
    both = [Connections(worker_settings.database_url, "test", 1, SESSION_SETTINGS) for _ in range(2)]
    yield both
    for connections in both:
        connections.close()


@on_real_servers
@given(example=interleaved())
async def test_any_interleaving_of_two_workers_gives_the_rows_and_outcomes_of_one_by_one(
    workers: list[Connections],
    database: "Connection[Record]",
    monkeypatch: pytest.MonkeyPatch,
    example: tuple[list[Command], Batches, Batches, list[int]],
) -> None:
    several, *partitions, order = example
    await begin(database)
    expected = await work(workers[0], [[command] for command in several])
    expected_rows = await rows(database)

    await begin(database)
    with monkeypatch.context() as patch:
        turns = Turns(order, store)
        patch.setattr(apply, "store", turns.store)

        async def run(worker: int) -> Descriptions:
            try:
                return await work(workers[worker], partitions[worker])
            finally:
                await turns.leave(worker)

        both = await asyncio.gather(*(asyncio.create_task(run(each), name=str(each)) for each in range(2)))

    assert both == [expected, expected]
    assert await rows(database) == expected_rows


async def begin(database: "Connection[Record]") -> None:
    await database.execute(
        "truncate users, notes, tombstones, note_versions, commands, personal_tokens restart identity"
    )
    await database.execute(USERS)
    await database.execute(NOTES)


async def work(connections: Connections, batches: Batches) -> Descriptions:
    """The worker's outcomes, without the ids of new notes."""
    cache = Cache(IDS_AHEAD)
    outcomes: list[Outcome] = []
    for batch in batches:
        outcomes += await apply_with_others(connections, batch, cache)
    return [describe(outcome) for outcome in outcomes]


def describe(outcome: Outcome) -> tuple[object, ...]:
    body = json.loads(outcome.body) if outcome.body else None
    for item in [*body.get("items", []), body] if body else []:
        if isinstance(item, dict) and item.get("id", 0) > EXISTING:
            item["id"] = None
    old = outcome.note_id if (outcome.note_id or 0) <= EXISTING else None
    return (outcome.id, outcome.status, outcome.http_status, outcome.reason, old, outcome.note_version, body)


async def rows(database: "Connection[Record]") -> list[list[Record]]:
    return [
        await database.fetch(f"select {columns} from {table} order by {columns}")  # noqa: S608 - from above
        for table, columns in STORED.items()
    ]
