"""The `Prefer` header: how a write is answered, and how long a poll of a command's URL waits."""

import asyncio
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.harness import decided
from worker.settings import WorkerSettings

NEW = NOTE | {"title": "Pencil"}
CHANGES = [("PUT", NEW), ("PATCH", {"title": "Pen"}), ("DELETE", None)]


async def created(client: httpx.AsyncClient) -> str:
    """The path of a new note."""
    return str((await client.post("/notes", json=NOTE)).headers["location"])


def prefer(*preferences: str) -> list[tuple[str, str]]:
    """A header line for each value."""
    return [("Prefer", preference) for preference in preferences]


async def accepted(client: httpx.AsyncClient) -> str:
    """The URL of a new command."""
    return str((await client.post("/notes", json=NOTE, headers=prefer("respond-async"))).headers["location"])


@pytest.mark.parametrize(("method", "body"), [("POST", NOTE), *CHANGES])
async def test_client_that_will_not_wait_gets_a_url_with_the_outcome(
    shared_client: httpx.AsyncClient, method: str, body: dict[str, str] | None
) -> None:
    path = "/notes" if method == "POST" else await created(shared_client)

    response = await shared_client.request(method, path, json=body, headers=prefer("respond-async"))

    assert (response.status_code, response.json()["status"]) == (202, "pending")
    assert response.headers["preference-applied"] == "respond-async"
    assert response.headers["retry-after"] == "1"
    assert (await decided(shared_client, response.headers["location"]))["status"] == "applied"


@pytest.mark.parametrize(
    "preferences",
    [
        ["RESPOND-ASYNC"],
        ["lenient, respond-async"],
        ["lenient", "respond-async"],
        ['respond-async; x="y"'],
        ['x="a, b", respond-async'],
        [",, respond-async ,"],
        ['respond-async=""'],
    ],
)
async def test_preference_is_understood_in_every_spelling(
    shared_client: httpx.AsyncClient, preferences: list[str]
) -> None:
    assert (await shared_client.post("/notes", json=NOTE, headers=prefer(*preferences))).status_code == 202


@pytest.mark.parametrize(
    "preference",
    [
        "",
        "nonsense",
        "wait",
        "wait=",
        "wait=-1",
        "wait=1.5",
        "wait=soon",
        "wait=²",
        f"wait={'9' * 5000}",
        "return",
        "return=maximal",
        "return=MINIMAL",
        "respond-async=false",
        "x; respond-async",
        'x="a, respond-async, b"',
        'x="a\\", respond-async',
        '=;,=,;;"",return="min',
    ],
    ids=lambda preference: preference[:20],
)
async def test_preference_that_makes_no_sense_is_ignored(shared_client: httpx.AsyncClient, preference: str) -> None:
    response = await shared_client.post("/notes", json=NOTE, headers=[(b"Prefer", preference.encode("latin-1"))])

    assert (response.status_code, response.json()["title"]) == (201, "Ink")
    assert "preference-applied" not in response.headers


