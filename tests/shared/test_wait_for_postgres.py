"""What runs before a migration: it waits for a Postgres that is away, and for nothing else."""

import signal
from functools import partial

from sqlalchemy import make_url

from shared.settings import EXIT_BAD_SETTING
from tests.shared.waiting import line_of
from tests.shared.waiting import waiting as any_waiting
from tests.support.proxy import free_port, proxy_to

waiting = partial(any_waiting, "shared.wait_for_postgres")


async def test_postgres_that_answers_is_not_waited_for(database_url: str) -> None:
    async with waiting(database_url) as process:
        _, told = await process.communicate()
        assert told == b""
        assert process.returncode == 0


async def test_postgres_that_is_away_is_waited_for(database_url: str) -> None:
    url = make_url(database_url)
    async with proxy_to(url.host or "", url.port or 5432) as proxy:
        await proxy.cut()
        through_proxy = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        async with waiting(through_proxy) as process:
            assert "waiting" in await line_of(process)
            await proxy.start()
            assert await process.wait() == 0


async def test_what_else_is_amiss_is_not_waited_for(database_url: str) -> None:
    async with waiting(make_url(database_url).set(database="nowhere").render_as_string(hide_password=False)) as process:
        assert await process.wait() == 0


async def test_waiting_ends_when_it_is_told_to() -> None:
    async with waiting(f"postgresql://127.0.0.1:{free_port()}/inkwell") as process:
        await line_of(process)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 128 + signal.SIGTERM


async def test_wrong_setting_is_named() -> None:
    async with waiting("mysql://127.0.0.1/inkwell") as process:
        assert "INKWELL_DATABASE_URL" in await line_of(process)
        assert await process.wait() == EXIT_BAD_SETTING
