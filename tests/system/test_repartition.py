"""The number of partitions changes under load, with interruptions: no write is lost or reordered."""

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from dev.backend import ROOT, Services
from tests.support.harness import eventually
from tests.support.proxy import free_port
from tests.support.stack import Stack, running_stack
from tests.system.writers import Writer, all_go_on, are_decided, check_order, headers_of, new_owners, writing

NUMBERS = [int(number) for number in os.environ.get("REPARTITION_NUMBERS", "4 1").split()]
CLOSED, KILL_WITHIN_SECONDS = "writes are refused", 1.5
"""The event that the command logs at its most delicate moment, and slightly longer than that moment lasts."""


@pytest.fixture
async def stack(database_url: str, servers: Services, queue_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    async with running_stack(database_url, servers, queue_prefix, tmp_path, partitions="") as stack:
        yield stack


def start_repartition(stack: Stack, partitions: int) -> "subprocess.Popen[str]":
    environment = {**os.environ, **stack.environment}
    command = [sys.executable, "-m", "worker", "repartition", str(partitions)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


async def test_number_changes_under_load_and_nothing_is_lost_or_reordered_though_the_command_is_killed(
    stack: Stack,
) -> None:
    owners = await new_owners(stack)
    other_worker = stack.worker.twin(free_port())
    async with AsyncExitStack() as exits:
        clients = [stack.client, await exits.enter_async_context(stack.second_gateway())]
        exits.push_async_callback(other_worker.kill)
        await other_worker.start()
        async with writing([Writer(clients, headers_of(owner, stack)) for owner in owners]) as writers:
            for number in NUMBERS:
                await goes_on(stack)
                await interrupt(start_repartition(stack, number))
                await complete(stack, number)
            await goes_on(stack)
        await eventually(lambda: are_decided(stack, writers), within_seconds=30, every_seconds=0.5)

    await check_order(stack, owners, writers)
    assert await stack.value("select count(*) from commands where status = 'failed'") == 0
    assert stack.gateway.events("publishing")[-1]["partitions"] == NUMBERS[-1]


async def goes_on(stack: Stack) -> None:
    """Waits until writes of every owner are decided."""
    since = await stack.value("select now()::text")
    await eventually(partial(all_go_on, stack, since), within_seconds=120, every_seconds=0.5)


async def interrupt(command: "subprocess.Popen[str]") -> None:
    """Kills the command at a random moment after it has closed the routes."""
    assert command.stdout
    while CLOSED not in (line := await asyncio.to_thread(command.stdout.readline)):
        assert line, "it ended before"
    await asyncio.sleep(random.uniform(0, KILL_WITHIN_SECONDS))  # noqa: S311 - no secret
    command.kill()
    await asyncio.to_thread(command.communicate)


async def complete(stack: Stack, number: int) -> None:
    command = start_repartition(stack, number)
    output, _ = await asyncio.to_thread(command.communicate)
    assert command.returncode == 0, output
    assert f"{number} partitions" in output
