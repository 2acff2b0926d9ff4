"""A running stack for each test, on the session's servers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dev.backend import Services
from tests.system.stack import Stack, running_stack


@pytest.fixture
async def stack(servers: Services, database_url: str, queue_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    async with running_stack(database_url, servers, queue_prefix, tmp_path, wait_seconds="0.5") as stack:
        yield stack
