"""Alembic's environment: migrations run online, one migrator at a time, in one transaction."""

import asyncio
from functools import partial

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from shared.database import connect
from shared.settings import DatabaseSettings, load_settings
from shared.tables import metadata

MIGRATION_LOCK = 0x1E7C_0DE5


def migrate(connection: Connection) -> None:
    """Runs the migrations that Alembic was asked for; a second migrator waits for the first."""
    context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
    with context.begin_transaction():
        connection.execute(text("set local idle_in_transaction_session_timeout = 0"))
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        context.run_migrations()


async def run() -> None:
    """Connects with INKWELL_DATABASE_URL and migrates."""
    url = load_settings(DatabaseSettings).database_url
    engine = create_async_engine("postgresql+asyncpg://", async_creator=partial(connect, url, "inkwell-migrate", None))
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()


asyncio.run(run())
