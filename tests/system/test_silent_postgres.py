"""Whatever is asked of Postgres has a deadline: the server may fall silent on a connection that stays open."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import ModuleType
from typing import NamedTuple

import pytest
from pydantic import Secret
from sqlalchemy import make_url

from gateway import __main__ as gateway_program
from gateway.__main__ import is_schema_behind
from gateway.api import health
from gateway.auth import authentication
from gateway.auth.access_tokens import AccessTokens
from gateway.caller import IMPLICIT_CALLER
from gateway.reads.errors import DatabaseUnavailableError
from gateway.reads.exports import Exports
from gateway.reads.queries import Queries
from gateway.settings import GatewaySettings
from shared.clock import Clock
from shared.connections import Connections
from shared.contracts import Scope
from shared.database import connect
from shared.database_url import DatabaseUrl
from shared.settings import ServiceSettings
from tests.support import harness
from tests.support.accounts import bearer
from tests.support.canaries import NOTE
from tests.support.commands import create
from tests.support.proxy import Proxy, proxy_to
from worker import apply, failures, sessions
from worker.apply import apply_batch, apply_in_transaction, find_locked
from worker.attempts import mark_attempt
from worker.failures import Applier
from worker.settings import WorkerSettings

SHORT_SECONDS, READ_SECONDS, ENOUGH_SECONDS = 0.3, 2.0, 5.0


@pytest.fixture
async def link(worker_settings: WorkerSettings) -> AsyncIterator[Proxy]:
    """The services' link to Postgres."""
    url = make_url(str(worker_settings.database_url.get_secret_value()))
    async with proxy_to(url.host or "", url.port or 5432) as proxy:
        yield proxy


def through(link: Proxy, settings: ServiceSettings) -> Secret[DatabaseUrl]:
    """The URL of the database through the link."""
    url = make_url(str(settings.database_url.get_secret_value())).set(host="127.0.0.1", port=link.port)
    return Secret(DatabaseUrl.parse(url.render_as_string(hide_password=False)))


@pytest.fixture
async def silent(worker_settings: WorkerSettings, link: Proxy) -> AsyncIterator[Connections]:
    """A worker's connection on which Postgres has fallen silent."""
    connections = Connections(through(link, worker_settings), "test", 1)
    async with connections.acquire():
        pass
    link.freeze()
    yield connections
    connections.close()


class Step(NamedTuple):
    """What a worker does on a connection, and the module that has the deadline."""

    limits: ModuleType
    run: Callable[[Connections], Awaitable[object]]


STEPS = {
    "batch": Step(apply, lambda connections: apply_batch(connections, [create()])),
    "transaction": Step(sessions, lambda connections: apply_in_transaction(connections, [create()])),
    "mark": Step(sessions, lambda connections: mark_attempt(connections, create().id, create().id)),
    "locks": Step(apply, lambda connections: find_locked(connections, [create()])),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
async def test_worker_gives_a_silent_postgres_up(
    step: Step, silent: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step.limits, "TIMEOUT_SECONDS", SHORT_SECONDS)

    async with asyncio.timeout(ENOUGH_SECONDS):
        with pytest.raises(TimeoutError):
            await step.run(silent)

    assert all(pooled.session is None for pooled in silent._pool)


async def test_probe_for_locks_finds_none_while_postgres_is_silent(
    silent: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "TIMEOUT_SECONDS", SHORT_SECONDS)

    async with asyncio.timeout(ENOUGH_SECONDS):
        assert await Applier(silent).find_locked([create()]) == set()


async def test_mark_that_cannot_be_removed_hides_no_failure(
    silent: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "TIMEOUT_SECONDS", SHORT_SECONDS)
    monkeypatch.setattr(failures, "TIMEOUT_SECONDS", SHORT_SECONDS)

    async with asyncio.timeout(ENOUGH_SECONDS):
        with pytest.raises(TimeoutError):
            await Applier(silent)._survive(create())


async def test_reads_of_a_gateway_end_at_their_deadline_and_its_clock_goes_on(
    gateway_settings: GatewaySettings, link: Proxy
) -> None:
    changes = {"database_url": through(link, gateway_settings), "read_timeout_seconds": SHORT_SECONDS}
    queries, clock = Queries(gateway_settings.model_copy(update=changes)), Clock()
    await queries.ping()
    link.freeze()
    try:
        async with asyncio.timeout(ENOUGH_SECONDS):
            with pytest.raises(DatabaseUnavailableError):
                await queries.find_note(IMPLICIT_CALLER, 1)
            with pytest.raises(DatabaseUnavailableError):
                await queries.ping()
            await queries.synchronize_clock(clock, SHORT_SECONDS)
    finally:
        queries.close()

    assert not clock.is_synchronized


async def test_gateway_with_a_silent_postgres_reports_it_and_believes_access_tokens(
    password_settings: GatewaySettings, link: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PING_TIMEOUT_SECONDS", SHORT_SECONDS)
    monkeypatch.setattr(authentication, "CHECK_TIMEOUT_SECONDS", SHORT_SECONDS)
    settings = password_settings.model_copy(update={"database_url": through(link, password_settings)})
    async with harness.gateway(settings) as client:
        link.freeze()
        async with asyncio.timeout(ENOUGH_SECONDS):
            ready = await client.get("/health/ready")
            headers = bearer(AccessTokens(settings, Clock()).issue(1, 1, frozenset(Scope)))
            accepted = await client.post("/notes/", json=NOTE, headers=headers | {"Prefer": "respond-async"})
        link.thaw()

    assert (ready.status_code, ready.json()["dependencies"]["database"]) == (200, "down")
    assert accepted.status_code == 202


async def test_export_ends_at_the_deadline_of_its_next_read_when_postgres_falls_silent(
    gateway_settings: GatewaySettings, link: Proxy
) -> None:
    changes = {"database_url": through(link, gateway_settings), "read_timeout_seconds": READ_SECONDS}
    exports = Exports(gateway_settings.model_copy(update=changes))
    async with asyncio.timeout(3 * ENOUGH_SECONDS):
        async with exports.open(IMPLICIT_CALLER, 0) as export:
            link.freeze()
            with pytest.raises(DatabaseUnavailableError):
                await export.fetch()
        with pytest.raises(DatabaseUnavailableError):
            async with exports.open(IMPLICIT_CALLER, 0):
                pass


async def test_gateway_starts_without_knowing_the_schema_of_a_silent_postgres(
    gateway_settings: GatewaySettings, link: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_program, "SCHEMA_CHECK_SECONDS", SHORT_SECONDS)
    link.freeze()

    async with asyncio.timeout(ENOUGH_SECONDS):
        assert not await is_schema_behind(
            gateway_settings.model_copy(update={"database_url": through(link, gateway_settings)})
        )


async def test_connection_whose_server_is_silent_after_the_handshake_is_not_opened(
    worker_settings: WorkerSettings, link: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.database.CONNECT_TIMEOUT_SECONDS", SHORT_SECONDS)
    link.freeze("down")

    async with asyncio.timeout(ENOUGH_SECONDS):
        with pytest.raises(TimeoutError):
            await connect(through(link, worker_settings), "test")
