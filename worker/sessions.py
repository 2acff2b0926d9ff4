"""The database sessions that apply batches: their settings, deadlines and commits."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from shared.connections import Connections
from shared.database import Session, milliseconds_before, start_begin_span, start_commit_span

TIMEOUT_SECONDS = 10.0
"""The deadline for applying a batch or for a transaction, commit included."""
SESSION_SETTINGS = {
    # Every statement finds its rows by an index. A plan made while a table is small would scan all of it, and would
    # still be used when the table has grown.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    # After that, the commands of owners whose rows are locked are parked, and the others are applied.
    "lock_timeout": "250",
    # No plan depends on the values, yet Postgres would replan each execution because the arrays differ in length.
    "plan_cache_mode": "force_generic_plan",
}
"""Settings of the sessions that apply batches."""
WARNING_SQLSTATE = "01000"


@contextmanager
def ensure_replicated(session: Session) -> Iterator[None]:
    """Raise ConnectionError if a commit in the block did not wait for the synchronous standby to the end.

    Postgres then reports success with a warning. Its text is translated, so every warning counts as this one.
    """
    warnings = list[object]()

    def listen(_: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.sqlstate == WARNING_SQLSTATE:
            warnings.append(message)

    session.add_log_listener(listen)
    try:
        yield
    finally:
        session.remove_log_listener(listen)
    if warnings:
        raise ConnectionError(f"Postgres warned: {warnings[0]}")


@asynccontextmanager
async def transaction(connections: Connections, seconds: float | None = None) -> AsyncIterator[Session]:
    """Open a transaction with a deadline, and commit it after the block; a failure closes the connection."""
    async with asyncio.timeout(seconds or TIMEOUT_SECONDS), connections.acquire() as session:
        transaction = session.transaction()
        with start_begin_span():
            await transaction.start()
        if seconds:
            await session.execute(f"set local statement_timeout = {milliseconds_before(seconds)}")
        yield session
        with start_commit_span(), ensure_replicated(session):
            await transaction.commit()
