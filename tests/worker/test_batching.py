"""Batching cannot be seen: any partition of a list of commands does what the commands do one by one."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

from asyncpg import Connection, Record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.connections import Connections
from shared.contracts import Command, Outcome
from tests.commands import create, delete, replace
from worker.apply import apply_batch

START = datetime(2026, 1, 1, tzinfo=UTC)
# Each example empties the one database by itself, and a busy machine is no reason to fail.
SLOW_ON_PURPOSE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
OWNERS = st.sampled_from([1, 2, 99])
NOTE_IDS = st.integers(1, 6)
TEXTS = st.sampled_from(["a", "b", "🖋"])
IF_MATCH = st.none() | st.tuples(st.integers(1, 3))
# Few ids and fingerprints, so that redeliveries and reused keys happen.
COMMAND_IDS = st.integers(1, 8).map(lambda number: UUID(int=number))
FINGERPRINTS = st.sampled_from(["one", "one", "one", "two"])


@st.composite
def commands(draw: st.DrawFn) -> Command:
    envelope: dict[str, Any] = {
        "id": draw(COMMAND_IDS | st.uuids()),
        "attempt_id": draw(st.uuids()),
        "owner": draw(OWNERS),
        "credentials_version": draw(st.sampled_from([1, 1, 1, 2])),
        "fingerprint": draw(FINGERPRINTS),
        "time": START + timedelta(seconds=draw(st.integers(0, 5))),
    }
    kind = draw(st.sampled_from(["create", "replace", "delete"]))
    if kind == "create":
        return create(draw(TEXTS), **envelope)
    if kind == "replace":
        return replace(draw(NOTE_IDS), draw(TEXTS), draw(IF_MATCH), **envelope)
    return delete(draw(NOTE_IDS), draw(IF_MATCH), **envelope)


@st.composite
def partitioned(draw: st.DrawFn) -> list[list[Command]]:
    sequence = draw(st.lists(commands(), min_size=1, max_size=16))
    cuts = draw(st.sets(st.integers(1, len(sequence))))
    bounds = sorted({0, *cuts, len(sequence)})
    return [sequence[start:end] for start, end in pairwise(bounds)]


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW_ON_PURPOSE)
@given(batches=partitioned())
async def test_any_partition_gives_the_same_notes_and_outcomes_as_one_by_one(
    connections: Connections, database: "Connection[Record]", batches: list[list[Command]]
) -> None:
    one_by_one = [[command] for batch in batches for command in batch]

    assert await run(connections, database, batches) == await run(connections, database, one_by_one)


async def run(
    connections: Connections, database: "Connection[Record]", batches: Sequence[Sequence[Command]]
) -> tuple[list[Outcome], list[Record], list[Record]]:
    """The outcomes, the notes and the commands' rows that the batches leave in an empty database."""
    await database.execute("truncate users, notes, commands restart identity")
    await database.execute("insert into users default values; insert into users default values")
    outcomes = [outcome for batch in batches for outcome in await apply_batch(connections, batch)]
    notes = await database.fetch("select * from notes order by id")
    rows = await database.fetch(
        "select id, owner_id, fingerprint, attempt_id, status, reason, body from commands order by id"
    )
    return outcomes, notes, rows
