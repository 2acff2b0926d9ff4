"""Access tokens and personal tokens: how they are issued, what they allow, and rate limits."""

from urllib.parse import urlencode

import httpx
import jwt
import pytest
from argon2 import PasswordHasher
from asyncpg import Connection, Record

from gateway.auth.passwords import DUMMY_HASH
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import Person, bearer, personal_token, sign_in, sign_up
from tests.support.canaries import NEW_PASSWORD, PASSWORD
from tests.support.harness import decided, eventually
from worker.settings import WorkerSettings

FORM = {"username": "Ada", "password": PASSWORD}


@pytest.fixture(scope="module", autouse=True)
async def ada(shared_users_client: httpx.AsyncClient) -> Person:
    return await sign_up(shared_users_client, "Ada")


async def test_access_token_is_answered_as_oauth_has_it(shared_users_client: httpx.AsyncClient) -> None:

    response = await shared_users_client.post("/auth/token", data=FORM | {"grant_type": "password"})

    assert response.headers["cache-control"] == "no-store"
    assert response.json() == {
        "access_token": response.json()["access_token"],
        "token_type": "bearer",
        "expires_in": 3600,
        "scope": "account notes:read notes:write",
    }
    claims = jwt.decode(response.json()["access_token"], options={"verify_signature": False})
    assert claims.keys() == {"exp", "iat", "iss", "aud", "sub", "jti", "scope", "credentials_version"}
    assert claims["exp"] - claims["iat"] == 3600


async def test_scopes_may_have_more_spaces_than_one_between_them(shared_users_client: httpx.AsyncClient) -> None:
    form = FORM | {"scope": " notes:read  account "}

    assert (await shared_users_client.post("/auth/token", data=form)).json()["scope"] == "account notes:read"


async def test_access_token_has_the_scopes_that_were_asked_for(
    shared_users_client: httpx.AsyncClient, ada: Person
) -> None:

    token = await sign_in(shared_users_client, ada.name, scope="notes:read")

    assert (await shared_users_client.get("/notes", headers=bearer(token))).status_code == 200
    assert (await shared_users_client.delete("/notes/1", headers=bearer(token))).status_code == 403


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"username": "Ada"}, "invalid_request"),
        ({"password": PASSWORD}, "invalid_request"),
        ({}, "invalid_request"),
        (FORM | {"username": ["Ada", "Bob"]}, "invalid_request"),
        (FORM | {"grant_type": "client_credentials"}, "unsupported_grant_type"),
        (FORM | {"scope": "notes:read everything"}, "invalid_scope"),
        *((FORM | {"scope": f"notes:read{space}account"}, "invalid_scope") for space in "\t\n\xa0\u3000,+"),
        (FORM | {"password": "wrong"}, "invalid_grant"),
        (FORM | {"password": ""}, "invalid_grant"),
        (FORM | {"username": "nobody"}, "invalid_grant"),
        (FORM | {"username": "no body"}, "invalid_grant"),
        (FORM | {"username": "\0"}, "invalid_grant"),
        (FORM | {"username": ""}, "invalid_grant"),
        (FORM | {"username": "a" * 60_000}, "invalid_grant"),
    ],
)
async def test_refused_login_says_why_in_oauths_words(
    shared_users_client: httpx.AsyncClient, form: dict[str, str], error: str
) -> None:

    response = await shared_users_client.post("/auth/token", data=form)

    assert response.status_code == 400
    assert (response.json()["error"], response.json()["code"]) == (error, error)
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b'{"username": "Ada", "password": "secret"}', "application/json"),
        (b"username=Ada&password=x\xff", "application/x-www-form-urlencoded"),
        (b"username=%ff&password=x", "application/x-www-form-urlencoded"),
        (b"username=Ada&password=%C3", "application/x-www-form-urlencoded"),
        (b"username=Ada&password=x&%ff=1", "application/x-www-form-urlencoded"),
        (b"username=Ada&password=x", "application/x-www-form-urlencoded; charset=latin-1"),
        (b"username=Ada&password=x", "application/x-www-form-urlencoded, application/json"),
        (b"&".join(b"a%d=b" % number for number in range(50)), "application/x-www-form-urlencoded"),
        (b"", ""),
    ],
)
async def test_login_that_is_no_form_is_refused(
    shared_users_client: httpx.AsyncClient, content: bytes, media_type: str
) -> None:
    response = await shared_users_client.post("/auth/token", content=content, headers={"Content-Type": media_type})

    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    "media_type",
    [
        "application/x-www-form-urlencoded",
        "Application/X-WWW-Form-Urlencoded; charset=UTF-8",
        "application/x-www-form-urlencoded;x=y",
    ],
)
async def test_form_may_say_more_than_is_asked(shared_users_client: httpx.AsyncClient, media_type: str) -> None:
    form = urlencode(FORM | {"client_id": "app", "client_secret": "", "audience": "notes", "state": "é"})

    for content in (form, f"{form}&audience=twice"):
        response = await shared_users_client.post("/auth/token", content=content, headers={"Content-Type": media_type})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("name", ["username", "password", "grant_type", "scope"])
