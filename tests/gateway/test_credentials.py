"""Which credentials are accepted while Postgres is down or slow, and what ended ones still get."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from uuid import UUID

import httpx
import pytest
from asyncpg import Connection, Record
from yarl import URL

from gateway.api import changes
from gateway.auth import authentication
from gateway.reads import followers
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import Person, bearer, personal_token, sign_in, sign_up
from tests.support.canaries import NEW_PASSWORD, NOTE, PASSWORD
from tests.support.following import streaming
from tests.support.harness import eventually
from tests.support.proxy import Proxy, proxy_to
from worker.settings import WorkerSettings

LATER = {"Prefer": "respond-async"}
SLOW_CHECKS = "lock table personal_tokens"
"""Until the transaction ends, no check of a personal token ends in time; other reads are as quick as ever."""


@dataclass(frozen=True)
class Cut:
    """A gateway whose link to Postgres can be cut; the worker's stays."""

    client: httpx.AsyncClient
    link: Proxy
    ada: Person

    async def write(self, token: str) -> httpx.Response:
        return await self.client.post("/notes", json=NOTE, headers=bearer(token) | LATER)


@pytest.fixture
async def cut(password_settings: GatewaySettings, worker_settings: WorkerSettings) -> AsyncIterator[Cut]:
    url = URL(str(password_settings.database_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 5432) as link:
        moved = {"database_url": str(url.with_host("127.0.0.1").with_port(link.port))}
        settings = GatewaySettings.model_validate(password_settings.model_dump() | moved)
        async with harness.worker(worker_settings), harness.gateway(settings) as client:
            yield Cut(client, link, await sign_up(client))


@pytest.fixture(params=["refused", "frozen"])
def away(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def take_away(cut: Cut, how: str) -> None:
    if how == "frozen":
        cut.link.freeze()
    else:
        await cut.link.cut()


async def test_access_token_writes_while_postgres_is_away(cut: Cut, away: str) -> None:
    await take_away(cut, away)

    responses = await asyncio.gather(*(cut.write(cut.ada.token) for _ in range(20)))
    later = [await cut.write(cut.ada.token) for _ in range(20)]

    assert {response.status_code for response in (*responses, *later)} == {202}
    assert max(response.elapsed.total_seconds() for response in responses) < 3
    assert sorted(response.elapsed.total_seconds() for response in later)[10] < 0.5


async def test_personal_token_writes_while_postgres_is_away_if_it_was_known(cut: Cut, away: str) -> None:
    known, unknown = [(await personal_token(cut.client, cut.ada))["token"] for _ in range(2)]
    assert (await cut.write(known)).status_code == 202

    await take_away(cut, away)

    assert (await cut.write(known)).status_code == 202
    refused = await cut.write(unknown)
    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
    assert refused.headers["retry-after"]


async def test_sign_in_fails_while_postgres_is_down_and_works_once_it_is_back(cut: Cut) -> None:
    form = {"username": cut.ada.name, "password": PASSWORD}
    await cut.link.cut()
    assert (await cut.client.post("/auth/token", data=form)).status_code == 503

    await cut.link.start()

    async def signs_in() -> bool:
        return (await cut.client.post("/auth/token", data=form)).status_code == 200

    await eventually(signs_in)


async def test_what_was_known_is_asked_again_after_a_while(
    cut: Cut, database: "Connection[Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    personal = (await personal_token(cut.client, cut.ada))["token"]
    for token in (cut.ada.token, personal):
        assert (await cut.write(token)).status_code == 202
    await database.execute("update users set credentials_version = 2")
    for token in (cut.ada.token, personal):
        assert (await cut.write(token)).status_code == 202  # for half a minute; the worker then rejects it

    monkeypatch.setattr(authentication, "TRUST_SECONDS", 0.0)

    refused = [(await cut.write(token)).json()["code"] for token in (cut.ada.token, personal)]
    assert refused == ["credentials_outdated", "invalid_token"]


async def test_read_sees_at_once_that_credentials_are_outdated(cut: Cut, database: "Connection[Record]") -> None:
    personal = (await personal_token(cut.client, cut.ada))["token"]
    for token in (cut.ada.token, personal):
        assert (await cut.client.get("/notes", headers=bearer(token))).status_code == 200

    await database.execute("update users set credentials_version = 2")

    for token in (cut.ada.token, personal):
        assert (await cut.client.get("/notes", headers=bearer(token))).status_code == 401


async def test_personal_token_that_was_confirmed_lately_writes_while_postgres_is_away_but_does_not_read(
    cut: Cut, away: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    personal = (await personal_token(cut.client, cut.ada))["token"]
    assert (await cut.write(personal)).status_code == 202
    monkeypatch.setattr(authentication, "TRUST_SECONDS", 0.0)

    await take_away(cut, away)

    assert [(await cut.write(personal)).status_code for _ in range(2)] == [202, 202]
    refused = await cut.client.get("/notes", headers=bearer(personal))
    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
    monkeypatch.setattr(authentication, "REMEMBERED_SECONDS", 0.0)
    refused = await cut.write(personal)
    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")


async def test_revoked_personal_token_reads_nothing_while_its_check_is_slow(
    cut: Cut, database: "Connection[Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    personal = (await personal_token(cut.client, cut.ada))["token"]
    assert (await cut.client.get("/notes", headers=bearer(personal))).status_code == 200
    monkeypatch.setattr(authentication, "TRUST_SECONDS", 0.0)
    await database.execute("delete from personal_tokens")

    async with database.transaction():
        await database.execute(SLOW_CHECKS)
        refused = await cut.client.get("/notes", headers=bearer(personal))
        assert (await cut.client.get("/notes", headers=cut.ada.headers)).status_code == 200

    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")


async def test_stream_of_a_revoked_personal_token_has_no_change_while_its_check_is_slow_and_then_ends(
    cut: Cut, database: "Connection[Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "STREAM_TRUST_SECONDS", 0.0)
    monkeypatch.setattr(followers, "POLL_SECONDS", (0.5, 1.0))
    kept, revoked = [await personal_token(cut.client, cut.ada) for _ in range(2)]

    async with (
        asyncio.timeout(60),
        streaming(cut.client, headers=bearer(kept["token"])) as going_on,
        streaming(cut.client, headers=bearer(revoked["token"])) as ending,
    ):
        await database.execute("delete from personal_tokens where id = $1", UUID(revoked["id"]))
        async with database.transaction():
            await database.execute(SLOW_CHECKS)
            assert (await cut.write(cut.ada.token)).status_code == 202
            await asyncio.sleep(3)  # nothing arrives, although several reads would be answered

        assert await ending.rest() == []
        [change] = await going_on.take(1)
    assert change["note"]["title"] == NOTE["title"]


@dataclass(frozen=True)
class Ended:
    """A gateway that still trusts a token whose user has had another password since, and its link to the broker."""

    client: httpx.AsyncClient
    link: Proxy
    ada: Person


@pytest.fixture
async def ended(password_settings: GatewaySettings, worker_settings: WorkerSettings) -> AsyncIterator[Ended]:
    """Both a note and an import with the key `once` were written before the password was changed."""
    url = URL(str(password_settings.broker_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 5672) as link:
        moved = {"broker_url": str(url.with_host("127.0.0.1").with_port(link.port))}
        settings = GatewaySettings.model_validate(password_settings.model_dump() | moved)
        async with (
            harness.worker(worker_settings),
            harness.gateway(settings) as client,
            harness.gateway(password_settings) as other,
        ):
            ada = await sign_up(client)
            for path in ("/notes", "/notes/import"):
                assert (await write_once(client, path, ada.token)).is_success
            change = {"password": NEW_PASSWORD, "current_password": PASSWORD}
            assert (await other.patch("/users/me", json=change, headers=ada.headers)).status_code == 200
            yield Ended(client, link, ada)


async def write_once(client: httpx.AsyncClient, path: str, token: str) -> httpx.Response:
    media_type = "application/x-ndjson" if path == "/notes/import" else "application/json"
    headers = bearer(token) | {"Idempotency-Key": "once", "Content-Type": media_type}
    return await client.post(path, content=json.dumps(NOTE), headers=headers)


@pytest.mark.parametrize("broker", ["up", "down"])
async def test_repetition_with_a_token_from_before_a_new_password_gets_no_outcome(
    ended: Ended, database: "Connection[Record]", broker: str
) -> None:
    before = await database.fetch("select * from commands order by decided_at")
    if broker == "down":
        await ended.link.cut()

    refused = await write_once(ended.client, "/notes", ended.ada.token)

    assert (refused.status_code, refused.json()["code"]) == (401, "credentials_outdated")
    assert "idempotent-replayed" not in refused.headers
    assert await database.fetch("select * from commands order by decided_at") == before
    assert await database.fetchval("select count(*) from notes") == 2
    if broker == "down":
        await ended.link.start()
    token = await sign_in(ended.client, ended.ada.name, NEW_PASSWORD)
    again = await eventually(lambda: find_success(write_once(ended.client, "/notes", token)))
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")


async def test_repeated_import_with_a_token_from_before_a_new_password_is_not_reported_as_imported(
    ended: Ended, database: "Connection[Record]"
) -> None:
    repeated = await write_once(ended.client, "/notes/import", ended.ada.token)

    [chunk, end] = map(json.loads, repeated.text.splitlines())
    assert chunk["problem"]["code"] == "credentials_outdated"
    assert (end["end"]["complete"], end["end"]["imported"]) == (False, 0)
    assert await database.fetchval("select count(*) from notes") == 2


async def find_success(request: Awaitable[httpx.Response]) -> httpx.Response | None:
    response = await request
    return response if response.is_success else None
