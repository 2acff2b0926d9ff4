"""A contender's database: the same notes before each measurement, and the number of writes after it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

import asyncpg

SETTLE_SECONDS = 120.0
QUIET_SECONDS = 0.3
SLOW = """
create or replace function slow() returns trigger language plpgsql as
$$ begin if exists (select from changed) then perform pg_sleep(0.1); end if; return null; end $$;
create or replace trigger slow_insert after insert on notes
  referencing new table as changed for each statement execute function slow();
create or replace trigger slow_update after update on notes
  referencing new table as changed for each statement execute function slow()
"""
NOT_SLOW = "drop trigger if exists slow_insert on notes; drop trigger if exists slow_update on notes"
ONE_TEXT = "'Ink', 'A note that was there before'"
RARE_WORD, COMMON_WORD = "quokka", "common"
RARE_NOTES = 5
TEXTS = """
(array['Blue', 'Red', 'Black', 'Green', 'Dry', 'Wet', 'Old', 'New'])[1 + id % 8] || ' ink ' || id % 1000,
'word' || id % 5000 || ' word' || id % 777 || ' and a few more words of number ' || id
  || case when id % 2 = 0 then ' {common}' else '' end || case when id % {every} = 7 then ' {rare}' else '' end
"""
AUTOVACUUM_TRANSACTIONS = 10
COUNT = "select count(*) from notes"
CHANGE_INTERVAL_SECONDS = 0.005
"""Shorter than the time between two lists of one owner."""


def texts_of(notes: int) -> str:
    """Titles and descriptions of this many notes, as SQL: half contain the common word, five the rare one."""
    return TEXTS.format(common=COMMON_WORD, rare=RARE_WORD, every=max(1, notes // RARE_NOTES))


class Schema(Enum):
    """The tables to truncate, a note's columns beside its text, and a counter that each replacement increments.

    Without versions the counter is that of the server's writing transactions; only autovacuum adds to it.
    """

    DIRECT = "notes", "created_date", "now()", "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    INKWELL = (
        "users, personal_tokens, notes, tombstones, commands",
        "owner_id, created_date, updated_date, version",
        "1 + (id - 1) % {owners}, now(), now(), 1",
        "select coalesce(sum(version), 0)::bigint from notes",
    )
    NAIVE = "notes", "created_date", "now()", "select 0"

    def __init__(self, tables: str, columns: str, values: str, replaced: str) -> None:
        self.tables = tables
        self.columns = columns
        self.values = values
        self.replaced = replaced


@dataclass(frozen=True, slots=True)
class Database:
    """A database on the common server, on a connection of the bench."""

    url: str
    connection: "asyncpg.Connection[asyncpg.Record]"
    schema: Schema

    async def reset(self, owners: int, notes_per_owner: int, *, slow: bool = False, texts: str = ONE_TEXT) -> None:
        """Notes with ids from 1, distributed over the owners in turn; restores full speed unless `slow`."""
        values = self.schema.values.format(owners=owners)
        await self.connection.execute(f"truncate {self.schema.tables} restart identity; {NOT_SLOW}")
        if self.schema is Schema.INKWELL:
            await self.connection.execute(
                "insert into users (name, folded_name) "
                f"select 'Owner ' || id, 'owner ' || id from generate_series(1, {owners}) as id"
            )
        await self.connection.execute(
            f"insert into notes (title, description, {self.schema.columns}) "
            f"select {texts}, {values} "
            f"from generate_series(1, {owners * notes_per_owner}) as id"
        )
        await self.connection.execute("vacuum analyze notes")
        if slow:
            await self.slow_down()

    async def fill(self, notes: int, others: int) -> None:
        """This many notes of the first owner, among ten of each of this many others."""
        await self.reset(1 + others, 0)
        into = f"insert into notes (title, description, {self.schema.columns}) select"
        mine, theirs = "1, now(), now(), 1", f"2 + id % {others}, now(), now(), 1"
        for owner, count in ((theirs, 5 * others), (mine, notes), (theirs, 5 * others)):
            if count:
                rows = f"{texts_of(count)}, {owner} from generate_series(1, {count}) as id"
                await self.connection.execute(f"{into} {rows}")
        await self.connection.execute("vacuum analyze")

    async def slow_down(self) -> None:
        """Delays every statement that inserts or updates notes by 100 ms from now on."""
        await self.connection.execute(SLOW)

    async def speed_up(self) -> None:
        """End `slow_down`."""
        await self.connection.execute(NOT_SLOW)

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Raise the revision of every owner continuously, as changes do, so that no list stays the same."""
        if self.schema is not Schema.INKWELL:
            yield
            return
        raising = asyncio.create_task(self._raise_revisions())
        try:
            yield
        finally:
            raising.cancel()
            await asyncio.wait([raising])

    async def _raise_revisions(self) -> None:
        while True:
            await self.connection.execute("update users set revision = revision + 1")
            await asyncio.sleep(CHANGE_INTERVAL_SECONDS)

    async def written(self, method: str) -> int:
        """The number of notes created (POST) or replaced (PUT), with an arbitrary start."""
        return int(await self.connection.fetchval(COUNT if method == "POST" else self.schema.replaced))

    def overcounted(self, method: str) -> int:
        """The tolerance of `written`."""
        return AUTOVACUUM_TRANSACTIONS if method == "PUT" and self.schema is Schema.DIRECT else 0

    async def settled(self, method: str, expected: int) -> int:
        """The value of `written` once it is reached and stays, or the current one if it is not reached in time."""
        seen = -1
        deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            before, seen = seen, await self.written(method)
            if seen >= expected and seen == before:
                break
            await asyncio.sleep(QUIET_SECONDS)
        return seen
