"""Users and their own accounts."""

import asyncio
import unicodedata
from typing import Literal

import httpx
import pytest
from asyncpg import Connection, Record

from dev.backend import Services
from gateway.auth import passwords
from gateway.settings import GatewaySettings
from shared.topology import Topology
from tests.support import harness
from tests.support.accounts import bearer, forged, personal_token, sign_in, sign_up
from tests.support.canaries import NEW_PASSWORD, NOTE, PASSWORD, find_secrets
from tests.support.harness import decided, eventually
from worker.settings import WorkerSettings

SPELLINGS = ["Ada", "ada", "ADA", "aDa", "\uff21da", "\uff41\uff44\uff41"]


async def test_registered_user_signs_in_and_has_notes_of_their_own(users_client: httpx.AsyncClient) -> None:
    ada = await sign_up(users_client, "Ada")

    created = await users_client.post("/notes/", json=NOTE, headers=ada.headers)

    assert created.status_code == 201
    assert (await users_client.get("/notes/", headers=ada.headers)).json() == [created.json()]
    assert (await users_client.get("/users/me", headers=ada.headers)).json()["name"] == "Ada"


async def test_registration_is_answered_with_the_user_and_no_password(shared_users_client: httpx.AsyncClient) -> None:
    response = await shared_users_client.post("/users/", json={"name": "Ada", "password": PASSWORD})

    assert response.status_code == 201
    assert response.headers["location"] == "/users/me"
    assert response.json().keys() == {"id", "name", "created_date", "updated_date"}


async def test_registrant_reads_the_outcome_without_a_token(shared_users_client: httpx.AsyncClient) -> None:
    user = {"name": "Grace", "password": PASSWORD}
    accepted = await shared_users_client.post("/users/", json=user, headers={"Prefer": "respond-async"})

    assert accepted.status_code == 202
    response = (await decided(shared_users_client, accepted.headers["location"]))["answer"]
    assert (response["status"], response["headers"]["Location"], response["body"]["name"]) == (
        201,
        "/users/me",
        "Grace",
    )


async def test_repeated_registration_is_the_same_and_with_another_password_it_is_not(
    shared_users_client: httpx.AsyncClient,
) -> None:
    async def register(password: str) -> httpx.Response:
        user = {"name": "Hedy", "password": password}
        return await shared_users_client.post("/users/", json=user, headers={"Idempotency-Key": "8e03978e"})

    first, again, other = await register(PASSWORD), await register(PASSWORD), await register(NEW_PASSWORD)

    assert (again.status_code, again.text, again.headers["idempotent-replayed"]) == (201, first.text, "true")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_strangers_with_the_same_key_never_meet(users_client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "8e03978e"}
    for name in ("Ada", "Bob"):
        registered = await users_client.post("/users/", json={"name": name, "password": PASSWORD}, headers=key)
        assert (registered.status_code, registered.json()["name"]) == (201, name)
        headers = key | bearer(await sign_in(users_client, name))
        for path, body in (("/notes", {"title": name, "description": ""}), ("/auth/tokens", script(name))):
            created = await users_client.post(path, json=body, headers=headers)
            assert created.status_code == 201
            assert name in created.json().values()


def script(name: str) -> dict[str, object]:
    return {"name": name, "scopes": ["notes:read"]}


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_name_in_another_spelling_is_taken_and_signs_in(
    shared_users_client: httpx.AsyncClient, spelling: str
) -> None:
    await shared_users_client.post("/users/", json={"name": "Ada", "password": PASSWORD})

    taken = await shared_users_client.post("/users/", json={"name": spelling, "password": NEW_PASSWORD})

    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
    assert await sign_in(shared_users_client, spelling)