async def test_of_a_preference_that_comes_twice_the_first_counts(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.post(
        "/notes", json=NOTE, headers=prefer("return=representation, wait=9", "return=minimal")
    )

    assert response.json()["title"] == "Ink"
    assert response.headers["preference-applied"] == "wait=9, return=representation"


@pytest.mark.parametrize(("stated", "applied"), [("7", "7"), ('"7"', "7"), ("31", "30"), ("9" * 12, "30")])
async def test_wait_ends_with_the_outcome_and_is_30_seconds_at_most(
    shared_client: httpx.AsyncClient, stated: str, applied: str
) -> None:
    response = await shared_client.post("/notes", json=NOTE, headers=prefer(f"wait={stated}"))

    assert (response.status_code, response.headers["preference-applied"]) == (201, f"wait={applied}")


@pytest.mark.parametrize(
    ("preference", "seconds", "applied"),
    [
        ("wait=0", 0, "wait=0"),
        ("wait=1", 1, "wait=1"),
        ("respond-async, wait=1", 1, "respond-async, wait=1"),
        ("respond-async", 0, "respond-async"),
    ],
)
async def test_write_without_an_outcome_is_accepted_after_the_wait(
    gateway_settings: GatewaySettings, preference: str, seconds: float, applied: str
) -> None:
    async with harness.gateway(gateway_settings) as client:
        await accepted(client)  # the gateway has connected by now
        response = await client.post("/notes", json=NOTE, headers=prefer(preference))

    assert (response.status_code, response.headers["preference-applied"]) == (202, applied)
    assert seconds <= response.elapsed.total_seconds() < seconds + 0.8


async def test_outcome_within_the_wait_outranks_respond_async(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.post("/notes", json=NOTE, headers=prefer("respond-async, wait=10"))

    assert (response.status_code, response.headers["preference-applied"]) == (201, "wait=10")


async def test_minimal_response_to_a_creation_has_its_headers_and_no_body(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.post("/notes", json=NOTE, headers=prefer("return=minimal"))

    assert (response.status_code, response.content, response.headers["etag"]) == (201, b"", '"1"')
    assert "content-type" not in response.headers
    assert response.headers["preference-applied"] == "return=minimal"
    assert (await shared_client.get(response.headers["location"])).json()["title"] == "Ink"


@pytest.mark.parametrize(("method", "body"), CHANGES)
async def test_minimal_response_to_a_change_is_204(
    shared_client: httpx.AsyncClient, method: str, body: dict[str, str] | None
) -> None:
    response = await shared_client.request(
        method, await created(shared_client), json=body, headers=prefer("return=minimal")
    )

    assert (response.status_code, response.content) == (204, b"")
    assert response.headers.get("etag") == (None if method == "DELETE" else '"2"')
    assert response.headers["preference-applied"] == "return=minimal"


@pytest.mark.parametrize(("method", "body"), CHANGES)
async def test_representation_is_returned_where_there_is_one(
    shared_client: httpx.AsyncClient, method: str, body: dict[str, str] | None
) -> None:
    response = await shared_client.request(
        method, await created(shared_client), json=body, headers=prefer("return=representation")
    )

    deleted = method == "DELETE"
    assert (response.status_code, bool(response.content)) == ((204, False) if deleted else (200, True))
    assert response.headers.get("preference-applied") == (None if deleted else "return=representation")


async def test_problem_is_complete_and_applies_no_preference(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.put("/notes/999999", json=NOTE, headers=prefer("return=minimal, wait=5"))

    assert (response.status_code, response.json()["code"]) == (404, "note_not_found")
    assert "preference-applied" not in response.headers


async def test_poll_that_waits_is_answered_when_the_outcome_comes(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.gateway(gateway_settings) as client:
        url = await accepted(client)
        poll = asyncio.create_task(client.get(url, headers=prefer("wait=20")))
        async with harness.worker(worker_settings):
            response = await poll

    assert response.headers["preference-applied"] == "wait=20"
    assert (response.json()["status"], response.json()["answer"]["status"]) == ("applied", 201)
    assert response.elapsed.total_seconds() < 10
    assert "retry-after" not in response.headers


async def test_poll_without_an_outcome_is_answered_after_its_wait_and_not_before(
    gateway_settings: GatewaySettings,
) -> None:
    async with harness.gateway(gateway_settings) as client:
        response = await client.get(await accepted(client), headers=prefer("wait=1"))

    assert (response.json()["status"], response.headers["retry-after"]) == ("pending", "1")
    assert 1 <= response.elapsed.total_seconds() < 1.8


@pytest.mark.parametrize("preference", ["wait=0", "wait=-1", "respond-async", "return=minimal"])
async def test_poll_that_does_not_wait_is_answered_at_once(gateway_settings: GatewaySettings, preference: str) -> None:
    async with harness.gateway(gateway_settings) as client:
        response = await client.get(await accepted(client), headers=prefer(preference))

    assert (response.status_code, response.json()["status"]) == (200, "pending")
    assert response.headers.get("preference-applied") == ("wait=0" if preference == "wait=0" else None)
    assert response.elapsed.total_seconds() < 0.5


async def test_polls_that_wait_hold_no_connection(gateway_settings: GatewaySettings) -> None:
    settings = gateway_settings.model_copy(update={"read_connections": 2})
    async with harness.gateway(settings) as client:
        url = await accepted(client)
        polls = asyncio.gather(*(client.get(url, headers=prefer("wait=5")) for _ in range(40)))
        await asyncio.sleep(0.3)
        reads = await asyncio.gather(*(client.get("/notes") for _ in range(10)))

        assert {read.status_code for read in reads} == {200}
        assert max(read.elapsed.total_seconds() for read in reads) < 4
        assert {poll.status_code for poll in await polls} == {200}


async def test_gateway_that_drains_answers_polls_and_writes_that_wait(gateway_settings: GatewaySettings) -> None:
    app = create_app(gateway_settings)
    async with harness.serving(app) as base_url, httpx.AsyncClient(base_url=base_url, timeout=40) as client:
        url = await accepted(client)
        poll = asyncio.create_task(client.get(url, headers=prefer("wait=30")))
        write = asyncio.create_task(client.post("/notes", json=NOTE, headers=prefer("wait=30")))
        await asyncio.sleep(0.5)

        assert app.front.resources
        app.front.resources.replies.drain()

        late = await client.post("/notes", json=NOTE, headers=prefer("wait=30"))
        responses = [(await each).status_code for each in (poll, write)] + [late.status_code]
    assert responses == [200, 202, 202]
    assert poll.result().elapsed.total_seconds() < 3
    assert write.result().elapsed.total_seconds() < 3


async def test_polled_response_has_the_headers_and_the_body_of_the_original_one(
    shared_client: httpx.AsyncClient,
) -> None:
    path = await created(shared_client)
    replaced = await shared_client.put(path, json=NEW, headers=prefer("respond-async"))
    again = await shared_client.post("/notes", json=NOTE, headers=prefer("respond-async"))

    state: dict[str, Any] = (await decided(shared_client, replaced.headers["location"]))["answer"]
    creation: dict[str, Any] = (await decided(shared_client, again.headers["location"]))["answer"]

    assert (state["status"], state["body"]) == (200, (await shared_client.get(path)).json())
    assert state["headers"] == {"ETag": '"2"', "Content-Type": "application/json"}
    note = await shared_client.get(creation["headers"].pop("Location"))
    assert (creation["status"], creation["body"]) == (201, note.json())
    assert creation["headers"] == {"ETag": '"1"', "Content-Type": "application/json"}
