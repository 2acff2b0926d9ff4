"""SQLAlchemy's engine, for those who write; apart from `database`, because a gateway need not load it."""

from functools import partial

from pydantic import Secret
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.database import CONNECT_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_SECONDS, connect
from shared.settings import DatabaseUrl


def create_engine(
    url: Secret[DatabaseUrl],
    application_name: str,
    connections: int,
    statement_timeout_seconds: float | None = STATEMENT_TIMEOUT_SECONDS,
) -> AsyncEngine:
    """An engine over the sessions that `connect` makes; it connects on first use."""
    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=partial(connect, url, application_name, statement_timeout_seconds),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
    )
