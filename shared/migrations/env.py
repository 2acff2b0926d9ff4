"""Alembic's environment: migrations run online, one migrator at a time, in one transaction."""

import asyncio
import sys
from functools import partial

from alembic import command, context
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from shared.database import connect
from shared.settings import EXIT_BAD_SETTING, MigrationSettings, load_settings
from shared.tables import SCHEMA_REVISION, WORDS, metadata

MIGRATION_LOCK = 0x1E7C_0DE5
FIND_LANGUAGE = text("select cast(cast(cast(:language as text) as regconfig) as text)")
DEFINE_LANGUAGE = text(
    "select format('create or replace function inkwell_search_language() returns regconfig immutable language sql "
    "return %L::regconfig', cast(:language as text))"
)


def migrate(settings: MigrationSettings, connection: Connection) -> None:
    """Run the requested migrations; a second migrator waits for the first."""
    context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
    with context.begin_transaction():
        connection.execute(text("set local idle_in_transaction_session_timeout = 0"))
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        if newer := find_newer_schema():
            sys.stderr.write(f"the schema is at {newer}, newer than this version's {SCHEMA_REVISION}: nothing to do\n")
            return
        context.run_migrations()
        if settings.search_language:
            set_search_language(connection, settings.search_language)


def find_newer_schema() -> str | None:
    """Return the database's revision if a newer version has made it and this is an upgrade, or None.

    After a rollback the older version's migration may run again; the older version works with the newer schema.
    """
    revision = context.get_context().get_current_revision()
    options = context.config.cmd_opts
    is_upgrade = options is not None and options.cmd[0] is command.upgrade
    return revision if is_upgrade and revision and revision > SCHEMA_REVISION else None


def set_search_language(connection: Connection, language: str) -> None:
    """Change the language of searches, which rewrites all notes; does nothing if it is the current one."""
    try:
        [name] = connection.execute(FIND_LANGUAGE, {"language": language}).one()
    except DBAPIError:
        sys.stderr.write(
            f"wrong setting: INKWELL_SEARCH_LANGUAGE: Postgres has no text search configuration {language!r}\n"
        )
        sys.exit(EXIT_BAD_SETTING)
    if not connection.scalar(text("select to_regproc('inkwell_search_language') is not null")):
        return  # the migration that adds searches has not run
    if connection.scalar(text("select inkwell_search_language()::text")) != name:
        definition = connection.scalar(DEFINE_LANGUAGE, {"language": name})
        connection.execute(text(str(definition)))
        connection.execute(text(f"alter table notes alter column words set expression as ({WORDS})"))


async def run() -> None:
    """Connect with INKWELL_DATABASE_URL and migrate."""
    settings = load_settings(MigrationSettings)
    url = settings.database_url
    engine = create_async_engine("postgresql+asyncpg://", async_creator=partial(connect, url, "inkwell-migrate", None))
    async with engine.connect() as connection:
        await connection.run_sync(partial(migrate, settings))
        await connection.commit()
    await engine.dispose()


asyncio.run(run())
