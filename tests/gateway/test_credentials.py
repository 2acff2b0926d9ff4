"""Which credentials are accepted while Postgres is down, and for how long a gateway trusts what Postgres said."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from asyncpg import Connection, Record
from yarl import URL

from gateway.auth import authentication
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import Person, bearer, personal_token, sign_up
from tests.support.canaries import NOTE, PASSWORD
from tests.support.harness import eventually
from tests.support.proxy import Proxy, proxy_to
from worker.settings import WorkerSettings

LATER = {"Prefer": "respond-async"}


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
