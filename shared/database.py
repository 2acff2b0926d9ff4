"""Postgres: how each service connects, and whether the schema is one it can work with."""

import importlib.resources
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from pydantic import PostgresDsn, Secret
from sqlalchemy import make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

CONNECT_TIMEOUT_SECONDS = 5.0
STATEMENT_TIMEOUT_SECONDS = 30.0
EXIT_SCHEMA_BEHIND = 3
SESSION_SETTINGS = {
    "timezone": "UTC",
    "statement_timeout": str(int(STATEMENT_TIMEOUT_SECONDS * 1000)),
    "idle_in_transaction_session_timeout": "60000",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class SchemaBehindError(Exception):
    """The database lacks migrations that this version needs."""

    def __init__(self, found: str | None, wanted: str) -> None:
        super().__init__(
            f"the database's schema is at {found or 'nothing'}, this version needs {wanted}: "
            "run `alembic upgrade head` with the migrator's INKWELL_DATABASE_URL, then start again"
        )


def driver_url(url: Secret[PostgresDsn], drivername: str) -> str:
    """The address for SQLAlchemy (`postgresql+asyncpg`) or for asyncpg itself (`postgresql`), in clear."""
    parsed = make_url(str(url.get_secret_value()))
    return parsed.set(drivername=drivername).render_as_string(hide_password=False)


def create_engine(url: Secret[PostgresDsn], application_name: str, connections: int) -> AsyncEngine:
    """An engine whose sessions run in UTC and whose every statement has a deadline; connects on first use."""
    return create_async_engine(
        driver_url(url, "postgresql+asyncpg"),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        connect_args={
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "command_timeout": STATEMENT_TIMEOUT_SECONDS,
            "server_settings": {**SESSION_SETTINGS, "application_name": application_name},
        },
    )


def migrations_config() -> Config:
    """Alembic's configuration for the migrations of this package, wherever it is installed."""
    config = Config()
    with importlib.resources.as_file(importlib.resources.files("shared") / "migrations") as folder:
        config.set_main_option("script_location", str(Path(folder)))
    return config


def require_current_schema(found: str | None) -> None:
    """Raises SchemaBehindError for a revision older than this code's.

    A revision that this code does not know is newer (expand, then contract), and accepted.
    """
    scripts = ScriptDirectory.from_config(migrations_config())
    head = scripts.get_current_head()
    known = {revision.revision for revision in scripts.walk_revisions()}
    if head is not None and found != head and (found is None or found in known):
        raise SchemaBehindError(found, head)


async def check_schema(connection: AsyncConnection) -> None:
    """Raises SchemaBehindError where migrations are missing, or the driver's errors while Postgres is away."""
    try:
        found = await connection.scalar(text("select version_num from alembic_version"))
    except ProgrammingError:
        found = None
    require_current_schema(found)
