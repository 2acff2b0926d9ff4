"""The index that serves each read, according to EXPLAIN, in a database with the notes of many owners."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import asyncpg
import pytest

from dev.backend import Services
from gateway.caller import IMPLICIT_CALLER
from gateway.reads.errors import DatabaseUnavailableError
from gateway.reads.queries import SESSION_SETTINGS, Queries, describe_failure
from gateway.reads.search_statements import SEARCH_TEXT, SEARCH_TRIGRAMS, SEARCH_WORDS
from gateway.reads.statements import (
    EXPORT_NOTES,
    FIND_NOTES,
    FIND_TRASHED,
    FIND_VERSION,
    LIST_CHANGES,
    LIST_TRASH,
    LIST_VERSIONS,
    SORTED_BY,
    ListShape,
    build_list_statement,
)
from gateway.settings import GatewaySettings
from shared.database import Session, Statement, connect
from tests.support.isolation import fresh_database, settings_of_gateway

OWNERS = "insert into users (name) select 'Ada' from generate_series(1, 101)"
NOTES = """
insert into notes (owner_id, title, description, created_date, updated_date, version)
select {owner}, 'Ink ' || number, 'common', now() - number * interval '1 hour', now(), 1
from generate_series(1, {count}) as number
"""
TOMBSTONES = """
insert into tombstones (id, owner_id, title, description, created_date, updated_date, version, mod_revision, erased)
select 1000000 + number, {owner}, case when number % 1000 = 0 then 'Ink' end, 'old', now(), now(), 1, number, true
from generate_series({first}, {last}) as number
"""
DELETIONS = """
insert into tombstones (id, owner_id, created_date, updated_date, version, mod_revision)
select 1000000 + number, 1 + number % 101, now(), now(), 1, 1000000 + number from generate_series(1, $1) as number
"""
OUTCOMES = """
insert into commands (id, type, owner_id, status, http_status, note_id, note_version, body)
select gen_random_uuid(), 'note.replace', {owner}, 'applied', 200, {note}, {version}, '{{"title": "former"}}'
from generate_series(1, {count}) as number
"""
VERSIONS = """
insert into note_versions (note_id, version, owner_id, body)
select 1 + number / 10, number % 10, 101, '{}' from generate_series(1, 50000) as number
"""
OWNER, OTHERS = 101, "1 + number % 100"
CHANGED_NOTE = 6000
"""Has a hundred thousand outcomes, half of them of one version."""
VALUES = {
    "owner": OWNER,
    "credentials_version": 1,
    "owners": [OWNER, OWNER],
    "credentials_versions": [1, 1],
    "note_ids": [6000, 6001],
    "skip": 0,
    "limit": 100,
    "after_id": 6000,
    "words": "ink",
    "text": "ink",
    "symbols": [],
    "bound": 1000,
    "reach": 50_000,
    "title_prefix": "Ink 240",
    "note_id": CHANGED_NOTE,
    "version": 777,
    "before": 2**31,
    "before_revision": 2**63 - 1,
    "before_id": 2**63 - 1,
}
VERSION_INDEXES = {"commands_versions_idx", "note_versions_pkey"}
AFTER = {"id": None, "created": datetime.now(UTC), "updated": datetime.now(UTC), "title": "Ink"}
INDEX = {
    "id": "notes_owner_id_id_idx",
    "created": "notes_owner_id_created_date_id_idx",
    "updated": "notes_owner_id_updated_date_id_idx",
    "title": "notes_owner_id_title_idx",
}


@pytest.fixture(scope="module")
async def session(servers: Services, template: str) -> AsyncIterator[Session]:
    """The gateway's session, in a database with notes of many owners."""
    async with fresh_database(servers, template) as url:
        database = await asyncpg.connect(url)
        await database.execute(OWNERS)
        await database.execute(NOTES.format(owner=OTHERS, count=5000))
        await database.execute(NOTES.format(owner=OWNER, count=30_000))
        await database.execute("update notes set version = 60000 where id = $1", CHANGED_NOTE)
        await database.execute(TOMBSTONES.format(owner=OTHERS, first=1, last=50_000))
        await database.execute(TOMBSTONES.format(owner=OWNER, first=50_001, last=200_000))
        others = "5001 + number % 30000"
        await database.execute(OUTCOMES.format(owner=OWNER, note=others, version=1, count=300_000))
        await database.execute(OUTCOMES.format(owner=OWNER, note=CHANGED_NOTE, version="number", count=50_000))
        await database.execute(OUTCOMES.format(owner=OWNER, note=CHANGED_NOTE, version=50_000, count=50_000))
        await database.execute(VERSIONS)
        await database.execute("vacuum analyze")
        await database.close()
        gateway = settings_of_gateway(servers, url, "inkwell")
        session = await connect(gateway.database_url, "test", session_settings=SESSION_SETTINGS)
        yield session
        await session.close()


