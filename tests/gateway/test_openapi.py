"""Running gateways answer what the OpenAPI document declares: nothing more, and nothing less."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, Self
from uuid import uuid4

import asyncpg
import httpx
import pytest
from asyncpg import Connection, Record
from pydantic import BaseModel
from yarl import URL

from dev.backend import Services
from gateway.api.schemas import Note
from gateway.app import create_app
from gateway.auth import passwords
from gateway.http import requests
from gateway.reads import fair_limiter
from gateway.settings import GatewaySettings
from gateway.telemetry.request_ids import REQUEST_ID
from gateway.writes.command_urls import CommandUrls
from gateway.writes.states import CommandState
from tests.support import harness
from tests.support.accounts import Person, bearer, forged, personal_token, sign_up
from tests.support.canaries import NOTE, PASSWORD
from tests.support.commands import create
from tests.support.harness import eventually
from tests.support.isolation import SIGNING_IN, fresh_database, fresh_prefix, settings_of_gateway, settings_of_worker
from tests.support.proxy import proxy_to
from tests.support.witness import Witness

KEY = {"Idempotency-Key": "8e03978e"}
JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
COMPRESSED = {"Content-Encoding": "gzip"}
POISON = """
    alter table notes add constraint poison check (title <> 'poison') not valid;
    alter table tombstones add constraint poison check (title is not null) not valid;
    alter table personal_tokens add constraint poison check (name <> 'poison') not valid;
    alter table users add constraint poison check (deleted_date is null and name not like 'poison%') not valid;
    create table keepers (note_id bigint references notes, token_id uuid references personal_tokens);
    insert into keepers (note_id) select id from notes;
    insert into keepers (token_id) select id from personal_tokens;
"""
CURE = """
    drop table keepers;
    alter table notes drop constraint poison;
    alter table tombstones drop constraint poison;
    alter table personal_tokens drop constraint poison;
    alter table users drop constraint poison;
"""
DISCARD = """
    update commands set status = 'rejected', reason = 'discarded', http_status = 410, note_version = null
    where status = 'failed'
