"""The `Idempotency-Key` header: repeated requests have one effect and one outcome."""

import asyncio
from typing import Any
from uuid import uuid4

import aio_pika
import httpx
import pytest
from aio_pika.abc import AbstractIncomingMessage
from asyncpg import Connection, Record

from dev.backend import Services
from gateway.settings import GatewaySettings
from shared.tables import IMPLICIT_OWNER
from shared.topology import Topology
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.harness import decided, lasting_headers
from worker.settings import WorkerSettings

OTHER = {"title": "Pen", "description": ""}
COMMANDS_OF_KEY_K = [
    ("note.create", "69bee017-d4fb-5996-bcce-3814db65dd6e", "e8f76b1dc4f7c870858651f7fee69309"),
    ("note.delete", "4ef0cf01-af81-5566-b46f-ae50100e1de9", "9a84a935239361287ce8817351307466"),
    ("note.patch", "faffe990-8e93-540e-b6a9-cf144a596fda", "695cedf52b42157bf3c61889609f27b2"),
    ("note.replace", "f2831027-5a90-5010-a641-e51da6c395a8", "d158470fda98727ed0f49b4e30053d7d"),
]
CHANGES: list[tuple[str, Any]] = [("PUT", NOTE), ("PATCH", {"title": "Pen"}), ("DELETE", None)]


def key(value: str | None = None, **others: str) -> dict[str, str]:
    """Headers with a key, new by default, and others."""
    return {"Idempotency-Key": value or f'"{uuid4()}"'} | others


async def created(client: httpx.AsyncClient) -> str:
    """The path of a new note."""
    return str((await client.post("/notes", json=NOTE)).headers["location"])


async def path_of(client: httpx.AsyncClient, method: str) -> str:
    """The path for a request with this method."""
    return "/notes" if method == "POST" else await created(client)


def assert_replay(replayed: httpx.Response, first: httpx.Response) -> None:
    """Checks that the response is the same and marked as a replay."""
    assert (replayed.status_code, replayed.content) == (first.status_code, first.content)
    assert replayed.headers.pop("idempotent-replayed") == "true"
    assert lasting_headers(replayed) == lasting_headers(first)


def assert_reused(response: httpx.Response) -> None:
    assert (response.status_code, response.json()["code"]) == (422, "idempotency_key_reused")
    assert "idempotent-replayed" not in response.headers


@pytest.mark.parametrize(("method", "body"), [("POST", NOTE), *CHANGES])
async def test_request_repeated_with_its_key_has_one_effect_and_the_same_response(
    shared_client: httpx.AsyncClient, method: str, body: Any
) -> None:
    path, headers = await path_of(shared_client, method), key()

    first = await shared_client.request(method, path, json=body, headers=headers)
    notes = (await shared_client.get("/notes?limit=1000")).text
    again = await shared_client.request(method, f"{path}/", json=body, headers=headers | {"Prefer": "wait=9"})

    assert first.is_success
    assert "idempotent-replayed" not in first.headers
    assert again.headers.pop("preference-applied") == "wait=9"
    assert_replay(again, first)
    assert (await shared_client.get("/notes?limit=1000")).text == notes


async def test_replay_is_as_short_as_its_own_request_prefers(shared_client: httpx.AsyncClient) -> None:
    headers = key()
    first = await shared_client.post("/notes", json=NOTE, headers=headers)

    again = await shared_client.post("/notes", json=NOTE, headers=headers | {"Prefer": "return=minimal"})

    assert (again.status_code, again.content, again.headers["location"]) == (201, b"", first.headers["location"])
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(
    ("stated", "again"),
    [("k", '"k"'), ('"say \\"k\\""', 'say "k"'), ('"a\\\\b"', "a\\b"), ("k" * 255, f'"{"k" * 255}"'), ('" "', '" "')],
    ids=lambda stated: stated[:10],
)
async def test_key_is_the_same_with_and_without_quotes(
    shared_client: httpx.AsyncClient, stated: str, again: str
) -> None:
    await shared_client.post("/notes", json=NOTE, headers=key(stated))

    assert "idempotent-replayed" in (await shared_client.post("/notes", json=NOTE, headers=key(again))).headers