@pytest.fixture(scope="module", params=["large", "small"])
async def changed(request: pytest.FixtureRequest, servers: Services, template: str) -> AsyncIterator[Session]:
    """The gateway's session, in a database with many or few changes; the plan is kept while the tables grow."""
    count = {"large": 30_000, "small": 3}[request.param]
    async with fresh_database(servers, template) as url:
        database = await asyncpg.connect(url)
        await database.execute(OWNERS)
        await database.execute(NOTES.format(owner=OTHERS, count=count))
        await database.execute(NOTES.format(owner=OWNER, count=count))
        await database.execute("alter table notes disable trigger user")
        await database.execute("update notes set mod_revision = id")
        await database.execute(DELETIONS, count)
        await database.execute("vacuum analyze")
        await database.close()
        gateway = settings_of_gateway(servers, url, "inkwell")
        session = await connect(gateway.database_url, "test", session_settings=SESSION_SETTINGS)
        yield session
        await session.close()


@pytest.mark.parametrize("after_revision", [-1, 1, 10**9])
async def test_changes_are_merged_from_the_indexes_of_notes_and_tombstones(
    changed: Session, after_revision: int
) -> None:
    plan = await plan_of(changed, LIST_CHANGES, after_revision=after_revision, after_id=0)

    assert used(plan) == {
        "users_pkey",
        "notes_owner_id_mod_revision_id_idx",
        "tombstones_owner_id_mod_revision_id_idx",
    }, plan
    assert "Sort" not in plan.replace("Sort Key", ""), plan
    read = [
        int(line.partition("rows=")[2].split(".")[0].split(" ")[0]) for line in plan.splitlines() if "rows=" in line
    ]
    assert max(read) <= VALUES["limit"] + VALUES["limit"], plan  # type: ignore[operator]


async def plan_of(session: Session, statement: Statement, **changed: object) -> str:
    """The plan without the parts that were never executed."""
    values = VALUES | changed
    explaining = replace(statement, sql=f"explain (analyze, costs off, timing off) {statement.sql}")
    rows = await explaining.fetch(session, **values)
    return "\n".join(row[0] for row in rows)


def used(plan: str) -> set[str]:
    """The indexes that were used, and `Seq Scan` if a whole table was read."""
    lines = [line for line in plan.splitlines() if "never executed" not in line]
    words = " ".join(lines).replace("(", " ").split()
    return {word for word in words if word.endswith(("_idx", "_pkey"))} | (
        {"Seq Scan"} if "Seq Scan" in plan else set()
    )


async def test_one_note_is_found_by_its_id(session: Session) -> None:
    assert used(await plan_of(session, FIND_NOTES)) <= {"users_pkey", "notes_pkey", "notes_owner_id_id_idx"}


