"""The modules that wait for Postgres, as a pod starts them."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dev.backend import ROOT

DEADLINE_SECONDS = 30


@asynccontextmanager
async def waiting(module: str, database_url: str) -> AsyncIterator[Process]:
    """The process, which is over after the block."""
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


async def line_of(process: Process) -> str:
    """The next line that it writes."""
    assert process.stderr
    return (await process.stderr.readline()).decode()