async def test_form_that_says_something_twice_is_refused(shared_users_client: httpx.AsyncClient, name: str) -> None:
    form = FORM | {"grant_type": "password", "scope": "notes:read"}

    response = await shared_users_client.post("/auth/token", data=form | {name: [form[name], form[name]]})

    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")


async def test_unknown_user_is_answered_as_a_wrong_password_is(shared_users_client: httpx.AsyncClient) -> None:

    wrong, unknown = [
        await shared_users_client.post("/auth/token", data={"username": name, "password": "wrong password"})
        for name in ("Ada", "nobody")
    ]

    assert (unknown.status_code, unknown.text) == (wrong.status_code, wrong.text)
    assert unknown.headers.keys() == wrong.headers.keys()


def test_password_of_an_unknown_user_costs_as_much_as_any() -> None:
    assert not PasswordHasher().check_needs_rehash(DUMMY_HASH)


async def test_personal_token_reads_and_writes_within_its_scopes(
    shared_users_client: httpx.AsyncClient, ada: Person
) -> None:
    token = await personal_token(shared_users_client, ada, "notes:write")
    note = {"title": "Ink", "description": ""}

    assert (await shared_users_client.post("/notes", json=note, headers=bearer(token["token"]))).status_code == 201
    assert (await shared_users_client.get("/notes", headers=bearer(token["token"]))).status_code == 403
    assert (await shared_users_client.get("/notes", headers=ada.headers)).json()[0]["title"] == "Ink"


async def test_retry_shows_the_same_personal_token_to_its_owner_alone(
    shared_users_client: httpx.AsyncClient, ada: Person
) -> None:
    headers = ada.headers | {"Idempotency-Key": "8e03978e"}
    body = {"name": "script", "scopes": ["notes:write", "notes:read"]}

    first, again = [await shared_users_client.post("/auth/tokens", json=body, headers=headers) for _ in range(2)]

    assert (again.status_code, again.text) == (201, first.text)
    assert again.headers["idempotent-replayed"] == "true"
    assert first.headers["cache-control"] == "no-store"
    shown = await shared_users_client.get(first.headers["location"], headers=ada.headers)
    assert shown.json() == {name: value for name, value in first.json().items() if name != "token"}
    assert shown.json() in (await shared_users_client.get("/auth/tokens", headers=ada.headers)).json()


async def test_key_that_is_used_again_when_it_is_forgotten_makes_another_secret(
    users_client: httpx.AsyncClient, database: "Connection[Record]"
) -> None:
    ada = await sign_up(users_client)
    headers, body = ada.headers | {"Idempotency-Key": "yearly"}, {"name": "script", "scopes": ["notes:read"]}
    first = await users_client.post("/auth/tokens", json=body, headers=headers)
    await users_client.delete(first.headers["location"], headers=ada.headers)
    await database.execute("delete from commands")

    second = await users_client.post("/auth/tokens", json=body, headers=headers)

    assert second.json()["token"] != first.json()["token"]
    assert (await users_client.get("/notes", headers=bearer(second.json()["token"]))).status_code == 200
    assert (await users_client.get("/notes", headers=bearer(first.json()["token"]))).status_code == 401


async def test_personal_tokens_are_listed_in_pages_until_a_new_password_ends_them(
    shared_users_client: httpx.AsyncClient,
) -> None:
    ada = await sign_up(shared_users_client)
    ids = [(await personal_token(shared_users_client, ada))["id"] for _ in range(3)]

    async def listed(query: str) -> list[str]:
        page = (await shared_users_client.get(f"/auth/tokens{query}", headers=ada.headers)).json()
        return [token["id"] for token in page]

    assert await listed("") == ids
    assert await listed("?skip=1&limit=1") == ids[1:2]
    assert await listed("?skip=3") == []
    await shared_users_client.patch(
        "/users/me", json={"password": NEW_PASSWORD, "current_password": PASSWORD}, headers=ada.headers
    )
    token = await sign_in(shared_users_client, ada.name, NEW_PASSWORD)
    assert (await shared_users_client.get("/auth/tokens", headers=bearer(token))).json() == []
    assert (await shared_users_client.get(f"/auth/tokens/{ids[0]}", headers=bearer(token))).status_code == 404


