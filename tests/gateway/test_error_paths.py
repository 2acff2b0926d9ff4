"""Error paths of a gateway that need a rare event."""

import asyncio
import fcntl
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from asyncpg import Connection, Record
from structlog.testing import capture_logs

from gateway import resources
from gateway.__main__ import is_schema_behind
from gateway.auth.access_tokens import AccessTokens
from gateway.auth.authentication import BearerTokens
from gateway.auth.keys import TOKEN_PREFIX
from gateway.auth.throttles import Throttles
from gateway.caller import EVERY_SCOPE, IMPLICIT_CALLER, Caller
from gateway.http.request_cycle import count_unacknowledged_bytes
from gateway.reads import hints as hints_module
from gateway.reads import queries as queries_module
from gateway.reads.changes import ChangesCursor
from gateway.reads.errors import DatabaseUnavailableError
from gateway.reads.fair_limiter import ShareExhaustedError
from gateway.reads.followers import Followers
from gateway.reads.hints import Hints
from gateway.reads.queries import Queries
from gateway.reads.search_terms import SearchTerms
from gateway.resources import open_resources
from gateway.settings import GatewaySettings
from gateway.telemetry.metrics import HINTS_CONNECTED
from gateway.writes.replies import Replies
from shared.clock import Clock
from shared.primary import Primary
from tests.support import harness
from tests.support.commands import create
from tests.support.harness import eventually
from worker.settings import WorkerSettings


async def test_gateway_finds_out_that_the_schema_is_behind(
    database: "Connection[Record]", gateway_settings: GatewaySettings
) -> None:
    assert not await is_schema_behind(gateway_settings)

    await database.execute("update alembic_version set version_num = '0001'")

    assert await is_schema_behind(gateway_settings)


async def test_gateway_ends_although_a_task_has_dropped_its_cancellation(
    gateway_settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = asyncio.Event()
    may_end = asyncio.Event()

    async def drop_cancellation(_: object, __: Clock) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            dropped.set()
            await may_end.wait()

    monkeypatch.setattr(Queries, "keep_clock_synchronized", drop_cancellation)
    monkeypatch.setattr(resources, "SETUP_TIMEOUT_SECONDS", 0.3)

    async with asyncio.timeout(10), open_resources(gateway_settings):
        await asyncio.sleep(0)

    assert dropped.is_set()
    may_end.set()


async def test_follower_that_gets_no_permit_for_long_is_told_that_postgres_is_unavailable(
    gateway_settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries_module, "FOLLOWERS_PATIENCE_SECONDS", 0.2)
    queries = Queries(gateway_settings.model_copy(update={"read_connections": 2}))
    other = Caller(2, credentials_version=1, scopes=EVERY_SCOPE)
    async with queries.limit_followers(other):
        with pytest.raises(DatabaseUnavailableError):
            async with queries.limit_followers(IMPLICIT_CALLER):
                pass

    async with queries.limit_followers(IMPLICIT_CALLER):  # the permit is free again
        pass
    queries.close()


def test_bytes_in_the_kernel_are_not_counted_where_it_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    transport: Any = SimpleNamespace(
        get_write_buffer_size=lambda: 7, get_extra_info=lambda _: SimpleNamespace(fileno=lambda: 0)
    )

    assert count_unacknowledged_bytes(transport) == 7


async def test_reply_that_cannot_be_read_is_ignored_and_its_write_goes_on_waiting(
    gateway_settings: GatewaySettings,
) -> None:
    replies = Replies(Primary.of(gateway_settings.database_url.get_secret_value()))
    unreadable: Any = SimpleNamespace(body=b"\xff", headers={})
    with capture_logs() as logs, replies.expect(create()) as attempt:
        await replies._on_reply(unreadable)

        assert not attempt.decided.done()
    assert [line["event"].partition(":")[0] for line in logs] == ["reply ignored"]


async def test_hints_are_received_for_a_while_after_the_last_follower_has_left(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints_module, "LINGER_SECONDS", 0.5)
    connected = HINTS_CONNECTED._value

    async def is_connected() -> bool:
        return bool(connected.get())

    async def is_disconnected() -> bool:
        return not connected.get()

    async with harness.worker(worker_settings):  # which declares the exchange
        hints = Hints(gateway_settings, lambda _: None, lambda: None)
        running = asyncio.create_task(hints.run())
        hints.set_wanted(wanted=True)
        await eventually(is_connected)
        hints.set_wanted(wanted=False)
        await asyncio.sleep(0.1)
        hints.set_wanted(wanted=True)  # in time
        await asyncio.sleep(0.8)
        assert await is_connected()

        hints.set_wanted(wanted=False)
        await eventually(is_disconnected)
        running.cancel()
        await asyncio.wait([running])


async def test_search_that_gets_no_permit_in_time_is_told_that_postgres_is_unavailable(
    gateway_settings: GatewaySettings,
) -> None:
    settings = gateway_settings.model_copy(update={"read_connections": 2, "read_timeout_seconds": 0.3})
    queries = Queries(settings)
    other = Caller(2, credentials_version=1, scopes=EVERY_SCOPE)
    async with queries._limit_slow_read(other, queries.compute_deadline()):
        with pytest.raises(DatabaseUnavailableError):
            await queries.search_notes(IMPLICIT_CALLER, SearchTerms.parse("ink"), 0, 10)
    queries.close()


async def test_follower_whose_owner_has_too_many_reads_waits_for_its_next_turn(
    gateway_settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ShareExhaustedError

    monkeypatch.setattr(Queries, "limit_followers", refuse)
    queries = Queries(gateway_settings)
    followers = Followers(gateway_settings, queries)
    with followers.follow(1) as follower:
        assert await followers.read(follower, IMPLICIT_CALLER, ChangesCursor(1), 10) is None
        assert follower not in followers._failed  # Postgres is not probed for it
    queries.close()


def test_request_without_an_address_is_counted_under_none(gateway_settings: GatewaySettings) -> None:
    request: Any = SimpleNamespace(client=None)

    assert Throttles(gateway_settings)._find_address(request) is None


async def test_personal_token_may_write_for_a_while_after_its_last_check_if_postgres_does_not_answer() -> None:
    settings = harness.settings_without_servers(auth="password")
    queries = Queries(settings)
    tokens = BearerTokens(AccessTokens(settings, Clock()), queries, Clock())
    now = asyncio.get_running_loop().time()
    recent, old = [Caller(1, credentials_version=1, confirmed_at=now - 60 * minutes) for minutes in (9, 11)]
    for token, caller in (("recent", recent), ("old", old)):
        tokens._remember(f"{TOKEN_PREFIX}{token}", caller)
    authorizations = [f"Bearer {TOKEN_PREFIX}{token}".encode() for token in ("recent", "old")]

    for authenticate in (tokens.authenticate_again, partial(tokens.authenticate, confirm=True)):
        assert await authenticate(authorizations[0]) is recent
        with pytest.raises(DatabaseUnavailableError):
            await authenticate(authorizations[1])
    with pytest.raises(DatabaseUnavailableError):
        await tokens.authenticate(authorizations[0], confirm=False)
    queries.close()