SHAPES = [
    ListShape(order, descending, is_continued=is_continued)
    for order in SORTED_BY
    for descending in (False, True)
    for is_continued in (False, True)
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
async def test_list_is_read_in_the_order_of_an_index(session: Session, shape: ListShape) -> None:
    plan = await plan_of(session, build_list_statement(shape), after_key=AFTER[shape.sorted_by])

    assert used(plan) == {"users_pkey", INDEX[shape.sorted_by]}, plan
    assert "Sort" not in plan, plan


@pytest.mark.parametrize("after_id", [0, 20_000])
async def test_export_is_read_in_the_order_of_an_index(session: Session, after_id: int) -> None:
    plan = await plan_of(session, EXPORT_NOTES, after_id=after_id)

    assert used(plan) == {"users_pkey", "notes_owner_id_id_idx"}, plan
    assert "Sort" not in plan, plan


@pytest.mark.parametrize(
    ("filters", "values", "index"),
    [
        ({"title_prefix"}, {"title_prefix": "Ink 24001"}, "notes_trigrams_idx"),
        ({"created_from"}, {"created_from": datetime.now(UTC)}, "notes_owner_id_created_date_id_idx"),
        ({"updated_until"}, {"updated_until": datetime(2020, 1, 1, tzinfo=UTC)}, "notes_owner_id_updated_date_id_idx"),
    ],
)
async def test_list_of_a_few_is_read_by_its_filter(
    session: Session, filters: set[str], values: dict[str, object], index: str
) -> None:
    plan = await plan_of(session, build_list_statement(ListShape(filters=frozenset(filters))), **values)

    assert index in used(plan)


async def test_rare_word_is_looked_up(session: Session) -> None:
    plan = await plan_of(session, SEARCH_WORDS, words="2400")

    assert used(plan) == {"users_pkey", "notes_owner_id_id_idx", "notes_words_idx", "notes_pkey"}


async def test_common_word_is_found_by_walking_back_from_the_newest(session: Session) -> None:
    plan = await plan_of(session, SEARCH_WORDS, words="common")

    assert used(plan) == {"users_pkey", "notes_owner_id_id_idx", "notes_pkey"}, plan


async def test_rare_text_is_looked_up(session: Session) -> None:
    plan = await plan_of(session, SEARCH_TEXT, words="k 2400", text="k 2400")

    assert used(plan) == {"users_pkey", "notes_owner_id_id_idx", "notes_trigrams_idx", "notes_pkey"}, plan


@pytest.mark.parametrize("text", ["mmo", "om", "天气"])
async def test_common_or_short_text_is_found_by_walking_back_from_the_newest(session: Session, text: str) -> None:
    plan = await plan_of(session, SEARCH_TEXT, words=text, text=text)

    assert used(plan) <= {"users_pkey", "notes_owner_id_id_idx", "notes_pkey"}, plan


async def test_similar_notes_are_looked_up(session: Session) -> None:
    plan = await plan_of(session, SEARCH_TRIGRAMS, text="Inc 2400")

    assert used(plan) == {"users_pkey", "notes_trigrams_idx", "notes_pkey"}, plan


@pytest.mark.parametrize("before", [2**63 - 1, 100_000])
async def test_trash_is_read_in_the_order_of_its_index(session: Session, before: int) -> None:
    plan = await plan_of(session, LIST_TRASH, before_revision=before)

    assert used(plan) == {"users_pkey", "tombstones_trash_idx"}, plan
    assert "Sort" not in plan, plan


async def test_note_in_the_trash_is_found_by_its_id(session: Session) -> None:
    plan = await plan_of(session, FIND_TRASHED, note_id=1_100_000)

    assert used(plan) == {"users_pkey", "tombstones_pkey"}, plan


@pytest.mark.parametrize("note_id", [CHANGED_NOTE, 5002])
async def test_history_is_read_from_the_indexes_of_versions(session: Session, note_id: int) -> None:
    plan = await plan_of(session, LIST_VERSIONS, note_id=note_id)

    assert used(plan) <= {"users_pkey", "notes_pkey", "notes_owner_id_id_idx"} | VERSION_INDEXES, plan
    assert used(plan) >= VERSION_INDEXES, plan


@pytest.mark.parametrize("version", [777, 50_000, 60_000, 60_001])
async def test_one_version_is_looked_up(session: Session, version: int) -> None:
    plan = await plan_of(session, FIND_VERSION, version=version)

    assert used(plan) <= {"users_pkey", "notes_pkey", "notes_owner_id_id_idx"} | VERSION_INDEXES, plan


async def test_history_of_an_owner_with_many_outcomes_is_fast(session: Session) -> None:
    values = {**VALUES, "limit": 101}
    loop = asyncio.get_running_loop()
    for statement, rows in ((LIST_VERSIONS, 101), (FIND_VERSION, 1)):
        seconds = []
        for _ in range(10):
            started = loop.time()
            [row] = await statement.fetch(session, **values)
            seconds.append(loop.time() - started)
        assert len(row.get("versions") or [row["body"]]) == rows
        assert min(seconds) < 0.03  # reading all outcomes of the owner, or of the note, takes longer


async def test_postgres_says_why_a_read_took_too_long(gateway_settings: GatewaySettings, database: Session) -> None:
    queries = Queries(gateway_settings.model_copy(update={"read_timeout_seconds": 1.0}))
    async with database.transaction():
        await database.execute("lock table notes in access exclusive mode")
        with pytest.raises(DatabaseUnavailableError) as caught:
            await queries.find_note(IMPLICIT_CALLER, 1)
    queries.close()

    assert describe_failure(caught.value.__cause__ or caught.value) == {
        "error": "QueryCanceledError 57014: canceling statement due to statement timeout"
    }
