"""However writes, corrections, purges and pages interleave, a follower's copy becomes what the database has."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.caller import Caller
from gateway.reads.changes import ChangedNote, ChangesCursor, ChangesGoneError
from gateway.reads.queries import Queries
from gateway.settings import GatewaySettings
from shared.connections import Connections
from shared.contracts import Command, CreateItem, DeleteItem
from shared.database import Session
from tests.support.commands import create, delete, patch, several
from tests.support.properties import on_real_servers
from worker.apply import apply_batch
from worker.housekeeping import TOMBSTONE_RETENTION as RETENTION
from worker.housekeeping import purge_tombstones

OWNER, OTHER = 1, 2
BEGIN = """
truncate notes, tombstones, commands restart identity;
insert into users (id, name, folded_name) overriding system value values (2, 'Bob', 'bob') on conflict (id) do nothing;
"""
NOTES = st.integers(0, 5)
"""A position among the notes that exist, or may have existed."""
AGE = """
update tombstones set deleted_date = now() - interval '40 days', title = null, description = null, erased = true
where owner_id = 1 and mod_revision <= (select min(mod_revision) from tombstones where owner_id = 1)
"""
STEPS = st.one_of(
    st.tuples(st.just("create"), st.integers(1, 3)),
    st.tuples(st.just("patch"), NOTES),
    st.tuples(st.just("delete"), NOTES),
    st.tuples(st.just("several"), NOTES),
    st.tuples(st.just("strangers"), st.just(1)),
    st.tuples(st.just("correct"), NOTES),
    st.tuples(st.just("delete by hand"), NOTES),
    st.tuples(st.just("purge"), st.just(0)),
    st.tuples(st.just("first reads"), st.integers(1, 3)),
    st.tuples(st.just("first reads"), st.integers(1, 3)),
    st.tuples(st.just("second reads"), st.integers(1, 3)),
)


@dataclass
class Follower:
    """One who reads pages, and begins anew if changes are gone."""

    queries: Queries
    cursor: ChangesCursor = field(default_factory=lambda: ChangesCursor(OWNER))
    copy: dict[int, str] = field(default_factory=dict)
    places: list[tuple[int, int]] = field(default_factory=list)

    async def read(self, limit: int) -> bool:
        """Reads a page; returns whether there is more to read."""
        try:
            page = await self.queries.list_changes(Caller(OWNER, 1), self.cursor, limit)
        except ChangesGoneError:
            self.cursor, self.copy, self.places = ChangesCursor(OWNER), {}, []
            return True
        for change in page.changes:
            self._apply(change)
        self.cursor = ChangesCursor.parse(page.cursor.encoded)
        return page.has_more

    def _apply(self, change: ChangedNote) -> None:
        place = (change.revision, change.id)
        assert not self.places or self.places[-1] < place
        self.places.append(place)
        if change.note:
            self.copy[change.id] = change.note
        else:
            self.copy.pop(change.id, None)


@pytest.fixture
async def queries(gateway_settings: GatewaySettings) -> AsyncIterator[Queries]:
    """The reads of a gateway."""
    queries = Queries(gateway_settings)
    yield queries
    queries.close()


async def take(step: str, argument: int, connections: Connections, database: Session) -> None:
    """Takes a step that changes the database."""
    rows = await database.fetch("select id from notes where owner_id = 1 order by id")
    note = rows[argument % len(rows)]["id"] if rows else 999
    commands: dict[str, list[Command]] = {
        "create": [create() for _ in range(argument)],
        "patch": [patch(note, title="other"), patch(note, title="another"), create()],
        "delete": [delete(note), delete(note)],
        "several": [several(CreateItem(title="a", description=""), DeleteItem(note_id=note)), create()],
        "strangers": [create(owner=OTHER)],
    }
    if step in commands:
        await apply_batch(connections, commands[step])
    elif step == "correct":
        await database.execute("update notes set title = 'by hand' where id = any($1)", [note, note + 1])
    elif step == "delete by hand":
        await database.execute("delete from notes where id = $1", note)
    else:
        await database.execute(AGE)
        await purge_tombstones(database, RETENTION)


@on_real_servers
@given(steps=st.lists(STEPS, max_size=25))
async def test_copy_becomes_what_the_database_has(
    queries: Queries, connections: Connections, database: Session, steps: list[tuple[str, int]]
) -> None:
    await database.execute(BEGIN)
    first, second = Follower(queries), Follower(queries)
    for step, argument in steps:
        if step == "first reads":
            await first.read(argument)
        elif step == "second reads":
            await second.read(argument)
        else:
            await take(step, argument, connections, database)

    listed = await queries.list_changes(Caller(OWNER, 1), ChangesCursor(OWNER), 1000)
    expected = {change.id: change.note for change in listed.changes if change.note}
    ids = [row["id"] for row in await database.fetch("select id from notes where owner_id = 1")]
    assert sorted(expected) == sorted(ids)
    for follower in (first, second):
        while await follower.read(2):
            pass
        assert follower.copy == expected
