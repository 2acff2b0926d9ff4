"""Fixtures: real servers for the session; a database and a queue prefix of its own for each test."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import asyncpg
import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import make_url

from dev.backend import Services, UnavailableError
from dev.services import no_docker, prepare, services
from gateway.auth import passwords
from gateway.settings import GatewaySettings
from shared.connections import Connections
from shared.messaging import Topology
from tests import canaries, harness
from worker.sessions import SESSION_SETTINGS
from worker.settings import WorkerSettings

ROOT = Path(__file__).parent.parent
PARTITIONS = 2
LONG_SECONDS = 3600
"""When a test that is marked as long is taken to hang."""
SIGNING_IN = {
    "auth": "password",
    "login_limit": "1000/second",
    "login_address_limit": "1000/second",
    "registration_limit": "1000/second",
}
T = TypeVar("T")


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("numprocesses", None):  # each of which starts servers of its own
        _or_exit(prepare)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The files that take longest come first, or one process would still be busy with them when the others are done.
    items.sort(key=lambda item: item.path.parent.name not in ("faults", "system"))
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(LONG_SECONDS))
    needing = [item for item in items if item.get_closest_marker("needs_docker")]
    if needing and (reason := _or_exit(no_docker)):
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=f"needs Docker: {reason}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test fails when anything that it runs has printed or logged a secret."""
    report = yield
    if told := canaries.told_in("".join(text for _, text in report.sections)):
        report.outcome, report.longrepr = "failed", f"its output tells {', '.join(told)}"
    return report


@pytest.fixture(scope="session", autouse=True)
def cheap_hashes() -> Iterator[None]:
    """Passwords hashed in the test's own process cost next to nothing; a real hash takes a tenth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "PasswordHasher", partial(PasswordHasher, time_cost=1, memory_cost=8, parallelism=1))
        yield


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Iterator[Services]:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with ExitStack() as stack:
        with capture.global_and_fixture_disabled():  # it may have to say what it installs
            running = _or_exit(lambda: stack.enter_context(services()))
        yield running


def _or_exit(get: Callable[[], T]) -> T:
    """What is missing on the machine is told once, not by every test."""
    try:
        return get()
    except UnavailableError as error:
        pytest.exit(str(error), returncode=1)


def with_database(url: str, name: str, role: str | None = None) -> str:
    parsed = make_url(url).set(database=name)
    if role:
        parsed = parsed.set(username=role, password=role)
    return parsed.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
async def template(servers: Services) -> AsyncIterator[str]:
    """A migrated database that each test's database is a copy of."""
    name = f"inkwell_template_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(servers.database_url)
    await admin.execute(f"create database {name}")
    await harness.create_roles(with_database(servers.database_url, name))
    alembic(with_database(servers.database_url, name, "inkwell_migrator"), "upgrade", "head")
    yield name
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


