"""Every route rejects every kind of invalid credentials; the routes are the application's own."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from dev.backend import Services
from gateway.app import collect_operations, create_app
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import Person, bearer, forged, invalid_tokens, personal_token, sign_in, sign_up
from tests.support.canaries import NOTE, PASSWORD
from tests.support.isolation import SIGNING_IN, fresh_database, fresh_prefix, settings_of_gateway, settings_of_worker

NOWHERE = {
    "database_url": "postgresql://nobody:nothing@127.0.0.1:1/nowhere",
    "broker_url": "amqp://nobody:nothing@127.0.0.1:1/",
    "signing_keys": ("a-key-that-is-used-in-the-tests-only",),
    "fingerprint_key": "another-key-that-is-used-in-the-tests-only",
}
PROBES = {("GET", "/health/live"), ("GET", "/health/ready")}
OPEN = {("POST", "/users"), ("POST", "/auth/token")} | PROBES
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/notes"): NOTE,
    ("POST", "/notes/batch"): {"items": [{"op": "create", **NOTE}]},
    ("PUT", "/notes/{note_id}"): NOTE,
    ("PATCH", "/notes/{note_id}"): {"title": "Pen"},
    ("PATCH", "/users/me"): {},
    ("POST", "/auth/tokens"): {"name": "script", "scopes": ["notes:read"]},
}
SETTINGS = GatewaySettings.model_validate(NOWHERE)
APP = create_app(SETTINGS)
SCOPES = {(operation.method, operation.path): str(operation.requires) for operation in collect_operations(SETTINGS)}
ROUTES = list(SCOPES)
GUARDED = [route for route in ROUTES if route not in OPEN]


@dataclass(frozen=True)
class World:
    """A running Inkwell with two users, one of whom has a note, a personal token and a command."""

    client: httpx.AsyncClient
    settings: GatewaySettings
    owner: Person
    stranger: Person
    paths: dict[str, str]

    async def ask(
        self, route: tuple[str, str], headers: dict[str, str], query: dict[str, str] | None = None, **paths: str
    ) -> httpx.Response:
        method, template = route
        path = re.sub(r"{(\w+)}", lambda match: (self.paths | paths)[match[1]], template)
        query = query or ({"q": "ink"} if path.endswith("/search") else None)
        return await self.client.request(method, path, headers=headers, json=BODIES.get(route), params=query)


@pytest.fixture(scope="module")
async def world(servers: Services, template: str) -> AsyncIterator[World]:
    async with fresh_database(servers, template) as url, fresh_prefix(servers) as prefix:
        settings = settings_of_gateway(servers, url, prefix, **SIGNING_IN)
        async with harness.worker(settings_of_worker(servers, url, prefix)), harness.gateway(settings) as client:
            owner, stranger = await sign_up(client, "Ada"), await sign_up(client, "Bob")
            note = await client.post("/notes", json=NOTE, headers=owner.headers)
            command = await client.post("/notes", json=NOTE, headers=owner.headers | {"Prefer": "respond-async"})
            token = await personal_token(client, owner)
            paths = {
                "note_id": note.headers["location"].split("/")[-1],
                "token": command.headers["location"].split("/")[-1],
                "token_id": token["id"],
                "version": "1",
            }
            yield World(client, settings, owner, stranger, paths)


def named(route: tuple[str, str]) -> str:
    return " ".join(route)


def test_every_route_declares_a_rule_and_few_are_public() -> None:
    declared = {
        (method.upper(), path): operation["security"]
        for path, operations in APP.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    assert set(declared) == set(ROUTES)
    assert {route for route, security in declared.items() if not security} == OPEN


@pytest.mark.parametrize("route", GUARDED, ids=named)
def test_notes_need_scopes_of_notes_and_all_else_that_of_the_account(route: tuple[str, str]) -> None:
    method, path = route
    of_notes = {"notes:read"} if method == "GET" else {"notes:write"}

    expected = {"notes": of_notes, "commands": {"notes:write"}}.get(path.split("/")[1], {"account"})
    assert {SCOPES[route]} == expected


@pytest.mark.parametrize("route", GUARDED, ids=named)
async def test_request_without_a_token_is_rejected(world: World, route: tuple[str, str]) -> None:
    response = await world.ask(route, {})

    assert (response.status_code, response.json()["code"]) == (401, "not_authenticated")
    assert response.headers["www-authenticate"] == 'Bearer realm="inkwell"'


@pytest.mark.parametrize("route", GUARDED, ids=named)
async def test_no_invalid_token_is_let_in(world: World, route: tuple[str, str]) -> None:
    for wrong, token in invalid_tokens(world.settings, world.owner.id).items():
        response = await world.ask(route, bearer(token))

        assert (response.status_code, response.json()["code"]) == (401, "invalid_token"), wrong
        assert response.headers["www-authenticate"] == 'Bearer realm="inkwell", error="invalid_token"'


@pytest.mark.parametrize("header", ["Basic QWRhOnNlY3JldA==", "Bearer", "bearer", ""])
async def test_other_authorization_is_no_token(world: World, header: str) -> None:
    response = await world.client.get("/notes", headers={"Authorization": header})

    assert (response.status_code, response.json()["code"]) == (401, "invalid_token")


@pytest.mark.parametrize("route", GUARDED, ids=named)
async def test_revoked_credentials_are_not_let_in(world: World, route: tuple[str, str]) -> None:
    outdated = forged(world.settings, world.owner.id, credentials_version=99)
    of_nobody = forged(world.settings, 999_999)
    for token in (outdated, of_nobody):
        response = await world.ask(route, bearer(token))

        assert (response.status_code, response.json()["code"]) == (401, "credentials_outdated")
        assert response.headers["www-authenticate"] == 'Bearer realm="inkwell", error="invalid_token"'


@pytest.mark.parametrize("route", GUARDED, ids=named)
async def test_revoked_personal_token_is_not_let_in(world: World, route: tuple[str, str]) -> None:
    token = await personal_token(world.client, world.owner)
    await world.client.get("/notes", headers=bearer(token["token"]))
    await world.client.delete(f"/auth/tokens/{token['id']}", headers=world.owner.headers)

    response = await world.ask(route, bearer(token["token"]))

    assert (response.status_code, response.json()["code"]) == (401, "invalid_token")


@pytest.mark.parametrize("route", GUARDED, ids=named)
async def test_token_without_the_scope_is_not_let_in(world: World, route: tuple[str, str]) -> None:
    needed = SCOPES[route]
    others = {"notes:read", "notes:write", "account"} - {needed}
    tokens = [await sign_in(world.client, world.owner.name, scope=" ".join(others))]
    if personal := others - {"account"}:
        tokens.append((await personal_token(world.client, world.owner, *personal))["token"])
    for token in tokens:
        response = await world.ask(route, bearer(token))

        assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")
        challenge = f'Bearer realm="inkwell", error="insufficient_scope", scope="{needed}"'
        assert response.headers["www-authenticate"] == challenge


@pytest.mark.parametrize("route", [route for route in ROUTES if route not in PROBES], ids=named)
async def test_parameter_that_an_operation_lacks_is_refused_and_has_no_effect(
    world: World, route: tuple[str, str]
) -> None:
    known = {"q": "ink"} if route[1].endswith("/search") else {}

    response = await world.ask(route, world.owner.headers, known | {"dry_run": "true", "": ""})

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")
    errors = {(error["pointer"], error["code"]) for error in response.json()["errors"]}
    assert errors == {("/query/dry_run", "unknown_field"), ("/query/", "unknown_field")}
    assert (await world.client.get("/users/me", headers=world.owner.headers)).status_code == 200


@pytest.mark.parametrize("route", GUARDED, ids=named)
async def test_who_calls_is_asked_before_what_the_query_says(world: World, route: tuple[str, str]) -> None:
    for headers, status in (({}, 401), (bearer("inkwell_0123456789"), 401)):
        assert (await world.ask(route, headers, {"dry_run": "%"})).status_code == status


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/docs", "/openapi.json"])
async def test_probes_and_the_documentation_take_any_query(world: World, path: str) -> None:
    assert (await world.client.get(f"{path}?cache=%ff&cache=7")).status_code == 200


async def test_parameter_of_a_registrations_url_is_refused(world: World) -> None:
    user = {"name": "Carl", "password": PASSWORD}
    accepted = await world.client.post("/users", json=user, headers={"Prefer": "respond-async"})

    refused = await world.client.get(f"{accepted.headers['location']}?wait=3")

    assert [error["pointer"] for error in refused.json()["errors"]] == ["/query/wait"]


@pytest.mark.parametrize("route", [route for route in GUARDED if "{" in route[1]], ids=named)
async def test_resources_of_others_are_indistinguishable_from_missing_ones(
    world: World, route: tuple[str, str]
) -> None:
    nothing: dict[str, str] = {
        "note_id": "987654321",
        "token": "made-up",
        "token_id": "00000000-0000-4000-8000-000000000000",
    }

    anothers, nobodys = [await world.ask(route, world.stranger.headers, None, **paths) for paths in ({}, nothing)]

    assert anothers.status_code == 404
    assert (nobodys.status_code, nobodys.text) == (404, anothers.text)
    assert nobodys.headers.keys() == anothers.headers.keys()


@pytest.mark.parametrize("path", ["/notes", "/auth/tokens"])
async def test_lists_hold_what_is_ones_own(world: World, path: str) -> None:
    assert (await world.client.get(path, headers=world.owner.headers)).json()
    assert (await world.client.get(path, headers=world.stranger.headers)).json() == []
