"""Alembic's environment: migrations run online, one migrator at a time, in one transaction."""

import asyncio
import sys
from functools import partial

from alembic import context
from pydantic import Secret, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from shared.database import connect
from shared.settings import DatabaseUrl
from shared.tables import metadata

MIGRATION_LOCK = 0x1E7C_0DE5


class MigratorSettings(BaseSettings):
    """The migrator needs the database alone, as the role that owns the tables."""

    model_config = SettingsConfigDict(env_prefix="INKWELL_", frozen=True, extra="ignore")

    database_url: Secret[DatabaseUrl]


def migrate(connection: Connection) -> None:
    """Runs the migrations that Alembic was asked for; a second migrator waits for the first."""
    context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
    with context.begin_transaction():
        connection.execute(text("set local idle_in_transaction_session_timeout = 0"))
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        context.run_migrations()


async def run() -> None:
    """Connects with INKWELL_DATABASE_URL and migrates."""
    url = MigratorSettings().database_url
    engine = create_async_engine("postgresql+asyncpg://", async_creator=partial(connect, url, "inkwell-migrate", None))
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()


try:
    asyncio.run(run())
except ValidationError as error:
    sys.stderr.write(f"wrong setting: INKWELL_DATABASE_URL: {error.errors()[0]['msg']}\n")
    sys.exit(2)
