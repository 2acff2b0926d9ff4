"""Migrations, the grants that they make, and a worker's reaction to an outdated schema."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import TypeAlias
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import make_url

from dev.backend import ROOT, Services
from gateway.settings import GatewaySettings
from shared.database import SchemaBehindError, check_schema
from shared.tables import SCHEMA_REVISION, metadata
from tests.support.harness import eventually
from worker.settings import WorkerSettings

MIGRATION_LOCK = 0x1E7C_0DE5
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

WRITES = {
    "users": ["insert into users default values", "update users set credentials_version = 2", "delete from users"],
    "notes": [
        "insert into notes values (default, 1, '', '', now(), now(), 1)",
        "update notes set title = ''",
        "delete from notes",
    ],
    "commands": [
        "insert into commands (id, status, http_status) values (gen_random_uuid(), 'applied', 200)",
        "update commands set status = 'failed'",
        "delete from commands",
    ],
}
WRITTEN_OTHERWISE = """
select written from generate_series(1, 200000) as number, lateral (select chr(number) as written) as character,
  unnest(array[
    inkwell_fold(written), lower(written collate pg_c_utf8), normalize(written, NFD), normalize(written, NFKC)
  ]) as other
where number not between 55296 and 57343 and inkwell_fold(other) <> inkwell_fold(written)
"""
"""Characters with two forms, surrogates left out."""
SCHEMA_CHANGES = ["drop table notes", "truncate notes", "alter table notes add colour text", "create table t (id int)"]


@pytest.fixture
async def empty_database_url(servers: Services) -> AsyncIterator[str]:
    """The URL of a database without any migration."""
    name = f"inkwell_empty_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(servers.database_url)
    await admin.execute(f"create database {name}")
    yield make_url(servers.database_url).set(database=name).render_as_string(hide_password=False)
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


def run(database_url: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a Python module as a process."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "INKWELL_DATABASE_URL": database_url, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def alembic(database_url: str, *arguments: str) -> str:
    """Runs Alembic; returns its output."""
    ended = run(database_url, "alembic", *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


async def test_models_and_migrations_agree(database_url: str) -> None:
    assert "No new upgrade operations detected" in alembic(database_url, "check")


async def test_migrations_go_down_and_up_again(empty_database_url: str) -> None:
    alembic(empty_database_url, "upgrade", "head")
    alembic(empty_database_url, "downgrade", "base")
    assert await table_names(empty_database_url) == {"alembic_version"}

    alembic(empty_database_url, "upgrade", "head")

    assert await table_names(empty_database_url) == {"alembic_version", *metadata.tables}


async def test_migrators_that_start_together_go_one_after_the_other(empty_database_url: str) -> None:
    both = [asyncio.to_thread(run, empty_database_url, "alembic", "upgrade", "head") for _ in range(2)]

    ended = await asyncio.gather(*both)

    assert [each.returncode for each in ended] == [0, 0], [each.stderr for each in ended]


async def test_migration_waits_for_the_lock_of_another(empty_database_url: str) -> None:
    other = await asyncpg.connect(empty_database_url)
    await other.execute("select pg_advisory_lock($1)", MIGRATION_LOCK)
    migrating = asyncio.create_task(asyncio.to_thread(alembic, empty_database_url, "upgrade", "head"))

    await eventually(lambda: waits_for_a_lock(other))
    assert await table_names(empty_database_url) == set()
    await other.close()
    await migrating

    assert "notes" in await table_names(empty_database_url)


async def waits_for_a_lock(connection: Connection) -> bool:
    return bool(await connection.fetchval("select exists (select from pg_locks where not granted)"))


async def test_language_of_searches_can_be_changed(database_url: str, database: Connection) -> None:
    await database.execute("insert into notes values (default, 1, 'Die Häuser', '', now(), now(), 1)")

    german = run(database_url, "alembic", "upgrade", "head", INKWELL_SEARCH_LANGUAGE="german")
    again = run(database_url, "alembic", "upgrade", "head", INKWELL_SEARCH_LANGUAGE="pg_catalog.german")
    alembic(database_url, "upgrade", "head")

    assert (german.returncode, again.returncode) == (0, 0), german.stderr
    assert await database.fetchval("select words::text from notes") == "'haus':2A,4A"


async def test_notes_of_before_get_what_searches_compare(empty_database_url: str) -> None:
    alembic(empty_database_url, "upgrade", "0006")
    database = await asyncpg.connect(empty_database_url)
    await database.execute("insert into notes values (default, 1, 'Übung', 'v1.2', now(), now(), 1)")
    read = "select words::text, to_jsonb(notes) ->> 'folded_text' from notes"
    before = await database.fetchrow(read) or ()

    alembic(empty_database_url, "upgrade", "0007")
    after = await database.fetchrow(read) or ()
    alembic(empty_database_url, "downgrade", "0006")

    assert tuple(before) == ("'v1.2':2B 'übung':1A", None)
    assert tuple(after) == ("'2':4B 'ubung':2A 'v1':3B 'übung':1A", "ubung\x1fv1.2")
    assert await database.fetchrow(read) == before
    await database.close()


async def test_every_way_to_write_a_character_has_one_form(database: Connection) -> None:
    assert await database.fetch(WRITTEN_OTHERWISE) == []


@pytest.mark.parametrize("language", ["klingon", "'; drop table notes", '"'])
def test_language_that_postgres_does_not_know_is_named(database_url: str, language: str) -> None:
    ended = run(database_url, "alembic", "upgrade", "head", INKWELL_SEARCH_LANGUAGE=language)

    assert ended.returncode == 2
    assert "INKWELL_SEARCH_LANGUAGE" in ended.stderr


async def test_every_text_that_a_note_may_have_can_be_stored(database: Connection) -> None:
    several = ("x" * 1_000_000, "é-🖋 " * 200_000, "a.b/c-d_e@f.g " * 60_000, " ".join(map(str, range(150_000))))
    for text in several:
        await database.execute("insert into notes values (default, 1, $1, $2, now(), now(), 1)", text[:10_000], text)


async def test_upgrade_of_a_migrated_database_changes_nothing(database_url: str, database: Connection) -> None:
    await database.execute(WRITES["notes"][0])

    alembic(database_url, "upgrade", "head")

    assert await database.fetchval("select count(*) from notes") == 1


async def table_names(database_url: str) -> set[str]:
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
    await connection.close()
    return {row["tablename"] for row in rows}


@pytest.mark.parametrize("table", WRITES)
async def test_gateway_cannot_write(as_gateway: Connection, table: str) -> None:
    for statement in WRITES[table]:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await as_gateway.execute(statement)


async def test_worker_cannot_change_the_schema(as_worker: Connection) -> None:
    for statement in SCHEMA_CHANGES:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await as_worker.execute(statement)


async def test_gateway_cannot_change_the_schema(as_gateway: Connection) -> None:
    for statement in SCHEMA_CHANGES:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await as_gateway.execute(statement)


async def test_worker_refuses_a_database_that_was_never_migrated(
    empty_database_url: str, servers: Services, queue_prefix: str
) -> None:
    ended = run_worker(empty_database_url, servers.broker_url, queue_prefix)

    assert ended.returncode == 3
    assert "alembic upgrade head" in ended.stderr


async def test_worker_refuses_a_schema_that_is_behind(
    database_url: str, worker_settings: WorkerSettings, servers: Services, queue_prefix: str
) -> None:
    alembic(database_url, "downgrade", "base")

    ended = run_worker(str(worker_settings.database_url.get_secret_value()), servers.broker_url, queue_prefix)

    assert ended.returncode == 3
    assert "alembic upgrade head" in ended.stderr


def run_worker(database_url: str, broker_url: str, queue_prefix: str) -> "subprocess.CompletedProcess[str]":
    return run(
        database_url,
        "worker",
        INKWELL_BROKER_URL=broker_url,
        INKWELL_QUEUE_PREFIX=queue_prefix,
        INKWELL_WORKER_HEALTH_PORT="0",
    )


async def test_schema_that_a_newer_version_made_is_accepted(
    database: Connection, gateway_settings: GatewaySettings
) -> None:
    await database.execute("update alembic_version set version_num = '9999'")

    await check_schema(gateway_settings.database_url, "test")


async def test_migration_that_finds_a_newer_schema_leaves_it_alone_and_succeeds(
    database: Connection, database_url: str
) -> None:
    await database.execute("update alembic_version set version_num = '9999'")

    ended = run(database_url, "alembic", "upgrade", "head")

    assert ended.returncode == 0, ended.stderr
    assert "9999" in ended.stderr
    assert await database.fetchval("select version_num from alembic_version") == "9999"


@pytest.mark.parametrize(("revision", "arguments"), [("0000", ("upgrade", "head")), ("9999", ("downgrade", "-1"))])
async def test_migration_from_a_schema_that_is_unknown_and_not_newer_or_downwards_fails(
    database: Connection, database_url: str, revision: str, arguments: tuple[str, ...]
) -> None:
    await database.execute("update alembic_version set version_num = $1", revision)

    ended = run(database_url, "alembic", *arguments)

    assert ended.returncode != 0
    assert "Can't locate revision" in ended.stdout


async def test_schema_that_is_not_there_is_behind(database: Connection, gateway_settings: GatewaySettings) -> None:
    await database.execute("drop table alembic_version")

    with pytest.raises(SchemaBehindError, match="alembic upgrade head"):
        await check_schema(gateway_settings.database_url, "test")


def test_the_revision_that_the_code_needs_is_the_newest_migration(database_url: str) -> None:
    assert alembic(database_url, "heads").split()[0] == SCHEMA_REVISION