@pytest.mark.parametrize(
    "keys",
    [
        [""],
        ['""'],
        ['"'],
        ['"k'],
        ['"k" "l"'],
        ['"k", "l"'],
        ['"k"; x=1'],
        ['"a\\b"'],
        ["k" * 256],
        [f'"{"k" * 256}"'],
        ["clé"],
        ['"\xa0"'],
        ["a\tb"],
        ["k", "k"],
        ["k", "l"],
    ],
    ids=lambda keys: keys[0][:10],
)
@pytest.mark.parametrize(("method", "body"), [("POST", NOTE), *CHANGES])
async def test_key_that_is_malformed_or_repeated_is_refused(
    shared_client: httpx.AsyncClient, method: str, body: Any, keys: list[str]
) -> None:
    headers = [(b"Idempotency-Key", each.encode("latin-1")) for each in keys]
    path = "/notes" if method == "POST" else "/notes/1"

    refused = await shared_client.request(method, path, json=body, headers=headers)

    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_header")
    assert refused.json()["errors"][0]["pointer"] == "/header/idempotency-key"


@pytest.mark.parametrize(
    ("changed_body", "condition"),
    [(OTHER, {}), (NOTE, {"If-Match": '"1"'}), (NOTE, {"If-None-Match": '"9"'})],
    ids=["body", "If-Match", "If-None-Match"],
)
async def test_key_reused_with_another_request_is_refused_and_has_no_effect(
    shared_client: httpx.AsyncClient, changed_body: dict[str, str], condition: dict[str, str]
) -> None:
    path, headers = await created(shared_client), key()
    first = await shared_client.put(path, json=NOTE, headers=headers)

    assert_reused(await shared_client.put(path, json=changed_body, headers=headers | condition))
    assert (await shared_client.get(path)).text == first.text
    assert_replay(await shared_client.put(path, json=NOTE, headers=headers), first)


async def test_one_key_names_another_command_for_each_method_and_note(shared_client: httpx.AsyncClient) -> None:
    headers, paths = key(), [await created(shared_client), await created(shared_client)]

    requests = [("POST", "/notes", NOTE), *((method, path, body) for path in paths for method, body in CHANGES)]
    responses = [await shared_client.request(how, path, json=body, headers=headers) for how, path, body in requests]

    assert [response.status_code for response in responses] == [201, 200, 200, 204, 200, 200, 204]
    assert not any("idempotent-replayed" in response.headers for response in responses)


async def test_key_and_request_name_the_same_command_in_every_version(
    client: httpx.AsyncClient, database: "Connection[Record]"
) -> None:
    """A retry may reach a newer gateway, so these values must never change."""
    await client.post("/notes", json=NOTE, headers=key("k"))
    await client.put("/notes/1", json=OTHER, headers=key("k") | {"If-Match": '"1"'})
    await client.patch("/notes/1", json={"title": "Pen"}, headers=key("k"))
    await client.delete("/notes/1", headers=key("k") | {"If-None-Match": "*"})

    rows = await database.fetch("select type, id::text, fingerprint from commands order by type")
    assert [tuple(row) for row in rows] == COMMANDS_OF_KEY_K


async def test_attempts_at_the_same_time_have_one_effect_and_one_response(shared_client: httpx.AsyncClient) -> None:
    path, headers = await created(shared_client), key()

    responses = await asyncio.gather(*(shared_client.put(path, json=OTHER, headers=headers) for _ in range(50)))

    assert {(response.status_code, response.text) for response in responses} == {
        (200, (await shared_client.get(path)).text)
    }
    assert responses[0].json()["version"] == 2
    assert sum("idempotent-replayed" not in response.headers for response in responses) == 1