async def test_late_response_shows_the_personal_token_to_its_owner_alone(users_client: httpx.AsyncClient) -> None:
    ada = await sign_up(users_client)
    body = {"name": "script", "scopes": ["notes:write"]}
    accepted = await users_client.post("/auth/tokens", json=body, headers=ada.headers | {"Prefer": "respond-async"})
    users_client.headers = httpx.Headers(ada.headers)

    token = (await decided(users_client, accepted.headers["location"]))["answer"]["body"]["token"]

    url, note = accepted.headers["location"], {"title": "Ink", "description": ""}
    assert (await users_client.get(url)).headers["cache-control"] == "no-store"
    assert (await users_client.post("/notes", json=note, headers=bearer(token))).status_code == 201
    original = (await users_client.get(url, headers=bearer(token))).json()["answer"]
    assert (original["status"], original["body"]) == (201, None)


async def test_expired_personal_token_is_not_let_in(
    users_client: httpx.AsyncClient, database: "Connection[Record]"
) -> None:
    ada = await sign_up(users_client)
    token = (await personal_token(users_client, ada))["token"]
    await database.execute("update personal_tokens set expires_date = now() + interval '1 second'")

    async def is_refused() -> bool:
        return (await users_client.get("/notes", headers=bearer(token))).status_code == 401

    assert not await is_refused()
    await eventually(is_refused, within_seconds=5)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": "script"}, "/body/scopes"),
        ({"name": "script", "scopes": []}, "/body/scopes"),
        ({"name": "script", "scopes": ["account"]}, "/body/scopes/0"),
        ({"name": "", "scopes": ["notes:read"]}, "/body/name"),
        ({"name": "script", "scopes": ["notes:read"], "expires_in_days": 0}, "/body/expires_in_days"),
        ({"name": "script", "scopes": ["notes:read"], "secret": "mine"}, "/body/secret"),
    ],
)
async def test_impossible_personal_token_is_refused(
    shared_users_client: httpx.AsyncClient, ada: Person, body: dict[str, object], pointer: str
) -> None:

    response = await shared_users_client.post("/auth/tokens", json=body, headers=ada.headers)

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer


def limited(settings: GatewaySettings, **limits: object) -> GatewaySettings:
    return GatewaySettings.model_validate(settings.model_dump() | limits)