"""
NO_POSTGRES = {"database_url": "postgresql://nobody:nothing@127.0.0.1:1/nowhere"}
NO_BROKER = {
    "broker_url": "amqp://nobody:nothing@127.0.0.1:1/",
    "publish_timeout_seconds": 1,
    "backlog_limit_bytes": 8192,
}
STRICT = {"require_preconditions": True, "login_limit": "1/hour", "registration_limit": "1/hour"}
NOT_TRIED = {("ready", 503, None)}


@dataclass(frozen=True)
class Account:
    """A user with a note, two deleted notes and a personal token, and the requests to write each of them."""

    person: Person
    note: str
    trash: list[str]
    """The ids of the deleted notes."""
    token: str

    @classmethod
    async def opened(cls, client: httpx.AsyncClient) -> Self:
        """The account of a new user."""
        person = await sign_up(client)
        note = await client.post("/notes", json=NOTE, headers=person.headers)
        deleted = {"items": [{"op": "create", "title": "poison", "description": ""}] * 2}
        written = await client.post("/notes/batch", json=deleted, headers=person.headers)
        trash = [str(item["id"]) for item in written.json()["items"]]
        for note_id in trash:
            await client.delete(f"/notes/{note_id}", headers=person.headers)
        token = await personal_token(client, person)
        return cls(person, note.headers["location"], trash, f"/auth/tokens/{token['id']}")

    def writes(self, word: str) -> list[tuple[str, str, dict[str, Any]]]:
        """Every write with a body that contains the word: method, path and body; the last closes the account."""
        note = {"json": NOTE | {"title": word}}
        several = {
            "items": [{"op": "create", **NOTE}, {"op": "patch", "id": int(self.note.split("/")[-1]), "title": word}]
        }
        return [
            ("POST", "/notes", note),
            ("POST", "/notes/batch", {"json": several}),
            ("PUT", self.note, note),
            ("PATCH", self.note, note),
            ("DELETE", self.note, {}),
            ("POST", f"/notes/{self.trash[0]}/restore", {}),
            ("DELETE", f"/notes/trash/{self.trash[1]}", {}),
            ("POST", "/users", {"json": {"name": word, "password": PASSWORD}}),
            ("PATCH", "/users/me", {"json": {"name": f"{word}-{self.person.id}"}}),
            ("POST", "/auth/tokens", {"json": {"name": word, "scopes": ["notes:read"]}}),
            ("DELETE", self.token, {}),
            ("DELETE", "/users/me", {}),
        ]

    async def write_all(self, client: httpx.AsyncClient, word: str, **headers: str) -> None:
        """Sends every write at once."""
        own = self.person.headers | headers
        await asyncio.gather(
            *(client.request(method, path, headers=own, **body) for method, path, body in self.writes(word))
        )


@dataclass
class World:
    """The servers, the document, two gateways under observation, and the scenarios that have run."""

    settings: GatewaySettings
    database: "Connection[Record]"
    witness: Witness
    client: httpx.AsyncClient
    without_postgres: httpx.AsyncClient
    """A gateway that cannot see outdated credentials, so the worker has to reject their writes."""
    tried: set[str] = field(default_factory=set)

    async def account(self) -> Account:
        return await Account.opened(self.client)

    def gateway(self, **changes: object) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        """A watched gateway with some settings changed."""
        return watched(self.witness, self.settings, **changes)

    async def ask_everything(
        self, headers: dict[str, str], client: httpx.AsyncClient | None = None, **request: Any
    ) -> None:
        """Call each operation once, on something that does not exist."""
        for method, path, _ in self.witness.operations:
            target = path.format(note_id=999, version=1, token_id=uuid4(), token="x")
            if path.endswith("/search") and "params" not in request:
                target += "?q=ink"
            await (client or self.client).request(method, target, headers=headers, **request)


@pytest.fixture(scope="module")
async def world(servers: Services, template: str) -> AsyncIterator[World]:
    async with (
        fresh_database(servers, template) as url,
        fresh_prefix(servers) as prefix,
        harness.worker(settings_of_worker(servers, url, prefix)),
    ):
        settings = settings_of_gateway(servers, url, prefix, **SIGNING_IN)
        witness = Witness(create_app(settings).openapi())
        async with (
            watched(witness, settings) as client,
            watched(witness, settings, **NO_POSTGRES) as without_postgres,
        ):
            database = await asyncpg.connect(url)
            yield World(settings, database, witness, client, without_postgres)
            await database.close()


@asynccontextmanager
async def watched(witness: Witness, settings: GatewaySettings, **changes: object) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway with some settings changed, each of whose responses is compared with the document."""
    async with harness.gateway(GatewaySettings.model_validate(settings.model_dump() | changes)) as client:
        client.event_hooks = {"response": [witness]}
        if changes != NO_BROKER:
            await eventually(lambda: has_broker(client))
        yield client


async def has_broker(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/health/ready")).json()["dependencies"]["broker"] == "up")


async def read_everything(world: World) -> None:
    """Every read of what exists, of what does not and of what cannot exist; with conditions if there is a tag."""
    account = await world.account()
    existing = {"note_id": account.note.split("/")[-1], "token_id": account.token.split("/")[-1], "version": "1"}
    missing = {"note_id": "999", "token_id": str(uuid4()), "version": "1"}
    deleted, unkept = existing | {"note_id": account.trash[0]}, existing | {"version": "99"}
    headers = account.person.headers
    for path in [path for method, path, _ in world.witness.operations if method == "GET"]:
        for named, query in product(
            (existing, missing, deleted, unkept, {}), ("", "?limit=1&total=true", "?q=ink", "?limit=0")
        ):
            target = re.sub(r"{(\w+)}", lambda name, named=named: named.get(name[1], "x"), path) + query  # type: ignore[misc]
            response = await world.client.get(target, headers=headers)
            for condition in ("no tag", response.headers["etag"]) if "etag" in response.headers else ():
                await world.client.get(target, headers=headers | {"If-None-Match": condition})


async def read_commands(world: World) -> None:
    person = (await world.account()).person
    for time in (datetime.now(UTC), datetime.now(UTC) - timedelta(days=30)):
        url = CommandUrls(world.settings).url(create(owner=person.id, time=time), confirmed=True)
        for query in ("", "?wait=0"):
            await world.client.get(url + query, headers=person.headers | {"Prefer": "wait=0"})


async def read_too_slowly(world: World) -> None:
    person = (await world.account()).person
    async with world.database.transaction(), world.gateway(search_timeout_seconds=0.1) as client:
        await world.database.execute("lock table notes in access exclusive mode")
        await client.get("/notes/search?q=ink", headers=person.headers)


async def read_too_much_at_once(world: World) -> None:
    account = await world.account()
    async with world.gateway() as client:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fair_limiter, "WAITING_LIMIT", 0)
            patch.setattr(fair_limiter.FairLimiter, "_may_acquire", lambda *_: False)
            lists = (
                "/notes",
                "/notes/search?q=ink",
                "/notes/trash",
                f"{account.note}/versions",
                "/auth/tokens",
                "/notes/export",
            )
            for path in lists:
                await client.get(path, headers=account.person.headers)
            await client.post("/notes/import", headers=account.person.headers | NDJSON)