async def test_fifty_registrations_of_one_name_make_one_user_and_their_neighbors_are_applied(
    password_settings: GatewaySettings, worker_settings: WorkerSettings, database: "Connection[Record]"
) -> None:
    spellings = [SPELLINGS[number % len(SPELLINGS)] for number in range(50)]
    async with (
        harness.worker(worker_settings),
        harness.gateway(password_settings) as one,
        harness.gateway(password_settings) as two,
    ):
        neighbor = await sign_up(one, "Neighbor")
        registrations = [
            client.post("/users/", json={"name": spelling, "password": PASSWORD})
            for client, spelling in zip([one, two] * 25, spellings, strict=True)
        ]
        notes = [client.post("/notes", json=NOTE, headers=neighbor.headers) for client in [one, two] * 50]
        responses = await asyncio.gather(*registrations, *notes)

    statuses = [response.status_code for response in responses]
    assert sorted(statuses[:50]) == [201] + 49 * [409]
    assert statuses[50:] == 100 * [201]
    assert await database.fetchval("select count(*) from users where folded_name = 'ada'") == 1
    assert not await database.fetchval("select count(*) from commands where status = 'failed'")


IMPOSSIBLE = ["", "two words", "a" * 65, "tab\t", "\u0000", "\U0001f600", 7]
GROWING = "\u0958" * 33
"""In NFC, twice as long as allowed."""
UNFOLDABLE = "\u05d0\u0345"
"""A valid name in RFC 8265 whose case-folded form is not."""


@pytest.mark.parametrize("name", [*IMPOSSIBLE, GROWING, UNFOLDABLE])
async def test_impossible_name_is_refused(shared_users_client: httpx.AsyncClient, name: object) -> None:
    ada = await sign_up(shared_users_client)

    registered = await shared_users_client.post("/users/", json={"name": name, "password": PASSWORD})
    changed = await shared_users_client.patch("/users/me", json={"name": name}, headers=ada.headers)

    for response in (registered, changed):
        assert response.status_code == 422
        assert {error["pointer"] for error in response.json()["errors"]} == {"/body/name"}


async def test_name_signs_in_as_it_is_typed(shared_users_client: httpx.AsyncClient) -> None:
    assert (await sign_up(shared_users_client, "\u1fb3\u0301")).token


@pytest.mark.parametrize("password", ["seven77", "a" * 129, "", 12345678, None])
async def test_impossible_password_is_refused_and_not_repeated(
    shared_users_client: httpx.AsyncClient, password: object
) -> None:
    response = await shared_users_client.post("/users/", json={"name": "Ada", "password": password})

    assert response.status_code == 422
    assert {error["pointer"] for error in response.json()["errors"]} == {"/body/password"}
    assert not password or str(password) not in response.text


@pytest.mark.parametrize("password", ["8 spaces", "        ", "pässwörd", "\U0001f600" * 8, "a" * 128, "tab\there"])
async def test_any_password_of_the_right_length_will_do(shared_users_client: httpx.AsyncClient, password: str) -> None:
    assert (await sign_up(shared_users_client, password=password)).token


async def test_password_of_the_greatest_length_may_be_typed_decomposed(shared_users_client: httpx.AsyncClient) -> None:
    await sign_up(shared_users_client, "Wu", "\u01d8" * 128)

    assert await sign_in(shared_users_client, "Wu", "u\u0308\u0301" * 128)


