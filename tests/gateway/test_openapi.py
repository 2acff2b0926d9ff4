"""The OpenAPI document against what running gateways answer: nothing undeclared, and nothing declared in vain."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from asyncpg import Connection, Record
from pydantic import BaseModel
from yarl import URL

from gateway import middleware
from gateway.app import create_app
from gateway.command_urls import CommandUrls
from gateway.openapi import HEADERS
from gateway.schemas import CommandState, Note
from gateway.settings import GatewaySettings
from tests import harness
from tests.commands import create
from tests.harness import eventually
from tests.proxy import proxy_to
from worker.settings import WorkerSettings

PROBLEM_JSON = "application/problem+json"
NOTE = {"title": "Ink", "description": "Buy a bottle"}
KEY = {"Idempotency-Key": "8e03978e"}
WRITES = [("POST", "/notes"), ("PUT", "/notes/1"), ("PATCH", "/notes/1"), ("DELETE", "/notes/1")]
OUTDATE = "update users set credentials_version = 2"
POISON = """
    update users set credentials_version = 1;
    alter table notes add constraint poison check (title <> 'poison') not valid;
    create table keepers (note_id bigint references notes);
    insert into keepers select id from notes;
"""
DISCARD = """
    update commands set status = 'rejected', reason = 'discarded', http_status = 410, note_version = null
    where status = 'failed'
"""
NOWHERE = {
    "database_url": "postgresql://nobody:nothing@127.0.0.1:1/nowhere",
    "broker_url": "amqp://nobody:nothing@127.0.0.1:1/",
    "publish_timeout_seconds": 0.2,
    "backlog_limit_bytes": 4096,
}
NOT_TRIED = {("ready", 503, None)}
Answer = tuple[str, int, str | None]
"""An operation, a status, and a header, a problem's code, or None."""


@dataclass
class Witness:
    """Compares each response with the document, and remembers what it has seen."""

    document: dict[str, Any]
    seen: set[Answer] = field(default_factory=set)

    async def __call__(self, response: httpx.Response) -> None:
        await response.aread()
        operation = self.operation(response.request)
        media_type = response.headers.get("content-type")
        told = {response.json()["code"]} if media_type == PROBLEM_JSON else {None}
        told |= {name for name in HEADERS if name in response.headers}
        declared = operation["responses"][str(response.status_code)]
        assert told <= set(members(declared)), response.request
        assert media_type is None or media_type in declared["content"]
        self.seen |= {(operation["operationId"], response.status_code, each) for each in told}

    def operation(self, request: httpx.Request) -> dict[str, Any]:
        for template, operations in self.document["paths"].items():
            if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), request.url.path):
                operation: dict[str, Any] = operations[request.method.lower()]
                return operation
        raise AssertionError(request.url.path)

    @property
    def declared(self) -> set[Answer]:
        """Everything that the document says can be answered."""
        return {
            (operation["operationId"], int(status), each)
            for operations in self.document["paths"].values()
            for operation in operations.values()
            for status, response in operation["responses"].items()
            for each in members(response)
        }


def members(response: dict[str, Any]) -> list[str | None]:
    """The headers of a declared response, and the codes of a problem."""
    schema = response.get("content", {}).get(PROBLEM_JSON, {}).get("schema")
    return [*response.get("headers", ()), *(schema["properties"]["code"]["enum"] if schema else [None])]


@pytest.fixture
def witness(gateway_settings: GatewaySettings) -> Witness:
    return Witness(create_app(gateway_settings).openapi())


