"""A running stack for each test on the session's servers, and servers that the tests of this folder may break."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dev.backend import Services
from tests.support.stack import Stack, running_stack
from tests.system.deployment import Deployment, deployed
from tests.system.servers import Servers, breakable_servers


@pytest.fixture
async def stack(servers: Services, database_url: str, queue_prefix: str, tmp_path: Path) -> AsyncIterator[Stack]:
    async with running_stack(database_url, servers, queue_prefix, tmp_path, wait_seconds="0.5") as stack:
        yield stack


@pytest.fixture(scope="package")
def breakable() -> Iterator[Servers]:
    """A test leaves them as it found them, whatever it has done to them."""
    with breakable_servers() as servers:
        yield servers


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    """A running deployment under Compose."""
    async with deployed(tmp_path) as deployment:
        await deployment.up()
        yield deployment