async def test_text_that_is_too_long_for_a_password_is_not_composed(
    shared_users_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await sign_up(shared_users_client)
    composed = list[int]()
    compose = unicodedata.normalize

    def noted(form: Literal["NFC"], text: str) -> str:
        composed.append(len(text))
        return compose(form, text)

    monkeypatch.setattr(unicodedata, "normalize", noted)
    long = "a" + "\u0301" * 5000

    signed_in = await shared_users_client.post("/auth/token", data={"username": ada.name, "password": long})
    patch = {"password": NEW_PASSWORD, "current_password": long}
    changed = await shared_users_client.patch("/users/me", json=patch, headers=ada.headers)

    assert (signed_in.json()["code"], changed.json()["code"]) == ("invalid_grant", "wrong_password")
    assert max(composed) <= passwords.MAX_DECOMPOSED_LENGTH


async def test_password_is_the_same_however_the_keyboard_composes_it(shared_users_client: httpx.AsyncClient) -> None:
    ada = await sign_up(shared_users_client, password="pa\u0308ssword")

    assert await sign_in(shared_users_client, ada.name, "p\u00e4ssword")


async def test_user_changes_the_name_and_keeps_the_token(users_client: httpx.AsyncClient) -> None:
    ada = await sign_up(users_client, "Ada")

    changed = await users_client.patch("/users/me", json={"name": "Lovelace"}, headers=ada.headers)

    assert (changed.status_code, changed.json()["name"]) == (200, "Lovelace")
    assert (await users_client.get("/users/me", headers=ada.headers)).text == changed.text
    assert await sign_in(users_client, "lovelace")
    assert (await sign_up(users_client, "Ada")).id != ada.id


async def test_user_may_write_the_own_name_in_other_letters(users_client: httpx.AsyncClient) -> None:
    ada = await sign_up(users_client, "Ada")

    assert (await users_client.patch("/users/me", json={"name": "ADA"}, headers=ada.headers)).status_code == 200


@pytest.mark.parametrize("change", [{}, {"name": "Ada"}])
async def test_change_to_what_is_there_already_leaves_the_user_as_it_is(
    users_client: httpx.AsyncClient, change: dict[str, str]
) -> None:
    ada = await sign_up(users_client, "Ada")
    before = await users_client.get("/users/me", headers=ada.headers)

    changed = await users_client.patch("/users/me", json=change, headers=ada.headers)

    assert (changed.status_code, changed.text) == (200, before.text)
    assert (await users_client.get("/users/me", headers=ada.headers)).text == before.text


async def test_user_cannot_take_the_name_of_another(users_client: httpx.AsyncClient) -> None:
    await sign_up(users_client, "Ada")
    bob = await sign_up(users_client, "Bob")

    taken = await users_client.patch("/users/me", json={"name": "ADA"}, headers=bob.headers)

    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
    assert await sign_in(users_client, "bob")


async def test_new_password_needs_the_current_one(shared_users_client: httpx.AsyncClient) -> None:
    ada = await sign_up(shared_users_client)
    change = {"password": NEW_PASSWORD}

    without = await shared_users_client.patch("/users/me", json=change, headers=ada.headers)
    wrong = await shared_users_client.patch(
        "/users/me", json=change | {"current_password": "nope"}, headers=ada.headers
    )

    assert (without.status_code, without.json()["errors"][0]["pointer"]) == (422, "/body/current_password")
    assert (wrong.status_code, wrong.json()["code"]) == (403, "wrong_password")
    assert await sign_in(shared_users_client, ada.name)


async def test_new_password_ends_every_token(shared_users_client: httpx.AsyncClient) -> None:
    ada = await sign_up(shared_users_client)
    personal = (await personal_token(shared_users_client, ada))["token"]
    change = {"password": NEW_PASSWORD, "current_password": PASSWORD}

    assert (await shared_users_client.patch("/users/me", json=change, headers=ada.headers)).status_code == 200

    for token in (ada.token, personal):
        for method in ("GET", "POST"):
            refused = await shared_users_client.request(method, "/notes", json=NOTE, headers=bearer(token))
            assert refused.status_code == 401
    token = await sign_in(shared_users_client, ada.name, NEW_PASSWORD)
    assert (await shared_users_client.post("/notes", json=NOTE, headers=bearer(token))).status_code == 201


async def test_deleted_user_is_gone_at_once_on_every_gateway(
    password_settings: GatewaySettings, users_client: httpx.AsyncClient
) -> None:
    ada = await sign_up(users_client, "Ada")
    personal = (await personal_token(users_client, ada))["token"]
    async with harness.gateway(password_settings) as other:
        for token in (ada.token, personal):
            assert (await other.get("/notes", headers=bearer(token))).status_code == 200

        assert (await users_client.delete("/users/me", headers=ada.headers)).status_code == 204

        for client in (users_client, other):
            for token in (ada.token, personal):
                for method, path in (("GET", "/notes"), ("POST", "/notes"), ("GET", "/notes/1")):
                    refused = await client.request(method, path, json=NOTE, headers=bearer(token))
                    assert refused.status_code == 401
    login = await users_client.post("/auth/token", data={"username": "Ada", "password": PASSWORD})
    assert (login.status_code, login.json()["error"]) == (400, "invalid_grant")
    assert (await sign_up(users_client, "Ada")).id != ada.id


async def test_command_that_was_authorised_before_a_password_change_and_applied_after_it_is_rejected(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    later = {"Prefer": "respond-async"}
    async with harness.gateway(password_settings) as client:
        async with harness.worker(worker_settings):
            ada = await sign_up(client)
            await client.post("/notes", json=NOTE, headers=ada.headers)
        change = {"password": NEW_PASSWORD, "current_password": PASSWORD}
        changed = await client.patch("/users/me", json=change, headers=ada.headers | later)
        key = {"Idempotency-Key": "once"}
        written = await client.post("/notes", json=NOTE, headers=ada.headers | later | key)
        assert (changed.status_code, written.status_code) == (202, 202)
        async with harness.worker(worker_settings):
            token = await eventually(lambda: new_token(client, ada.name))
            assert (await client.get(changed.headers["location"], headers=bearer(token))).json()["status"] == "applied"
            state = (await client.get(written.headers["location"], headers=bearer(token))).json()
            assert (state["status"], state["answer"]["status"]) == ("rejected", 401)
            assert state["answer"]["headers"]["WWW-Authenticate"].startswith("Bearer")
            assert len((await client.get("/notes", headers=bearer(token))).json()) == 1
            repeated = await client.post("/notes", json=NOTE, headers=bearer(token) | key)
            assert (repeated.status_code, repeated.json()["code"]) == (409, "idempotency_key_spent")


async def test_old_token_gets_no_outcome(password_settings: GatewaySettings, users_client: httpx.AsyncClient) -> None:
    ada = await sign_up(users_client)
    accepted = await users_client.post("/notes", json=NOTE, headers=ada.headers | {"Prefer": "respond-async"})
    url = accepted.headers["location"]
    change = {"password": NEW_PASSWORD, "current_password": PASSWORD}
    async with harness.gateway(password_settings) as other:
        assert (await other.get(url, headers=ada.headers)).status_code == 200
        await users_client.patch("/users/me", json=change, headers=ada.headers)

        refused = await other.get(url, headers=ada.headers)

    assert (refused.status_code, refused.json()["code"]) == (401, "credentials_outdated")


async def new_token(client: httpx.AsyncClient, name: str) -> str | None:
    response = await client.post("/auth/token", data={"username": name, "password": NEW_PASSWORD})
    return str(response.json()["access_token"]) if response.is_success else None


async def test_of_all_secrets_only_the_passwords_hash_is_queued_and_stored(
    servers: Services,
    users_client: httpx.AsyncClient,
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
) -> None:
    change = {"password": NEW_PASSWORD, "current_password": PASSWORD}
    async with harness.copies(servers, Topology.of(worker_settings)) as copies:
        ada = await sign_up(users_client)
        await personal_token(users_client, ada)
        assert (await users_client.patch("/users/me", json=change, headers=ada.headers)).is_success
        queued = await harness.bodies(copies)
    tables = ("users", "personal_tokens", "commands")
    stored = [str(await database.fetch(f"select * from {table}")) for table in tables]  # noqa: S608 - from above

    assert find_secrets("".join(queued)) == find_secrets("".join(stored)) == ["a password's hash"]


async def test_token_of_another_deployment_is_refused(
    password_settings: GatewaySettings, users_client: httpx.AsyncClient
) -> None:
    ada = await sign_up(users_client)
    elsewhere = GatewaySettings.model_validate(password_settings.model_dump() | {"token_issuer": "staging"})

    refused = await users_client.get("/notes", headers=bearer(forged(elsewhere, ada.id)))

    assert refused.json()["code"] == "invalid_token"


async def test_keys_are_rotated_without_signing_anybody_out(
    password_settings: GatewaySettings, users_client: httpx.AsyncClient
) -> None:
    ada = await sign_up(users_client)
    keys = ("a-new-key-that-is-used-in-the-tests-only", *password_settings.signing_keys)
    rotated = GatewaySettings.model_validate(password_settings.model_dump() | {"signing_keys": keys})

    async with harness.gateway(rotated) as client:
        fresh = await sign_in(client, ada.name)
        assert (await client.get("/notes", headers=ada.headers)).status_code == 200
        assert (await client.get("/notes", headers=bearer(fresh))).status_code == 200
    assert (await users_client.get("/notes", headers=bearer(fresh))).status_code == 401