async def follow_changes(world: World) -> None:
    """At a gateway that serves one stream."""
    persons = [(await world.account()).person for _ in range(2)]
    async with world.gateway(streams=1, streams_per_user=1) as client:
        stream = persons[0].headers | {"Accept": "text/event-stream"}
        for headers in ({"Prefer": "wait=0"}, {"Accept": "text/event-stream", "Last-Event-ID": "x"}):
            await client.get("/notes/changes", headers=persons[0].headers | headers)
        await client.get("/notes/changes?since=9.9.end.9.-", headers=persons[0].headers)
        async with client.stream("GET", "/notes/changes", headers=stream):
            for person in persons:
                await client.get("/notes/changes", headers=stream | person.headers)


async def sign_in_wrongly(world: World) -> None:
    name = (await world.account()).person.name
    for wrong in ({"grant_type": "implicit"}, {"scope": "everything"}, {"password": "wrong"}):
        await world.client.post("/auth/token", data={"username": name, "password": PASSWORD} | wrong)
    await world.client.post("/auth/token", headers=COMPRESSED)


async def sign_in_while_too_many_do(world: World) -> None:
    name = (await world.account()).person.name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "WAITING_LIMIT", 0)
        await world.client.post("/auth/token", data={"username": name, "password": PASSWORD})


async def sign_in_without_postgres(world: World) -> None:
    name = (await world.account()).person.name
    await world.without_postgres.post("/auth/token", data={"username": name, "password": PASSWORD})


async def ask_without_the_right(world: World) -> None:
    person = (await world.account()).person
    for changed in ({"scope": ""}, {"credentials_version": 7}, {"key": "x" * 32}):
        await world.ask_everything(bearer(forged(world.settings, person.id, **changed)))
    await world.ask_everything({})
    await world.ask_everything(bearer("inkwell_0123456789"), world.without_postgres)


async def ask_beyond_the_limits(world: World) -> None:
    person = (await world.account()).person
    await world.ask_everything({"Long": "a" * 40_000})
    await world.ask_everything({}, params={"long": "a" * 10_000})
    await world.ask_everything(person.headers, content=b"a" * 3_000_000)
    await world.ask_everything(person.headers, params={"colour": "blue"})


async def write_to_what_is_missing(world: World) -> None:
    account = await world.account()
    client, headers = world.without_postgres, account.person.headers
    for note in ("x", "999", "999"):
        await client.post(f"/notes/{note}/restore", headers=headers | KEY)
        await client.delete(f"/notes/trash/{note}", headers=headers | KEY)
    for path in ("/notes/x", "/notes/999", "/notes/999"):
        for method in ("PUT", "PATCH", "DELETE"):
            await client.request(method, path, headers=headers | KEY, json={} if method == "DELETE" else NOTE)
    await client.delete("/auth/tokens/x", headers=headers)
    own = {"op": "delete", "id": int(account.note.split("/")[-1]), "if_match": [99]}
    for number, item in enumerate(({"op": "delete", "id": 999}, own) * 2):
        key = {"Idempotency-Key": f"rejected {number % 2}"}
        await client.post("/notes/batch", json={"items": [item]}, headers=headers | key)


