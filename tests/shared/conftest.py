"""Sessions of the services' roles in the test's database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from dev.backend import as_user
from shared.database import Session


@asynccontextmanager
async def session_as(role: str, database_url: str) -> AsyncIterator[Session]:
    session = await asyncpg.connect(as_user(database_url, role, role))
    yield session
    await session.close()


@pytest.fixture(params=["inkwell_gateway", "inkwell_worker"])
def role(request: pytest.FixtureRequest) -> str:
    """Each service's role in turn."""
    return str(request.param)


@pytest.fixture
async def as_service(role: str, database_url: str) -> AsyncIterator[Session]:
    """A session of each service in turn."""
    async with session_as(role, database_url) as session:
        yield session


@pytest.fixture
async def as_gateway(database_url: str) -> AsyncIterator[Session]:
    async with session_as("inkwell_gateway", database_url) as session:
        yield session


@pytest.fixture
async def as_worker(database_url: str) -> AsyncIterator[Session]:
    async with session_as("inkwell_worker", database_url) as session:
        yield session