async def test_guessing_a_password_is_throttled_and_the_right_one_forgives(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    settings = limited(password_settings, login_limit="3/hour")
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        await sign_up(client, "Ada")
        await sign_up(client, "Bob")
        wrong = FORM | {"password": "wrong"}
        for _ in range(2):
            await client.post("/auth/token", data=wrong)
            assert await sign_in(client, "Ada")
        statuses = [(await client.post("/auth/token", data=wrong | {"username": "ADA"})).status_code for _ in range(4)]
        refused = await client.post("/auth/token", data=FORM)

        assert statuses == [400, 400, 400, 429]
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        assert 3000 < int(refused.headers["retry-after"]) <= 3600
        assert await sign_in(client, "Bob")


async def test_user_whose_id_is_anothers_name_does_not_make_that_ones_tries_forgotten(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    settings = limited(password_settings, login_limit="2/hour")
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        ada = await sign_up(client)
        await sign_up(client, str(ada.id))
        wrong = {"username": str(ada.id), "password": "wrong"}
        statuses = [(await client.post("/auth/token", data=wrong)).status_code for _ in range(3)]
        change = {"password": NEW_PASSWORD, "current_password": PASSWORD}
        assert (await client.patch("/users/me", json=change, headers=ada.headers)).status_code == 200
        statuses.append((await client.post("/auth/token", data=wrong)).status_code)

    assert statuses == [400, 400, 429, 429]


async def test_one_address_tries_only_so_many_passwords_whatever_the_names(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    settings = limited(password_settings, login_address_limit="2/hour", trusted_proxies=("127.0.0.1",))
    async with harness.worker(worker_settings), harness.gateway(settings) as client:

        async def guess(name: str, address: str) -> int:
            form = {"username": name, "password": "wrong"}
            return (await client.post("/auth/token", data=form, headers={"X-Forwarded-For": address})).status_code

        assert [await guess(f"user{n}", "203.0.113.7") for n in range(3)] == [400, 400, 429]
        assert await guess("user1", "203.0.113.8") == 400


async def test_guessing_the_current_password_is_throttled(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    settings = limited(password_settings, login_limit="2/hour")
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        ada = await sign_up(client)
        change = {"password": "a new password", "current_password": "wrong"}
        statuses = [(await client.patch("/users/me", json=change, headers=ada.headers)).status_code for _ in range(3)]

    assert statuses == [403, 403, 429]


async def test_registrations_are_throttled_by_address(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    settings = limited(password_settings, registration_limit="2/hour", trusted_proxies=("127.0.0.1",))
    async with harness.worker(worker_settings), harness.gateway(settings) as client:

        async def register(name: str, forwarded_for: str | None) -> int:
            headers = {"X-Forwarded-For": forwarded_for} if forwarded_for else {}
            user = {"name": name, "password": PASSWORD}
            return (await client.post("/users/", json=user, headers=headers)).status_code

        assert [await register(f"a{n}", "203.0.113.7") for n in range(3)] == [201, 201, 429]
        assert await register("b", "198.51.100.1, 203.0.113.8") == 201
        assert await register("c", "203.0.113.7, 203.0.113.8") == 201
        assert await register("d", "203.0.113.9, 203.0.113.8") == 429  # the proxy's header counts, not the client's
        assert [await register(f"e{n}", f"2001:db8::{n}") for n in range(3)] == [201, 201, 429]
        assert [await register(f"f{n}", None) for n in range(3)] == [201, 201, 201]


async def test_new_names_are_throttled_like_registrations(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    settings = limited(password_settings, registration_limit="3/hour")
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        ada, bob = [await sign_up(client, name) for name in ("Ada", "Bob")]

        async def rename(person: Person, name: str) -> httpx.Response:
            return await client.patch("/users/me", json={"name": name}, headers=person.headers)

        assert (await rename(ada, "bob")).json()["code"] == "name_taken"
        for person in (ada, bob):
            refused = await rename(person, "Carl")
            assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
            assert int(refused.headers["retry-after"]) > 0


async def test_forwarded_address_is_not_believed_of_strangers(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    settings = limited(password_settings, registration_limit="1/hour")
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        statuses = [
            (
                await client.post(
                    "/users/",
                    json={"name": f"user{number}", "password": PASSWORD},
                    headers={"X-Forwarded-For": f"203.0.113.{number}"},
                )
            ).status_code
            for number in range(2)
        ]

    assert statuses == [201, 429]


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("LOCALHOST", 200), ("[::1]:1", 200), ("notes.example", 421), ("", 421)],
)
async def test_implicit_owner_is_served_under_loopback_names_alone(
    shared_client: httpx.AsyncClient, host: str, status: int
) -> None:
    response = await shared_client.get("/notes/", headers={"Host": host})

    assert response.status_code == status
    assert status == 200 or response.json()["code"] == "misdirected_request"


async def test_implicit_owner_needs_no_token_and_there_are_no_accounts(shared_client: httpx.AsyncClient) -> None:
    assert (await shared_client.get("/notes/")).status_code == 200
    assert (await shared_client.post("/users/", json={"name": "Ada", "password": PASSWORD})).status_code == 404
    document = (await shared_client.get("/openapi.json")).json()
    assert not {path for path in document["paths"] if path.startswith(("/users", "/auth"))}
    assert "security" not in document["paths"]["/notes"]["get"]


@pytest.mark.parametrize(
    ("forged", "status"),
    [
        ("created_date = '8000-01-01', expires_date = '8001-01-01'", 401),
        ("scopes = '{account,notes:read,notes:write}'", 403),
    ],
)
async def test_token_that_the_api_does_not_give_allows_no_more_than_one_that_it_gives(
    users_client: httpx.AsyncClient, database: "Connection[Record]", forged: str, status: int
) -> None:
    bob = await sign_up(users_client)
    token = await personal_token(users_client, bob)
    await database.execute(f"update personal_tokens set {forged}")  # noqa: S608 - as an attacker with the broker's password

    assert (await users_client.get("/users/me", headers=bearer(token["token"]))).status_code == status
