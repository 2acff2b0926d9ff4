"""Password hashes: cheap ones are accepted and renewed, unaffordable ones are never computed."""

import time
from functools import partial

import httpx
import pytest
from argon2 import PasswordHasher
from asyncpg import Connection, Record
from pydantic import SecretStr

from gateway.auth import passwords
from gateway.auth.passwords import Passwords
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import bearer, sign_in, sign_up
from tests.support.canaries import PASSWORD
from tests.support.harness import eventually
from worker.settings import WorkerSettings

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
COSTLY = partial(PasswordHasher, time_cost=2, memory_cost=16, parallelism=1)
UNAFFORDABLE = PasswordHasher(time_cost=4, memory_cost=65_536, parallelism=4).hash(PASSWORD)
GIGABYTES = CHEAP.hash(PASSWORD).replace("m=8,t=1", "m=16777216,t=1000")


async def hash_of(database: "Connection[Record]", name: str) -> str:
    return str(await database.fetchval("select password_hash from users where name = $1", name))


async def test_cheap_hash_signs_in_and_is_renewed_without_ending_what_it_has_signed_in(
    password_settings: GatewaySettings,
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with harness.worker(worker_settings):
        async with harness.gateway(password_settings) as client:
            ada = await sign_up(client)
        assert "$m=8,t=1,p=1$" in await hash_of(database, ada.name)
        monkeypatch.setattr(passwords, "PasswordHasher", COSTLY)

        async with harness.gateway(password_settings) as client:
            token = await sign_in(client, ada.name)
            await eventually(lambda: is_renewed(database, ada.name))
            renewed = await hash_of(database, ada.name)

            for each in (ada.token, token, await sign_in(client, ada.name)):
                assert (await client.get("/users/me", headers=bearer(each))).status_code == 200
            written = await client.post("/notes", json={"title": "x", "description": ""}, headers=bearer(token))
            assert written.status_code == 201
            wrong = await client.post("/auth/token", data={"username": ada.name, "password": "another password"})
            assert wrong.status_code == 400

    assert await hash_of(database, ada.name) == renewed
    assert await database.fetchval("select count(*) from commands where type = 'user.renew_hash'") == 1


async def is_renewed(database: "Connection[Record]", name: str) -> bool:
    return "$m=16,t=2,p=1$" in await hash_of(database, name)


async def test_login_needs_no_broker_to_renew_a_hash(
    password_settings: GatewaySettings,
    worker_settings: WorkerSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with harness.worker(worker_settings), harness.gateway(password_settings) as client:
        ada = await sign_up(client)
    monkeypatch.setattr(passwords, "PasswordHasher", COSTLY)
    away = password_settings.model_dump() | {"broker_url": "amqp://nobody:nothing@127.0.0.1:1/"}

    async with harness.gateway(GatewaySettings.model_validate(away)) as client:
        assert await sign_in(client, ada.name)


@pytest.mark.parametrize(
    "bad",
    [UNAFFORDABLE, GIGABYTES, "", "hunter2", "$argon2id$v=19$m=8,t=1,p=1$$"],
    ids=["a little more", "gigabytes", "empty", "a password", "no hash"],
)
async def test_hash_that_costs_more_than_any_of_inkwells_matches_nothing_and_takes_no_longer(
    users_client: httpx.AsyncClient, database: "Connection[Record]", bad: str
) -> None:
    ada = await sign_up(users_client)
    await database.execute("update users set password_hash = $1 where name = $2", bad, ada.name)

    started = time.monotonic()
    response = await users_client.post("/auth/token", data={"username": ada.name, "password": PASSWORD})

    assert (response.status_code, response.json()["code"]) == (400, "invalid_grant")
    assert time.monotonic() - started < 5


async def test_hash_at_exactly_the_highest_cost_is_verified() -> None:
    ours = PasswordHasher().hash(PASSWORD)

    assert await Passwords().verify(SecretStr(PASSWORD), ours)
    assert not await Passwords().verify(SecretStr(PASSWORD), UNAFFORDABLE)