@asynccontextmanager
async def watched(witness: Witness, settings: GatewaySettings, **changes: object) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway with some settings changed, each of whose answers is witnessed."""
    async with harness.gateway(GatewaySettings.model_validate(settings.model_dump() | changes)) as client:
        client.event_hooks = {"response": [witness]}
        if changes != NOWHERE:
            await eventually(lambda: has_broker(client))
        yield client


async def has_broker(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/health/ready")).json()["dependencies"]["broker"] == "up")


async def test_document_declares_exactly_what_gateways_answer(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, database: "Connection[Record]", witness: Witness
) -> None:
    async with harness.worker(worker_settings), watched(witness, gateway_settings) as client:
        await read(client, gateway_settings)
        for path, operations in witness.document["paths"].items():
            for method in operations:
                await client.request(method, path, headers={"Long": "a" * 40_000})
                await client.request(method, path, params={"long": "a" * 10_000})
        for method, _ in WRITES:
            await write(client, method)
        await fail(client, database)
    async with watched(witness, gateway_settings, require_preconditions=True) as client:
        await write_all(client)
    await write_without_an_answer(witness, gateway_settings)
    await write_slowly(witness, gateway_settings)
    await ask_a_gateway_without_servers(witness, gateway_settings)

    bugs = {each for each in witness.declared if each[2] == "internal_error"}
    assert witness.declared - witness.seen - bugs == NOT_TRIED


async def read(client: httpx.AsyncClient, settings: GatewaySettings) -> None:
    await client.post("/notes", json=NOTE)
    for path in ("/notes", "/notes/1"):
        tag = (await client.get(path)).headers["etag"]
        for condition in (tag, "no tag"):
            await client.get(path, headers={"If-None-Match": condition})
    for path in ("/notes?limit=0", "/notes/x", "/notes/999", "/commands/x", "/health/live"):
        await client.get(path)
    for command in (create(), create(time=datetime.now(UTC) - timedelta(days=30))):
        await client.get(CommandUrls(settings).url(command, confirmed=True), headers={"Prefer": "wait=0"})


async def write(client: httpx.AsyncClient, method: str) -> None:
    """One operation in many ways; what changes nothing comes first, since one of the operations deletes."""
    created = (await client.post("/notes", json=NOTE)).headers["location"]
    path = "/notes" if method == "POST" else created
    body = body_of(method)
    minimal = {"Prefer": "return=minimal"}
    for request in (
        body | {"headers": {"Idempotency-Key": ""}},
        {"content": b"a" * 100_000},
        body | {"headers": {"If-Match": '"99"'} | KEY},
        body | {"headers": {"If-Match": '"99"'} | KEY},
        body | {"headers": KEY, "params": {"other": "request"}},
        body | {"headers": minimal | {"Idempotency-Key": "another"}},
        body | {"headers": minimal | {"Idempotency-Key": "another"}},
        body | {"headers": {"Prefer": "return=representation", "Idempotency-Key": "third"}},
        body | {"headers": {"Prefer": "return=representation", "Idempotency-Key": "third"}},
        body | {"headers": {"Prefer": "respond-async"}},
        {"content": b"{"},
        {"content": b"{", "headers": {"content-type": "application/json"}},
        {"json": {"colour": "blue"}},
    ):
        await client.request(method, path, **request)
    for other in ("/notes/x", "/notes/999", "/notes/999"):
        await client.request(method, "/notes" if method == "POST" else other, headers=KEY, **body)


async def fail(client: httpx.AsyncClient, database: "Connection[Record]") -> None:
    """Commands that are refused for the owner's credentials, and commands that fail and are discarded."""
    path = (await client.post("/notes", json=NOTE)).headers["location"]
    for key, change in (("outdated", OUTDATE), ("poison", POISON), ("poison", DISCARD)):
        await database.execute(change)
        for method, _ in WRITES * 2:
            target, body = "/notes" if method == "POST" else path, body_of(method, title="poison")
            await client.request(method, target, headers={"Idempotency-Key": key}, **body)
            await client.post("/notes", json=NOTE)  # two failures of one kind in a row would pause the worker


async def write_all(client: httpx.AsyncClient, **headers: str) -> None:
    for method, path in WRITES:
        await client.request(method, path, headers=headers, **body_of(method))


def body_of(method: str, **members: str) -> dict[str, Any]:
    return {} if method == "DELETE" else {"json": NOTE | members}


async def write_without_an_answer(witness: Witness, settings: GatewaySettings) -> None:
    """To a broker whose confirms do not arrive."""
    url = URL(str(settings.broker_url.get_secret_value()))
    async with proxy_to(str(url.host), url.port or 5672) as link:
        changes = {"broker_url": str(url.with_host("127.0.0.1").with_port(link.port)), "publish_timeout_seconds": 0.3}
        async with watched(witness, settings, **changes) as client:
            link.freeze("down")
            await write_all(client, **KEY)


async def write_slowly(witness: Witness, settings: GatewaySettings) -> None:
    """To a gateway that does not wait for bodies."""

    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(0.2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(middleware, "BODY_TIMEOUT_SECONDS", 0.0)
        async with watched(witness, settings) as client:
            for method, path in WRITES[:3]:
                await client.request(method, path, content=body(), headers={"Content-Type": "application/json"})


async def ask_a_gateway_without_servers(witness: Witness, settings: GatewaySettings) -> None:
    async with watched(witness, settings, **NOWHERE) as client:
        for path in ("/notes", "/notes/1", CommandUrls(settings).url(create(), confirmed=True), "/health/ready"):
            await client.get(path)
        await asyncio.gather(*(write_all(client) for _ in range(20)))


def test_operations_have_names_that_people_would_give(witness: Witness) -> None:
    assert {operation for operation, _, _ in witness.declared} == {
        *("listNotes", "getNote", "createNote", "replaceNote", "patchNote", "deleteNote"),
        *("getCommand", "live", "ready"),
    }


@pytest.mark.parametrize("model", [Note, CommandState])
def test_examples_are_examples(model: type[BaseModel]) -> None:
    for example in model.model_json_schema()["examples"]:
        assert set(model.model_validate(example).model_dump()) == set(example)