async def take_a_name_that_is_taken(world: World) -> None:
    headers, taken = (await world.account()).person.headers, (await world.account()).person.name
    for _ in range(2):
        await world.without_postgres.patch(
            "/users/me", json={"name": taken}, headers=headers | {"Idempotency-Key": "taken"}
        )


async def write_nonsense(world: World) -> None:
    account = await world.account()
    headers = account.person.headers
    for method, path in [(method, path) for method, path, body in account.writes("word") if body]:
        await world.client.request(method, path, headers=headers, content=b"{")
        await world.client.request(method, path, headers=headers | JSON, content=b"{")
        await world.client.request(method, path, headers=headers, json={"colour": "blue"})
        await world.client.request(method, path, headers=headers | COMPRESSED, content=b"")


async def write_in_many_ways(world: World) -> None:
    """Writes without a change come first, since some operations delete their target."""
    account = await world.account()
    unless_it_is_a_note = KEY | {"If-Match": '"99"', "Prefer": "wait=9"}
    minimal = {"Prefer": "return=minimal", "Idempotency-Key": "another"}
    representation = {"Prefer": "return=representation", "Idempotency-Key": "third"}
    ways = [
        ({"Idempotency-Key": ""}, ""),
        (unless_it_is_a_note, ""),
        (unless_it_is_a_note, ""),
        (KEY, "?&"),  # the only difference possible between two deletions of the same thing
        (minimal, ""),
        (minimal, ""),
        (representation, ""),
        (representation, ""),
        ({"Prefer": "respond-async"}, ""),
    ]
    for (method, path, body), (headers, query) in product(account.writes("word"), ways):
        await world.without_postgres.request(method, path + query, headers=account.person.headers | headers, **body)


async def restore_in_many_ways(world: World) -> None:
    account = await world.account()
    headers, note = account.person.headers, f"/notes/{account.trash[0]}"
    for preference in ("return=minimal", "return=representation", "wait=9"):
        for _ in range(2):
            asked = {"Prefer": preference, "Idempotency-Key": preference}
            await world.client.post(f"{note}/restore", headers=headers | asked)
        await world.client.delete(note, headers=headers)


async def write_with_a_deleted_account(world: World) -> None:
    account = await world.account()
    await world.client.delete("/users/me", headers=account.person.headers)
    for _ in range(2):
        await account.write_all(world.without_postgres, "late", **{"Idempotency-Key": "late"})


async def write_what_fails_and_is_discarded(world: World) -> None:
    """Another account writes after each failure, which shows the worker that the cause is in the command."""
    account, other = await world.account(), await world.account()
    headers = account.person.headers | {"Idempotency-Key": "poison"}
    try:
        for change in (POISON, DISCARD):
            await world.database.execute(change)
            for method, path, body in account.writes("poison"):
                for _ in range(2):
                    await world.without_postgres.request(method, path, headers=headers, **body)
                await world.without_postgres.post("/notes", json=NOTE, headers=other.person.headers)
    finally:
        await world.database.execute(CURE)


async def write_too_often(world: World) -> None:
    """At a gateway that allows one attempt, and no change without a precondition."""
    account = await world.account()
    headers = account.person.headers
    async with world.gateway(**STRICT) as client:
        for method, path, body in account.writes("strict")[:8] * 2:
            await client.request(method, path, headers=headers | {"Prefer": "respond-async"}, **body)
        for _ in range(2):
            wrong = {"password": PASSWORD, "current_password": "wrong"}
            await client.patch("/users/me", json=wrong, headers=headers)
            await client.post("/auth/token", data={"username": account.person.name, "password": "wrong"})


