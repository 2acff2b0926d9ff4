"""The few connections to Postgres, where what is asked on them is given up."""

import asyncio

import pytest
from asyncpg import Connection, Record

from shared.connections import Connections
from tests.harness import eventually

RUNNING = "select count(*) from pg_stat_activity where datname = current_database() and query = 'select pg_sleep(7)'"


async def test_statement_that_nobody_waits_for_any_more_ends_with_its_session(
    connections: Connections, database: "Connection[Record]"
) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), connections.one() as session:
                await session.execute("select pg_sleep(7)")

    await eventually(lambda: none_runs(database), within_seconds=3)


async def none_runs(database: "Connection[Record]") -> bool:
    return not await database.fetchval(RUNNING)
