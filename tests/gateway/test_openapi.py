"""The OpenAPI document against what running gateways answer: nothing undeclared, and nothing declared in vain."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, Self
from uuid import uuid4

import httpx
import pytest
from asyncpg import Connection, Record
from pydantic import BaseModel
from yarl import URL

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
from tests.support.proxy import proxy_to
from tests.support.witness import Witness
from worker.settings import WorkerSettings

KEY = {"Idempotency-Key": "8e03978e"}
JSON = {"Content-Type": "application/json"}
COMPRESSED = {"Content-Encoding": "gzip"}
POISON = """
    alter table notes add constraint poison check (title <> 'poison') not valid;
    alter table personal_tokens add constraint poison check (name <> 'poison') not valid;
    alter table users add constraint poison check (deleted_date is null and name not like 'poison%') not valid;
    create table keepers (note_id bigint references notes, token_id uuid references personal_tokens);
    insert into keepers (note_id) select id from notes;
    insert into keepers (token_id) select id from personal_tokens;
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
SLOW_SEARCHES = """
create or replace function inkwell_search_language() returns regconfig immutable language sql
as 'select case when pg_sleep(9)::text = '''' then ''english''::regconfig end'
"""
NOT_TRIED = {("ready", 503, None)}


@dataclass(frozen=True)
class Account:
    """A user with a note and a personal token, and what it takes to write each of them."""

    person: Person
    note: str
    token: str

    @classmethod
    async def opened(cls, client: httpx.AsyncClient) -> Self:
        """Somebody new."""
        person = await sign_up(client)
        note = await client.post("/notes", json=NOTE, headers=person.headers)
        token = await personal_token(client, person)
        return cls(person, note.headers["location"], f"/auth/tokens/{token['id']}")

    def writes(self, word: str) -> list[tuple[str, str, dict[str, Any]]]:
        """Every write, the last of which closes the account: its method, its path, and a body with the word."""
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
            ("POST", "/users", {"json": {"name": word, "password": PASSWORD}}),
            ("PATCH", "/users/me", {"json": {"name": f"{word}-{self.person.id}"}}),
            ("POST", "/auth/tokens", {"json": {"name": word, "scopes": ["notes:read"]}}),
            ("DELETE", self.token, {}),
            ("DELETE", "/users/me", {}),
        ]

    async def write_all(self, client: httpx.AsyncClient, word: str, **headers: str) -> None:
        """Everything at once."""
        own = self.person.headers | headers
        await asyncio.gather(
            *(client.request(method, path, headers=own, **body) for method, path, body in self.writes(word))
        )


@pytest.fixture
def witness(password_settings: GatewaySettings) -> Witness:
    return Witness(create_app(password_settings).openapi())


