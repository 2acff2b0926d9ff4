"""A migration waits for Postgres before it starts, and a service for the migration."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import Secret
from sqlalchemy import make_url

from dev.backend import ROOT
from shared import wait_for_schema
from shared.database_url import DatabaseUrl
from shared.settings import EXIT_BAD_SETTING
from tests.support.isolation import alembic
from tests.support.proxy import free_port, proxy_to

DEADLINE_SECONDS = 30
POSTGRES, SCHEMA = "shared.wait_for_postgres", "shared.wait_for_schema"

both = pytest.mark.parametrize("module", [POSTGRES, SCHEMA])


@asynccontextmanager
async def waiting(module: str, database_url: str) -> AsyncIterator[Process]:
    """The process, as a pod starts it; killed at the end of the block."""
    environment = {**os.environ, "INKWELL_DATABASE_URL": database_url}
    command = [sys.executable, "-m", module]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stderr=PIPE)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def next_line(process: Process) -> str:
    assert process.stderr
    return (await process.stderr.readline()).decode()


@both
async def test_what_is_there_is_not_waited_for(database_url: str, module: str) -> None:
    async with waiting(module, database_url) as process:
        _, printed = await process.communicate()

    assert (process.returncode, printed) == (0, b"")


async def test_postgres_that_is_away_is_waited_for(database_url: str) -> None:
    url = make_url(database_url)
    async with proxy_to(url.host or "", url.port or 5432) as proxy:
        await proxy.cut()
        through_proxy = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        async with waiting(POSTGRES, through_proxy) as process:
            assert "waiting" in await next_line(process)
            await proxy.start()
            assert await process.wait() == 0


async def test_migrator_itself_reports_whatever_else_is_wrong(database_url: str) -> None:
    nowhere = make_url(database_url).set(database="nowhere").render_as_string(hide_password=False)
    async with waiting(POSTGRES, nowhere) as process:
        assert await process.wait() == 0


async def test_schema_that_is_behind_is_waited_for(database_url: str) -> None:
    await asyncio.to_thread(alembic, database_url, "downgrade", "base")

    async with waiting(SCHEMA, database_url) as process:
        assert "alembic upgrade head" in await next_line(process)
        await asyncio.to_thread(alembic, database_url, "upgrade", "head")
        assert await process.wait() == 0


async def test_service_starts_while_postgres_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wait_for_schema, "SILENCE_LIMIT_SECONDS", 1.5)

    await wait_for_schema.wait(Secret(DatabaseUrl.parse(f"postgresql://127.0.0.1:{free_port()}/inkwell")))

    printed = capsys.readouterr().err
    assert "Postgres does not answer: ConnectionRefusedError" in printed
    assert "starts without it" in printed


async def test_sigterm_ends_the_wait_for_postgres() -> None:
    async with waiting(POSTGRES, f"postgresql://127.0.0.1:{free_port()}/inkwell") as process:
        await next_line(process)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 128 + signal.SIGTERM


async def test_sigterm_ends_the_wait_for_the_schema(database_url: str) -> None:
    await asyncio.to_thread(alembic, database_url, "downgrade", "base")

    async with waiting(SCHEMA, database_url) as process:
        await next_line(process)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 128 + signal.SIGTERM


@both
async def test_wrong_setting_is_named(module: str) -> None:
    async with waiting(module, "mysql://127.0.0.1/inkwell") as process:
        assert "INKWELL_DATABASE_URL" in await next_line(process)
        assert await process.wait() == EXIT_BAD_SETTING
