"""The procedures of docs/security.md have the described effects."""

import re

import httpx

from dev.backend import ROOT
from gateway.settings import GatewaySettings
from shared.database import Session
from tests.support import harness
from tests.support.accounts import bearer, personal_token, sign_in, sign_up
from tests.support.canaries import NOTE
from tests.support.harness import eventually
from worker.settings import WorkerSettings

PAGE = (ROOT / "docs/security.md").read_text()


async def test_all_users_are_signed_out_and_can_sign_in_again(
    users_client: httpx.AsyncClient, database: Session
) -> None:
    ada = await sign_up(users_client)
    script = bearer((await personal_token(users_client, ada))["token"])
    [statement] = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)

    await database.execute(statement)

    for headers in (ada.headers, script):
        assert (await users_client.get("/notes", headers=headers)).status_code == 401
    token = await sign_in(users_client, ada.name)
    assert (await users_client.post("/notes", json=NOTE, headers=bearer(token))).status_code == 201
    assert await database.fetchval("select credentials_version from users where id = 1") == 1  # of the implicit owner


async def test_personal_tokens_outlive_the_fingerprint_key(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.worker(worker_settings):
        async with harness.gateway(password_settings) as client:
            ada = await sign_up(client)
            script = bearer((await personal_token(client, ada))["token"])
            key = {"Idempotency-Key": "once"}
            assert (await client.post("/notes", json=NOTE, headers=script | key)).status_code == 201
        other = password_settings.model_dump() | {"fingerprint_key": "a-fingerprint-key-that-is-another-one"}
        async with harness.gateway(GatewaySettings.model_validate(other)) as client:
            assert (await client.get("/notes", headers=script)).status_code == 200
            repeated = await client.post("/notes", json=NOTE, headers=script | key)
            assert (repeated.status_code, repeated.json()["code"]) == (422, "idempotency_key_reused")


async def test_removal_of_a_signing_key_signs_all_users_out(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.worker(worker_settings):
        async with harness.gateway(password_settings) as client:
            ada = await sign_up(client)
            accepted = await client.post("/notes", json=NOTE, headers=ada.headers | {"Prefer": "respond-async"})
        other = password_settings.model_dump() | {"signing_keys": ("a-signing-key-that-is-another-one",)}
        async with harness.gateway(GatewaySettings.model_validate(other)) as client:
            assert (await client.get("/notes", headers=ada.headers)).status_code == 401
            again = bearer(await sign_in(client, ada.name))
            assert (await client.get(accepted.headers["location"], headers=again)).status_code == 404
            await eventually(lambda: has_note(client, again))


async def has_note(client: httpx.AsyncClient, headers: dict[str, str]) -> bool:
    return len((await client.get("/notes", headers=headers)).json()) == 1


def test_every_secret_of_the_services_is_on_the_page() -> None:
    for name in re.findall(r"^([A-Z_]+)=$", (ROOT / ".env.example").read_text(), re.MULTILINE):
        words = name.removeprefix("INKWELL_").removesuffix("_PASSWORD").removesuffix("S").lower().split("_")
        assert name in PAGE or all(word in PAGE.lower() for word in words), name