@asynccontextmanager
async def watched(witness: Witness, settings: GatewaySettings, **changes: object) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway with some settings changed, each of whose answers is witnessed."""
    async with harness.gateway(GatewaySettings.model_validate(settings.model_dump() | changes)) as client:
        client.event_hooks = {"response": [witness]}
        if changes != NO_BROKER:
            await eventually(lambda: has_broker(client))
        yield client


async def has_broker(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/health/ready")).json()["dependencies"]["broker"] == "up")


async def test_document_declares_exactly_what_gateways_answer(
    password_settings: GatewaySettings,
    worker_settings: WorkerSettings,
    database: "Connection[Record]",
    witness: Witness,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = password_settings
    async with (
        harness.worker(worker_settings),
        watched(witness, settings) as client,
        watched(witness, settings, **NO_POSTGRES) as unsighted,
    ):
        ada, bob = await Account.opened(client), await Account.opened(client)
        await read(client, witness, settings, ada)
        await sign_in(client, ada.person)
        await ask_without_a_right(client, witness, settings, ada.person)
        await ask_everything(unsighted, witness, bearer("inkwell_0123456789"))
        await write(unsighted, ada, bob.person.name)
        await fail(unsighted, database, bob)
    async with watched(witness, settings, **STRICT) as client:
        await write_too_often(client, bob)
    async with watched(witness, settings, search_timeout_seconds=0.1) as client:
        await read_too_much(client, database, bob.person, monkeypatch)
    await write_without_an_answer(witness, settings, bob)
    await write_slowly(witness, settings, bob)
    async with watched(witness, settings, **NO_BROKER) as client:
        await bob.write_all(client, "lost")
        await asyncio.gather(*(bob.write_all(client, "refused") for _ in range(8)))
        monkeypatch.setattr(passwords, "WAITING_LIMIT", 0)
        await client.post("/auth/token", data={"username": bob.person.name, "password": PASSWORD})
    async with watched(witness, settings, **NO_POSTGRES) as client:
        await client.post("/auth/token", data={"username": bob.person.name, "password": PASSWORD})

    bugs = {each for each in witness.declared if each[2] == "internal_error"}
    ids = {each for each in witness.declared if each[2] == REQUEST_ID}  # the witness has them on every answer
    assert witness.declared - witness.seen - bugs - ids == NOT_TRIED


async def read(client: httpx.AsyncClient, witness: Witness, settings: GatewaySettings, account: Account) -> None:
    """Every read of what there is, of what there is not, and of what cannot be; with conditions, if it has a tag."""
    headers = account.person.headers
    there = {"note_id": account.note.split("/")[-1], "token_id": account.token.split("/")[-1]}
    missing = {"note_id": "999", "token_id": str(uuid4())}
    for path in [path for method, path, _ in witness.operations if method == "GET"]:
        for named, query in product((there, missing, {}), ("", "?limit=1&total=true", "?q=ink", "?limit=0")):
            target = re.sub(r"{(\w+)}", lambda name, named=named: named.get(name[1], "x"), path) + query  # type: ignore[misc]
            answer = await client.get(target, headers=headers)
            for condition in ("no tag", answer.headers["etag"]) if "etag" in answer.headers else ():
                await client.get(target, headers=headers | {"If-None-Match": condition})
    for time in (datetime.now(UTC), datetime.now(UTC) - timedelta(days=30)):
        command = create(owner=account.person.id, time=time)
        url = CommandUrls(settings).url(command, confirmed=True)
        for query in ("", "?wait=0"):
            await client.get(url + query, headers=headers | {"Prefer": "wait=0"})


async def read_too_much(
    client: httpx.AsyncClient, database: "Connection[Record]", person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that takes too long, and reads of somebody who has too many under way."""
    await database.execute(SLOW_SEARCHES)
    await client.get("/notes/search?q=ink", headers=person.headers)
    with monkeypatch.context() as patch:
        patch.setattr(fair_limiter, "WAITING_LIMIT", 0)
        patch.setattr(fair_limiter.FairLimiter, "_may_acquire", lambda *_: False)
        for path in ("/notes", "/notes/search?q=ink", "/auth/tokens"):
            await client.get(path, headers=person.headers)


async def sign_in(client: httpx.AsyncClient, person: Person) -> None:
    """In ways that are refused."""
    for wrong in ({"grant_type": "implicit"}, {"scope": "everything"}, {"password": "wrong"}):
        await client.post("/auth/token", data={"username": person.name, "password": PASSWORD} | wrong)
    await client.post("/auth/token", headers=COMPRESSED)


async def ask_everything(client: httpx.AsyncClient, witness: Witness, headers: dict[str, str], **request: Any) -> None:
    """Each operation once, of something that does not exist."""
    for method, path, _ in witness.operations:
        target = path.format(note_id=999, token_id=uuid4(), token="x")
        if path.endswith("/search") and "params" not in request:
            target += "?q=ink"
        await client.request(method, target, headers=headers, **request)


async def ask_without_a_right(
    client: httpx.AsyncClient, witness: Witness, settings: GatewaySettings, person: Person
) -> None:
    """With credentials of every kind that is refused, and with more than there is room for."""
    for changed in ({"scope": ""}, {"credentials_version": 7}, {"key": "x" * 32}):
        await ask_everything(client, witness, bearer(forged(settings, person.id, **changed)))
    await ask_everything(client, witness, {})
    await ask_everything(client, witness, {"Long": "a" * 40_000})
    await ask_everything(client, witness, {}, params={"long": "a" * 10_000})
    await ask_everything(client, witness, person.headers, content=b"a" * 3_000_000)
    await ask_everything(client, witness, person.headers, params={"colour": "blue"})


async def write(client: httpx.AsyncClient, account: Account, taken: str) -> None:
    """Each write in many ways, to a gateway that cannot see whose credentials are outdated: the worker tells."""
    headers = account.person.headers
    for path in ("/notes/x", "/notes/999", "/notes/999"):
        for method in ("PUT", "PATCH", "DELETE"):
            await client.request(method, path, headers=headers | KEY, json={} if method == "DELETE" else NOTE)
    await client.delete("/auth/tokens/x", headers=headers)
    own = {"op": "delete", "id": int(account.note.split("/")[-1]), "if_match": [99]}
    for number, item in enumerate(({"op": "delete", "id": 999}, own) * 2):
        key = {"Idempotency-Key": f"in vain {number % 2}"}
        await client.post("/notes/batch", json={"items": [item]}, headers=headers | key)
    for _ in range(2):
        await client.patch("/users/me", json={"name": taken}, headers=headers | {"Idempotency-Key": "taken"})
    for method, path, body in account.writes("word"):
        if body:
            await write_nonsense(client, method, path, headers)
        await write_in_many_ways(client, method, path, body, headers)
    for _ in range(2):
        await account.write_all(client, "late", **{"Idempotency-Key": "late"})


