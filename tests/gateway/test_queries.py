"""The index that serves each read, according to EXPLAIN, in a database with the notes of many owners."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import asyncpg
import pytest

from dev.backend import Services
from gateway.caller import IMPLICIT_CALLER
from gateway.reads.errors import DatabaseUnavailableError
from gateway.reads.queries import SESSION_SETTINGS, Queries, describe_failure
from gateway.reads.statements import (
    FIND_NOTES,
    LIST_CHANGES,
    SEARCH_TEXT,
    SEARCH_TRIGRAMS,
    SEARCH_WORDS,
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
insert into tombstones (id, owner_id, created_date, updated_date, version, mod_revision)
select 1000000 + number, 1 + number % 101, now(), now(), 1, 1000000 + number from generate_series(1, $1) as number
"""
OWNER, OTHERS = 101, "1 + number % 100"
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
}
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
        await database.execute("vacuum analyze")
        await database.close()
        gateway = settings_of_gateway(servers, url, "inkwell")
        session = await connect(gateway.database_url, "test", session_settings=SESSION_SETTINGS)
        yield session
        await session.close()


@pytest.fixture(params=["large", "small"])
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
        await database.execute(TOMBSTONES, count)
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