def alembic(database_url: str, *arguments: str) -> str:
    """Runs Alembic as an operator does; what it prints."""
    environment = {**os.environ, "INKWELL_DATABASE_URL": database_url}
    command = [sys.executable, "-m", "alembic", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@asynccontextmanager
async def fresh_database(servers: Services, template: str) -> AsyncIterator[str]:
    """The URL of a database of the block's own, as an administrator."""
    name = f"inkwell_test_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(servers.database_url)
    await admin.execute(f"create database {name} template {template} owner inkwell_migrator")
    # Everything comes with a template but the rights on the database itself.
    await admin.execute(
        "update pg_database set datacl = original.datacl from pg_database original"
        " where pg_database.datname = $1 and original.datname = $2",
        name,
        template,
    )
    yield with_database(servers.database_url, name)
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@asynccontextmanager
async def fresh_prefix(servers: Services) -> AsyncIterator[str]:
    """A prefix for the block's queues, which are deleted after it."""
    prefix = f"test-{uuid4().hex[:12]}"
    yield prefix
    await harness.delete(servers, Topology(prefix, PARTITIONS))


def settings_of_gateway(servers: Services, database_url: str, queue_prefix: str, **changes: object) -> GatewaySettings:
    return GatewaySettings.model_validate(
        {
            "database_url": with_database(database_url, make_url(database_url).database or "", "inkwell_gateway"),
            "broker_url": servers.broker_url_of("gateway"),
            "queue_prefix": queue_prefix,
            "partitions": PARTITIONS,
            "signing_keys": ("a-key-that-is-used-in-the-tests-only",),
            "fingerprint_key": "another-key-that-is-used-in-the-tests-only",
            "auth": "none",
        }
        | changes
    )


def settings_of_worker(servers: Services, database_url: str, queue_prefix: str) -> WorkerSettings:
    return WorkerSettings.model_validate(
        {
            "database_url": with_database(database_url, make_url(database_url).database or "", "inkwell_worker"),
            "broker_url": servers.broker_url_of("worker"),
            "queue_prefix": queue_prefix,
            "partitions": PARTITIONS,
        }
    )


@pytest.fixture
async def database_url(servers: Services, template: str) -> AsyncIterator[str]:
    """The URL of a fresh database, as an administrator."""
    async with fresh_database(servers, template) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to the test's database as an administrator."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def queue_prefix(servers: Services) -> AsyncIterator[str]:
    """A prefix for the test's queues, which are deleted after it."""
    async with fresh_prefix(servers) as prefix:
        yield prefix


@pytest.fixture
def queue_limit_bytes() -> int:
    """How many bytes the test's queues take."""
    return 1024 * 1024 * 1024


@pytest.fixture
async def gateway_settings(
    servers: Services, database_url: str, queue_prefix: str, queue_limit_bytes: int
) -> GatewaySettings:
    """Of a gateway whose queues are there, as after a worker has run."""
    await harness.declare(servers, Topology(queue_prefix, PARTITIONS, queue_limit_bytes))
    return settings_of_gateway(servers, database_url, queue_prefix)


@pytest.fixture
def password_settings(gateway_settings: GatewaySettings) -> GatewaySettings:
    """Of a gateway whose users sign in, as often as they like."""
    return GatewaySettings.model_validate(gateway_settings.model_dump() | SIGNING_IN)


@pytest.fixture
async def users_client(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> AsyncIterator[httpx.AsyncClient]:
    """As `client`, with users who sign in."""
    async with harness.worker(worker_settings), harness.gateway(password_settings) as client:
        yield client


@pytest.fixture
def worker_settings(servers: Services, database_url: str, queue_prefix: str) -> WorkerSettings:
    return settings_of_worker(servers, database_url, queue_prefix)


@pytest.fixture
def connections(worker_settings: WorkerSettings) -> Iterator[Connections]:
    """The worker's connections to the test's database."""
    connections = Connections(worker_settings.database_url, "test", 4, SESSION_SETTINGS)
    yield connections
    connections.close()


@pytest.fixture
async def client(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway and a worker that run together."""
    async with harness.worker(worker_settings), harness.gateway(gateway_settings) as client:
        yield client


@pytest.fixture(scope="module")
async def shared_users_client(servers: Services, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """As `users_client`, for the tests of a module that do not mind each other's users."""
    async with fresh_database(servers, template) as url, fresh_prefix(servers) as prefix:
        worker = harness.worker(settings_of_worker(servers, url, prefix))
        gateway = harness.gateway(settings_of_gateway(servers, url, prefix, **SIGNING_IN))
        async with worker, gateway as client:
            yield client


@pytest.fixture(scope="module")
async def shared_client(servers: Services, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """As `client`, for the tests of a module that do not mind each other's notes."""
    async with fresh_database(servers, template) as url, fresh_prefix(servers) as prefix:
        worker = harness.worker(settings_of_worker(servers, url, prefix))
        async with worker, harness.gateway(settings_of_gateway(servers, url, prefix)) as client:
            yield client
