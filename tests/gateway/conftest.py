"""Fixtures that several tests of the gateway share."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support import harness
from tests.support.canaries import NOTE


@pytest.fixture(scope="module")
async def gateway() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway without servers, for what it decides alone."""
    async with harness.gateway(harness.settings_without_servers(trust_network=True)) as client:
        yield client


@pytest.fixture
async def path(shared_client: httpx.AsyncClient) -> str:
    """The path of a new note."""
    return str((await shared_client.post("/notes", json=NOTE)).headers["location"])
