"""Fixtures: real servers for the session; a database and a queue prefix of its own for each test."""

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn, TypeVar
from uuid import uuid4

import asyncpg
import httpx
import pytest
from aiormq.channel import Channel
from argon2 import PasswordHasher

from dev import asyncapi
from dev.backend import Services, UnavailableError
from dev.services import from_environment, no_docker, prepare, services
from gateway.auth import passwords
from gateway.settings import GatewaySettings
from shared.connections import Connections
from shared.topology import Topology
from tests.support import canaries, harness, message_witness
from tests.support.accounts import sign_up
from tests.support.isolation import (
    PARTITIONS,
    SIGNING_IN,
    create_template,
    fresh_database,
    fresh_prefix,
    settings_of_gateway,
    settings_of_worker,
)
from worker.settings import WorkerSettings

LONG_SECONDS = 3600
"""The timeout of a test that is marked as long."""
GROUPS = {"bench": ("bench", "matplotlib"), "k8s": ("kubernetes", "kubernetes_validate")}
"""The dependency group that the tests of a folder need, and a package that only this group has."""
LONGEST = ["faults", "system", "k8s", "fuzz", "bench", "worker", "docs"]
"""The folders whose files take longest, the longest first."""
T = TypeVar("T")


class Uninstalled(pytest.Module):
    """A module whose dependency group is not installed."""

    def collect(self) -> NoReturn:
        group, _ = GROUPS[self.path.parent.name]
        pytest.skip(f"needs the dependency group {group}: `make .venv/{group}`", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    _, package = GROUPS.get(module_path.parent.name, ("", ""))
    if package and not find_spec(package):
        return Uninstalled.from_parent(parent, path=module_path)
    return None


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("numprocesses", None):  # each process starts its own servers
        _or_exit(prepare)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A file is run by one process, so the longest ones come first: the processes then end at about the same time.
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.parent.name) in LONGEST else len(LONGEST))
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(LONG_SECONDS))
    needing = [item for item in items if item.get_closest_marker("needs_docker")]
    if needing and (reason := _or_exit(no_docker)):
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=f"needs Docker: {reason}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test fails if anything that it runs has printed or logged a secret, or published an undocumented message."""
    report = yield
    if leaked := canaries.find_secrets("".join(text for _, text in report.sections)):
        report.outcome, report.longrepr = "failed", f"its output contains {', '.join(leaked)}"
    if objections := message_witness.take_objections():
        report.outcome, report.longrepr = "failed", "docs/asyncapi.yaml differs: " + "\n".join(objections)
    return report


@pytest.fixture(scope="session", autouse=True)
def cheap_hashes() -> Iterator[None]:
    """Passwords hashed in the test's own process cost next to nothing; a real hash takes a tenth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "PasswordHasher", partial(PasswordHasher, time_cost=1, memory_cost=8, parallelism=1))
        yield


@pytest.fixture(scope="session", autouse=True)
def watched_messages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever the services publish is compared with docs/asyncapi.yaml, also in the processes that tests start."""
    undo = message_witness.watch(Channel)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in message_witness.environment(tmp_path_factory.mktemp("messages"), asyncapi.build()).items():
            patch.setenv(name, value)
        yield
        assert message_witness.take_objections() == []
    undo()


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Iterator[Services]:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with ExitStack() as stack:
        with capture.global_and_fixture_disabled():  # it may print what it installs
            running = _or_exit(lambda: stack.enter_context(services()))
        yield running


def _or_exit(get: Callable[[], T]) -> T:
    """What the machine lacks is reported once, not by every test."""
    try:
        return get()
    except UnavailableError as error:
        pytest.exit(str(error), returncode=1)


@pytest.fixture(scope="session")
async def template(servers: Services) -> AsyncIterator[str]:
    """A migrated database, the template of each test's database."""
    name = f"inkwell_template_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(servers.database_url)
    if not from_environment():  # the tests' own server, whose data no test needs after a power cut
        await admin.execute("alter system set fsync = off")
        await admin.execute("select pg_reload_conf()")
    await create_template(servers, admin, name)
    yield name
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest.fixture
async def database_url(servers: Services, template: str) -> AsyncIterator[str]:
    """The URL of a fresh database, as an administrator."""
    async with fresh_database(servers, template) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """An administrator's connection to the test's database."""
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
    """The limit of the test's queues."""
    return 1024 * 1024 * 1024


@pytest.fixture
async def gateway_settings(
    servers: Services, database_url: str, queue_prefix: str, queue_limit_bytes: int
) -> GatewaySettings:
    """Settings of a gateway whose queues exist, as after a worker has run."""
    await harness.declare(servers, Topology(queue_prefix, PARTITIONS, queue_limit_bytes))
    return settings_of_gateway(servers, database_url, queue_prefix)


@pytest.fixture
def password_settings(gateway_settings: GatewaySettings) -> GatewaySettings:
    """Settings of a gateway whose users sign in, without rate limits."""
    return GatewaySettings.model_validate(gateway_settings.model_dump() | SIGNING_IN)


@pytest.fixture
async def users_client(
    servers: Services, database_url: str, queue_prefix: str, worker_settings: WorkerSettings
) -> AsyncIterator[httpx.AsyncClient]:
    """As `client`, with users who sign in."""
    settings = settings_of_gateway(servers, database_url, queue_prefix, **SIGNING_IN)
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        yield client


@pytest.fixture
def worker_settings(servers: Services, database_url: str, queue_prefix: str) -> WorkerSettings:
    return settings_of_worker(servers, database_url, queue_prefix)


@pytest.fixture
def connections(servers: Services, database_url: str) -> Iterator[Connections]:
    """The worker's connections to the test's database; without queues, which take longest to delete."""
    with harness.connected(settings_of_worker(servers, database_url, "no-queues"), "test", 4) as connections:
        yield connections


@pytest.fixture
async def client(
    servers: Services, database_url: str, queue_prefix: str, worker_settings: WorkerSettings
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with a running worker."""
    settings = settings_of_gateway(servers, database_url, queue_prefix)
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        yield client


@pytest.fixture(scope="module")
async def shared_users_client(servers: Services, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """As `users_client`, shared by the tests of a module that are independent of each other's users."""
    async with fresh_database(servers, template) as url, fresh_prefix(servers) as prefix:
        worker = harness.worker(settings_of_worker(servers, url, prefix))
        gateway = harness.gateway(settings_of_gateway(servers, url, prefix, **SIGNING_IN))
        async with worker, gateway as client:
            yield client


@pytest.fixture(scope="module")
async def shared_client(servers: Services, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """As `client`, shared by the tests of a module that are independent of each other's notes."""
    async with fresh_database(servers, template) as url, fresh_prefix(servers) as prefix:
        worker = harness.worker(settings_of_worker(servers, url, prefix))
        async with worker, harness.gateway(settings_of_gateway(servers, url, prefix)) as client:
            yield client


@pytest.fixture
async def user_client(shared_users_client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a new user, at the gateway that the module's tests share."""
    person = await sign_up(shared_users_client)
    async with harness.client(str(shared_users_client.base_url), person.headers) as client:
        yield client
