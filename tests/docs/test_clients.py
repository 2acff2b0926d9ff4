"""The clients in docs/clients.md work while the gateway's link to the broker is cut."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dev.backend import ROOT, Services
from tests.support.harness import eventually
from tests.support.proxy import Proxy, proxy_to
from tests.support.stack import Stack, running_stack

RECIPES = dict(
    re.findall(r"^```(python|bash)\n(.*?)^```", (ROOT / "docs/clients.md").read_text(), re.DOTALL | re.MULTILINE)
)
INTERPRETERS = {"python": sys.executable, "bash": "bash"}


@pytest.fixture(params=["0", "5"], ids=["which answers 202", "which waits"])
async def stack(
    request: pytest.FixtureRequest, servers: Services, database_url: str, queue_prefix: str, tmp_path: Path
) -> AsyncIterator[Stack]:
    """A stack whose gateway never waits for outcomes, so the client has to, and one with the default wait."""
    async with running_stack(database_url, servers, queue_prefix, tmp_path, wait_seconds=request.param) as stack:
        await eventually(lambda: has_broker(stack))
        yield stack


@pytest.mark.parametrize("language", INTERPRETERS)
async def test_recipe_writes_one_note_although_the_broker_is_cut_off_before_it_can_confirm(
    stack: Stack, language: str, tmp_path: Path
) -> None:
    link, gateway = stack.links["gateway-broker"], stack.client.base_url
    async with proxy_to(gateway.host, gateway.port or 80) as front:
        front.freeze("up")
        token = stack.client.headers["authorization"].removeprefix("Bearer ")
        running = asyncio.create_task(run(language, f"http://127.0.0.1:{front.port}", token, tmp_path))
        await eventually(lambda: has_client(front))
        link.freeze("down")
        front.thaw()
        await eventually(lambda: has_a_note(stack))
        await link.cut()
        await eventually(lambda: has_told_that_it_does_not_know(stack))
        link.thaw()
        await link.start()

        response = await running

    assert '"title":"Ink"' in response
    assert await stack.value("select count(*) from notes") == 1


async def run(language: str, url: str, token: str, folder: Path) -> str:
    """The recipe's output; fails if the recipe does."""
    process = await asyncio.create_subprocess_exec(
        INTERPRETERS[language],
        *("-c", RECIPES[language]),
        env=os.environ | {"INKWELL_URL": url, "INKWELL_TOKEN": token},
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(90):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def has_broker(stack: Stack) -> bool:
    return bool((await stack.client.get("/health/ready")).json()["dependencies"]["broker"] == "up")


async def has_client(front: Proxy) -> bool:
    return front.in_use


async def has_a_note(stack: Stack) -> bool:
    return bool(await stack.value("select exists(select from notes)"))


async def has_told_that_it_does_not_know(stack: Stack) -> bool:
    return bool(stack.gateway.events("commands unconfirmed"))