async def write_nonsense(client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]) -> None:
    await client.request(method, path, headers=headers, content=b"{")
    await client.request(method, path, headers=headers | JSON, content=b"{")
    await client.request(method, path, headers=headers, json={"colour": "blue"})
    await client.request(method, path, headers=headers | COMPRESSED, content=b"")


async def write_in_many_ways(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    """What changes nothing comes first, since some of the operations delete what they are about."""
    unless_it_is_a_note = KEY | {"If-Match": '"99"', "Prefer": "wait=9"}
    minimal = {"Prefer": "return=minimal", "Idempotency-Key": "another"}
    representation = {"Prefer": "return=representation", "Idempotency-Key": "third"}
    for own_headers, query in (
        ({"Idempotency-Key": ""}, ""),
        (unless_it_is_a_note, ""),
        (unless_it_is_a_note, ""),
        (KEY, "?&"),  # the one difference that there can be between two deletions of the same
        (minimal, ""),
        (minimal, ""),
        (representation, ""),
        (representation, ""),
        ({"Prefer": "respond-async"}, ""),
    ):
        await client.request(method, path + query, headers=headers | own_headers, **body)


async def fail(client: httpx.AsyncClient, database: "Connection[Record]", account: Account) -> None:
    """Commands that fail and are discarded; each is repeated, since two failures in a row would pause the worker."""
    for change in (POISON, DISCARD):
        await database.execute(change)
        for method, path, body in account.writes("poison"):
            for _ in range(2):
                headers = account.person.headers | {"Idempotency-Key": "poison"}
                await client.request(method, path, headers=headers, **body)


async def write_too_often(client: httpx.AsyncClient, account: Account) -> None:
    """To a gateway that allows one try, and no change without a precondition."""
    for method, path, body in account.writes("strict")[:6] * 2:
        await client.request(method, path, headers=account.person.headers | {"Prefer": "respond-async"}, **body)
    for _ in range(2):
        wrong = {"password": PASSWORD, "current_password": "wrong"}
        await client.patch("/users/me", json=wrong, headers=account.person.headers)
        await client.post("/auth/token", data={"username": account.person.name, "password": "wrong"})


async def write_without_an_answer(witness: Witness, settings: GatewaySettings, account: Account) -> None:
    """To a broker whose confirms do not arrive."""
    url = URL(str(settings.broker_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 5672) as link:
        changes = {"broker_url": str(url.with_host("127.0.0.1").with_port(link.port)), "publish_timeout_seconds": 0.3}
        async with watched(witness, settings, **changes) as client:
            link.freeze("down")
            await account.write_all(client, "unheard", **KEY)


async def write_slowly(witness: Witness, settings: GatewaySettings, account: Account) -> None:
    """To a gateway that does not wait for bodies."""

    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(0.2)

    writes = [(method, path, "application/json") for method, path, body in account.writes("slow") if body]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "BODY_TIMEOUT_SECONDS", 0.0)
        async with watched(witness, settings) as client:
            for method, path, media_type in (*writes, ("POST", "/auth/token", "application/x-www-form-urlencoded")):
                headers = account.person.headers | {"Content-Type": media_type}
                await client.request(method, path, content=body(), headers=headers)


def test_operations_have_names_that_people_would_give(witness: Witness) -> None:
    assert {operation for operation, _, _ in witness.declared} == {
        *("listNotes", "searchNotes", "changeNotes", "getNote", "createNote", "replaceNote", "patchNote", "deleteNote"),
        *("registerUser", "getUser", "changeUser", "deleteUser"),
        *("issueToken", "createToken", "listTokens", "getToken", "revokeToken"),
        *("getCommand", "live", "ready"),
    }


def test_where_nobody_signs_in_no_operation_asks_who_calls(gateway_settings: GatewaySettings) -> None:
    without_users = Witness(create_app(gateway_settings).openapi())

    assert not {(name, status) for name, status, _ in without_users.declared if status in (401, 403)}
    assert not [path for _, path, operation in without_users.operations if "security" in operation]


@pytest.mark.parametrize("model", [Note, CommandState])
def test_examples_are_examples(model: type[BaseModel]) -> None:
    for example in model.model_json_schema()["examples"]:
        assert set(model.model_validate(example).model_dump()) == set(example)
