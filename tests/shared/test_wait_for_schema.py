"""What runs before a service starts: it waits for a migration, and not for a Postgres that is away."""

import asyncio
import signal
from functools import partial

from shared.settings import EXIT_BAD_SETTING
from tests.shared.waiting import line_of
from tests.shared.waiting import waiting as any_waiting
from tests.support.isolation import alembic
from tests.support.proxy import free_port

waiting = partial(any_waiting, "shared.wait_for_schema")


async def test_schema_that_is_there_is_not_waited_for(database_url: str) -> None:
    async with waiting(database_url) as process:
        _, told = await process.communicate()
        assert told == b""
        assert process.returncode == 0


async def test_schema_that_is_behind_is_waited_for(database_url: str) -> None:
    await asyncio.to_thread(alembic, database_url, "downgrade", "base")

    async with waiting(database_url) as process:
        assert "alembic upgrade head" in await line_of(process)
        await asyncio.to_thread(alembic, database_url, "upgrade", "head")
        assert await process.wait() == 0


async def test_postgres_that_is_away_is_soon_done_without() -> None:
    async with waiting(f"postgresql://127.0.0.1:{free_port()}/inkwell") as process:
        _, told = await process.communicate()

    assert process.returncode == 0
    assert b"starts without it" in told


async def test_waiting_ends_when_it_is_told_to(database_url: str) -> None:
    await asyncio.to_thread(alembic, database_url, "downgrade", "base")

    async with waiting(database_url) as process:
        await line_of(process)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 128 + signal.SIGTERM


async def test_wrong_setting_is_named() -> None:
    async with waiting("mysql://127.0.0.1/inkwell") as process:
        assert "INKWELL_DATABASE_URL" in await line_of(process)
        assert await process.wait() == EXIT_BAD_SETTING