async def test_url_shows_each_attempt_its_own_outcome(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    headers = key(Prefer="respond-async")
    async with harness.gateway(gateway_settings) as client:
        urls = [
            (await client.post("/notes", json=body, headers=headers)).headers["location"]
            for body in (NOTE, OTHER, NOTE)
        ]
        async with harness.worker(worker_settings):
            first, other, again = [await decided(client, url) for url in urls]

    assert [state["status"] for state in (first, other, again)] == ["applied", "rejected", "applied"]
    assert (other["answer"]["status"], other["answer"]["body"]["code"]) == (422, "idempotency_key_reused")
    assert again["answer"]["headers"].pop("Idempotent-Replayed") == "true"
    assert again["answer"] == first["answer"]


async def test_each_attempt_gets_its_own_outcome_despite_a_lost_reply(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*_: object) -> None:
        """Replies are hints: this one gets lost."""

    monkeypatch.setattr("worker.reply_sender.ReplySender.reply", lose)
    impatient, headers = gateway_settings.model_copy(update={"wait_seconds": 0.5}), key()
    async with harness.worker(worker_settings), harness.gateway(impatient) as client:
        first = await client.post("/notes", json=NOTE, headers=headers)

        assert first.status_code == 201
        assert_replay(await client.post("/notes", json=NOTE, headers=headers), first)
        assert_reused(await client.post("/notes", json=OTHER, headers=headers))


async def test_rejection_stays_the_outcome_of_its_key(shared_client: httpx.AsyncClient) -> None:
    path, headers = await created(shared_client), key()
    successor = f"/notes/{int(path.rpartition('/')[2]) + 1}"
    absent = await shared_client.put(successor, json=NOTE, headers=headers)
    outdated = await shared_client.put(path, json=NOTE, headers=headers | {"If-Match": '"2"'})

    assert await created(shared_client) == successor
    await shared_client.put(path, json=NOTE)

    assert (absent.status_code, outdated.status_code, outdated.headers["etag"]) == (404, 412, '"1"')
    assert_replay(await shared_client.put(successor, json=NOTE, headers=headers), absent)
    assert_replay(await shared_client.put(path, json=NOTE, headers=headers | {"If-Match": '"2"'}), outdated)


async def test_failure_stays_the_outcome_of_its_key(client: httpx.AsyncClient, database: "Connection[Record]") -> None:
    await database.execute("alter table notes add constraint poison check (title <> 'poison')")
    headers = key()
    failed, again = [await client.post("/notes", json=NOTE | {"title": "poison"}, headers=headers) for _ in range(2)]

    assert [(each.status_code, each.json()["code"]) for each in (failed, again)] == [(500, "command_failed")] * 2
    assert again.headers["idempotent-replayed"] == "true"
    assert (await client.get(again.json()["command"])).json()["status"] == "failed"


async def test_key_of_a_write_that_was_not_accepted_is_free(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    headers = key()
    away = {"broker_url": "amqp://nobody:nothing@127.0.0.1:1/", "publish_timeout_seconds": 0.2}
    without_broker = GatewaySettings.model_validate(gateway_settings.model_dump() | away)
    async with harness.gateway(without_broker) as client:
        refused = await client.post("/notes", json=OTHER, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (503, "not_accepted")

    async with harness.worker(worker_settings), harness.gateway(gateway_settings) as client:
        written = await client.post("/notes", json=NOTE, headers=headers)
    assert written.status_code == 201
    assert "idempotent-replayed" not in written.headers


async def test_redelivery_is_no_replay(
    servers: Services, gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.gateway(gateway_settings) as client:
        patient = key(Prefer="wait=20")
        writing = asyncio.create_task(client.post("/notes", json=NOTE, headers=patient))
        await double(servers, Topology.of(gateway_settings))
        async with harness.worker(worker_settings):
            written = await writing
            again = await client.post("/notes", json=NOTE, headers=patient)
            notes = (await client.get("/notes")).json()

    assert written.status_code == 201
    assert "idempotent-replayed" not in written.headers
    assert "idempotent-replayed" in again.headers
    assert notes == [written.json()]


async def double(servers: Services, topology: Topology) -> None:
    """Waits for the next message and requeues it twice."""
    messages: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    async with await aio_pika.connect(servers.broker_url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(topology.command_queue(topology.partition_of(IMPLICIT_OWNER)))
        tag = await queue.consume(messages.put)
        message = await messages.get()
        await queue.cancel(tag)
        for _ in range(2):
            copy = aio_pika.Message(message.body, reply_to=message.reply_to, delivery_mode=message.delivery_mode)
            await channel.default_exchange.publish(copy, queue.name)
        await message.ack()