async def write_unconfirmed(world: World) -> None:
    """With a broker whose confirms are lost, while no worker can decide."""
    account = await world.account()
    url = URL(str(world.settings.broker_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 5672) as link, world.database.transaction():
        await world.database.execute("lock table commands in exclusive mode")
        broker_url = str(url.with_host("127.0.0.1").with_port(link.port))
        async with world.gateway(broker_url=broker_url, publish_timeout_seconds=0.3) as client:
            link.freeze("down")
            await account.write_all(client, "unheard", **KEY)


async def write_without_a_broker(world: World) -> None:
    """Until the backlog is full."""
    account = await world.account()
    async with world.gateway(**NO_BROKER) as client:
        await account.write_all(client, "lost")
        await asyncio.gather(*(account.write_all(client, "refused") for _ in range(8)))


async def write_slowly(world: World) -> None:
    """At a gateway that does not wait for bodies."""

    async def body() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.2)
        yield b"{"

    account = await world.account()
    writes = [(method, path, "application/json") for method, path, body in account.writes("slow") if body]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "BODY_TIMEOUT_SECONDS", 0.0)
        writes += [("POST", "/auth/token", "application/x-www-form-urlencoded")]
        writes += [("POST", "/notes/import", NDJSON["Content-Type"])]
        for method, path, media_type in writes:
            headers = account.person.headers | {"Content-Type": media_type}
            await world.client.request(method, path, content=body(), headers=headers)


async def import_notes(world: World) -> None:
    headers = (await world.account()).person.headers
    for other in (NDJSON, NDJSON | {"Idempotency-Key": ""}, NDJSON | COMPRESSED):
        await world.client.post("/notes/import", content=b"{}", headers=headers | other)


SCENARIOS: dict[str, Callable[[World], Awaitable[None]]] = {
    scenario.__name__.replace("_", " "): scenario
    for scenario in (
        read_everything,
        read_commands,
        read_too_slowly,
        read_too_much_at_once,
        follow_changes,
        sign_in_wrongly,
        sign_in_while_too_many_do,
        sign_in_without_postgres,
        ask_without_the_right,
        ask_beyond_the_limits,
        write_to_what_is_missing,
        take_a_name_that_is_taken,
        write_nonsense,
        write_in_many_ways,
        restore_in_many_ways,
        write_with_a_deleted_account,
        write_what_fails_and_is_discarded,
        write_too_often,
        write_unconfirmed,
        write_without_a_broker,
        write_slowly,
        import_notes,
    )
}


@pytest.mark.parametrize("name", SCENARIOS)
async def test_gateways_answer_nothing_that_the_document_does_not_declare(world: World, name: str) -> None:
    world.tried.add(name)

    await SCENARIOS[name](world)


async def test_document_declares_nothing_that_no_gateway_answers(world: World) -> None:
    for name in SCENARIOS.keys() - world.tried:
        await SCENARIOS[name](world)

    bugs = {each for each in world.witness.declared if each[2] == "internal_error"}
    ids = {each for each in world.witness.declared if each[2] == REQUEST_ID}  # on every response, as the witness checks
    assert world.witness.declared - world.witness.seen - bugs - ids == NOT_TRIED


def test_operations_have_names_that_people_would_give() -> None:
    document = Witness(create_app(harness.settings_without_servers(auth="password")).openapi())

    assert {operation for operation, _, _ in document.declared} == {
        *("listNotes", "searchNotes", "changeNotes", "getNote", "createNote", "replaceNote", "patchNote", "deleteNote"),
        "listChanges",
        *("listTrash", "getTrashedNote", "restoreNote", "purgeNote", "listVersions", "getVersion"),
        *("exportNotes", "importNotes"),
        *("registerUser", "getUser", "changeUser", "deleteUser"),
        *("issueToken", "createToken", "listTokens", "getToken", "revokeToken"),
        *("getCommand", "live", "ready"),
    }


def test_without_authentication_no_operation_requires_credentials() -> None:
    without_users = Witness(create_app(harness.settings_without_servers()).openapi())

    assert not {(name, status) for name, status, _ in without_users.declared if status in (401, 403)}
    assert not [path for _, path, operation in without_users.operations if "security" in operation]


@pytest.mark.parametrize("model", [Note, CommandState])
def test_examples_are_examples(model: type[BaseModel]) -> None:
    for example in model.model_json_schema()["examples"]:
        assert set(model.model_validate(example).model_dump()) == set(example)
