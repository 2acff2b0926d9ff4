"""A stream of changes: resumed by its last id, as current as Postgres, bounded, and ended with its credentials."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from uvicorn._types import ASGISendEvent

from gateway.api import changes as api
from gateway.app import create_app
from gateway.http.request_cycle import RequestCycle
from gateway.reads import followers
from gateway.reads.queries import Queries
from gateway.settings import GatewaySettings
from shared.database import Session
from tests.support import harness
from tests.support.accounts import Person, bearer, forged, personal_token, sign_up
from tests.support.canaries import NOTE, PASSWORD
from tests.support.following import AS_EVENTS, Copy, streaming
from tests.support.raw_http import connected
from worker.settings import WorkerSettings


async def create(client: httpx.AsyncClient, number: int = 1, **request: Any) -> list[int]:
    """The ids of new notes."""
    responses = [await client.post("/notes", json=NOTE, **request) for _ in range(number)]
    return [response.json()["id"] for response in responses]


async def test_stream_begins_with_all_notes_and_goes_on(user_client: httpx.AsyncClient) -> None:
    notes = await create(user_client, 3)

    async with streaming(user_client, params={"limit": 2}) as stream:
        first = await stream.take(3)
        await user_client.patch(f"/notes/{notes[1]}", json={"title": "changed"})
        await user_client.delete(f"/notes/{notes[0]}")
        then = await stream.take(2)

    assert [change["id"] for change in first] == notes
    assert [(change["id"], change["deleted"]) for change in then] == [(notes[1], False), (notes[0], True)]
    assert then[0]["note"] == (await user_client.get(f"/notes/{notes[1]}")).json()
    assert "note" not in then[1]


async def test_change_wakes_a_stream_at_once(user_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "POLL_SECONDS", (60, 60))

    async with streaming(user_client) as stream:
        for _ in range(3):
            await create(user_client)
            async with asyncio.timeout(2):
                await stream.next()


async def test_stream_looks_by_itself_if_hints_are_lost(
    user_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "POLL_SECONDS", (0.5, 1))
    monkeypatch.setattr(followers.Followers, "_on_hints", lambda *_: None)

    async with streaming(user_client) as stream:
        for _ in range(3):
            await create(user_client)
            async with asyncio.timeout(5):
                await stream.next()


async def test_stream_resumes_after_the_last_event(user_client: httpx.AsyncClient) -> None:
    notes = await create(user_client, 3)
    async with streaming(user_client) as stream:
        await stream.take(2)
        last = stream.last_id
    await user_client.delete(f"/notes/{notes[0]}")

    async with streaming(user_client, resume=last) as stream:
        changes = await stream.take(2)

    assert [(change["id"], change["deleted"]) for change in changes] == [(notes[2], False), (notes[0], True)]


async def test_last_event_id_outranks_since(user_client: httpx.AsyncClient) -> None:
    notes = await create(user_client, 2)
    end = (await Copy().catch_up(user_client)).cursor
    beginning = Copy()
    await beginning.turn_page(user_client, limit=1)

    async with streaming(user_client, since=end, resume=beginning.cursor) as stream:
        change = await stream.next()

    assert change["id"] == notes[1]


async def test_cursors_of_pages_and_of_streams_are_the_same(user_client: httpx.AsyncClient) -> None:
    notes = await create(user_client, 2)
    copy = await Copy().catch_up(user_client)

    async with streaming(user_client, since=copy.cursor) as stream:
        [third] = await create(user_client)
        assert (await stream.next())["id"] == third
        copy.cursor = stream.last_id
    await copy.catch_up(user_client)

    assert list(copy.notes) == notes


async def test_stream_without_changes_says_where_it_is(user_client: httpx.AsyncClient) -> None:
    async with user_client.stream("GET", "/notes/changes", headers=AS_EVENTS) as response:
        block = await anext(response.aiter_text())

    assert block.startswith("retry: ")
    assert re.search(r"\nid: \d+[.]0[.]end[.]", block)
    assert "data" not in block


async def test_event_is_framed_as_the_standard_has_it(user_client: httpx.AsyncClient) -> None:
    await user_client.post("/notes", json={"title": "line\nbreak\r\u2028", "description": "data: x\n\n"})

    async with streaming(user_client) as stream:
        change = await stream.next()

    assert (change["note"]["title"], change["note"]["description"]) == ("line\nbreak\r\u2028", "data: x\n\n")


@pytest.mark.parametrize(
    ("accept", "is_stream"),
    [
        ("text/event-stream", True),
        ("text/event-stream, application/json;q=0.9", True),
        ("TEXT/Event-Stream;q=0.5, */*;q=0.1", True),
        ("application/json, text/event-stream;q=0.9", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=2", False),
        ("*/*", False),
        ("text/*", False),
        ("", False),
        (',;"', False),
    ],
)
async def test_accept_decides_between_a_page_and_a_stream(
    shared_client: httpx.AsyncClient, accept: str, *, is_stream: bool
) -> None:
    response = await shared_client.head("/notes/changes", headers={"Accept": accept})

    assert response.status_code == 200
    expected = "text/event-stream" if is_stream else "application/json"
    assert response.headers["content-type"] == expected
    assert "Accept" in response.headers["vary"]


async def test_head_of_a_stream_is_answered_at_once_and_leaves_none_open(user_client: httpx.AsyncClient) -> None:
    for _ in range(20):
        async with asyncio.timeout(5):
            response = await user_client.head("/notes/changes", headers=AS_EVENTS)
        assert (response.status_code, response.content) == (200, b"")

    async with streaming(user_client) as stream:
        await create(user_client)
        await stream.next()


async def test_what_is_no_event_id_is_400(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.get("/notes/changes", headers=AS_EVENTS | {"Last-Event-ID": "7"})

    assert (response.status_code, response.json()["code"]) == (400, "invalid_header")
    assert response.json()["errors"][0]["pointer"] == "/header/last-event-id"


async def test_quiet_stream_has_heartbeats_with_its_position(
    user_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "HEARTBEAT_SECONDS", 0.5)

    async with streaming(user_client) as stream:
        following = asyncio.create_task(stream.next())
        await harness.eventually(partial(is_true, lambda: stream.comments >= 3))
        before = stream.last_id
        assert (await user_client.delete("/notes/999")).status_code == 404
        await harness.eventually(partial(is_true, lambda: stream.last_id != before))
        following.cancel()


async def is_true(condition: Any) -> bool:
    return bool(condition())


async def test_changes_that_are_gone_end_the_stream_and_its_resumption(
    client: httpx.AsyncClient, database: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "POLL_SECONDS", (0.5, 1))
    await create(client, 2)

    async with streaming(client) as stream:
        await stream.take(2)
        await database.execute("delete from notes where id = 1")
        assert await stream.rest() == []

    assert len(stream.retries) == 2
    async with streaming(client, resume=stream.last_id) as again:
        await again.response.aread()
    assert (again.response.status_code, again.response.json()["code"]) == (410, "changes_gone")


# Users


@dataclass
class Users:
    """Two users and a gateway."""

    client: httpx.AsyncClient
    settings: GatewaySettings
    ada: Person
    bob: Person


@pytest.fixture
async def users(password_settings: GatewaySettings, worker_settings: WorkerSettings) -> AsyncIterator[Users]:
    """A gateway that serves three streams, two of each user."""
    settings = password_settings.model_copy(update={"streams": 3, "streams_per_user": 2})
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        yield Users(client, settings, await sign_up(client, "Ada"), await sign_up(client, "Bob"))


async def test_nobody_sees_another_users_changes(users: Users) -> None:
    async with (
        streaming(users.client, headers=users.ada.headers) as hers,
        streaming(users.client, headers=users.bob.headers) as his,
    ):
        first, his_own, second = [
            await create(users.client, headers=person.headers) for person in (users.ada, users.bob, users.ada)
        ]

        assert [[change["id"]] for change in await hers.take(2)] == [first, second]
        assert [[change["id"]] for change in await his.take(1)] == [his_own]


async def test_streams_are_limited_for_each_user_and_together(users: Users) -> None:
    async with AsyncExitStack() as stack:
        for person in (users.ada, users.ada, users.bob):
            stream = await stack.enter_async_context(streaming(users.client, headers=person.headers))
            assert stream.response.status_code == 200
        refused = [
            await users.client.get("/notes/changes", headers=person.headers | AS_EVENTS)
            for person in (users.ada, users.bob)
        ]

    assert [(response.status_code, response.json()["code"]) for response in refused] == [
        (429, "too_many_streams"),
        (503, "overloaded"),
    ]
    assert all(int(response.headers["retry-after"]) > 0 for response in refused)

    async def has_room() -> bool:
        return (await users.client.head("/notes/changes", headers=users.ada.headers | AS_EVENTS)).status_code == 200

    await harness.eventually(has_room)


async def test_stream_counts_before_its_response_is_sent(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    send = RequestCycle.send
    waiting = asyncio.Semaphore(0)
    may_send = asyncio.Event()

    async def wait(cycle: RequestCycle, message: ASGISendEvent) -> None:  # as if earlier responses were not read
        waiting.release()
        await may_send.wait()
        await send(cycle, message)

    monkeypatch.setattr(RequestCycle, "send", wait)
    request = users.client.build_request("GET", "/notes/changes", headers=users.ada.headers | AS_EVENTS)
    opening = [asyncio.create_task(users.client.send(request, stream=True)) for _ in range(5)]
    for _ in opening:
        await waiting.acquire()
    may_send.set()
    responses = await asyncio.gather(*opening)
    for response in responses:
        await response.aclose()

    assert sorted(response.status_code for response in responses) == [200, 200, 429, 429, 429]

    async def is_none_open() -> bool:
        return REGISTRY.get_sample_value("inkwell_streams") == 0

    await harness.eventually(is_none_open)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams look, and check credentials, more often than they do in production."""
    monkeypatch.setattr(followers, "POLL_SECONDS", (0.5, 1))
    monkeypatch.setattr(api, "STREAM_TRUST_SECONDS", 1)


@pytest.mark.usefixtures("quick")
async def test_stream_ends_with_its_token(users: Users) -> None:
    token = forged(users.settings, users.ada.id, exp=int(time.time()) - 2)  # within the tolerance of five seconds

    async with asyncio.timeout(30), streaming(users.client, headers=bearer(token)) as stream:
        assert stream.response.status_code == 200
        assert await stream.rest() == []

    assert len(stream.retries) == 2
    response = await users.client.get("/notes/changes", headers=bearer(token))
    assert response.status_code == 401


@pytest.mark.usefixtures("quick")
async def test_new_password_ends_streams(users: Users) -> None:
    body = {"password": f"{PASSWORD} anew", "current_password": PASSWORD}

    async with asyncio.timeout(30), streaming(users.client, headers=users.ada.headers) as stream:
        changed = await users.client.patch("/users/me", json=body, headers=users.ada.headers)
        assert changed.status_code == 200
        assert await stream.rest() == []


@pytest.mark.usefixtures("quick")
async def test_deleted_user_ends_streams(users: Users) -> None:
    async with asyncio.timeout(30), streaming(users.client, headers=users.ada.headers) as stream:
        assert (await users.client.delete("/users/me", headers=users.ada.headers)).status_code == 204
        assert await stream.rest() == []


@pytest.mark.usefixtures("quick")
async def test_revoked_personal_token_ends_streams_at_every_gateway(users: Users) -> None:
    token = await personal_token(users.client, users.ada, "notes:read")

    async with (
        asyncio.timeout(30),
        harness.gateway(users.settings) as other,
        streaming(other, headers=bearer(token["token"])) as stream,
    ):
        revoked = await users.client.delete(f"/auth/tokens/{token['id']}", headers=users.ada.headers)
        assert revoked.status_code == 204
        assert await stream.rest() == []


def test_credentials_are_checked_in_time() -> None:
    assert api.STREAM_TRUST_SECONDS + followers.POLL_SECONDS[1] < 30


# A gateway that stops, and clients that do not read


async def test_drain_ends_streams_and_waits(gateway_settings: GatewaySettings, worker_settings: WorkerSettings) -> None:
    app = create_app(gateway_settings)
    async with (
        harness.worker(worker_settings),
        harness.serving(app, gateway_settings) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
        streaming(client) as stream,
    ):
        waiting = asyncio.create_task(client.get("/notes/changes", headers={"Prefer": "wait=30"}))
        await asyncio.sleep(0.5)
        assert app.front.resources
        app.front.resources.followers.drain()

        async with asyncio.timeout(3):
            assert await stream.rest() == []
            assert (await waiting).status_code == 200

    assert len(stream.retries) == 2
    assert all(1000 <= each <= 5000 for each in stream.retries)


async def test_stream_that_is_not_read_is_closed(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    settings = gateway_settings.model_copy(update={"send_timeout_seconds": 2, "streams": 1})
    large = {"op": "create", "title": "Ink", "description": "x" * 200}
    request = b"GET /notes/changes?limit=1000 HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        for _ in range(20):
            assert (await client.post("/notes/batch", json={"items": [large] * 1000})).status_code == 200
        async with connected(client) as (reader, writer):
            writer.write(request)
            assert b" 200 " in await reader.readline()

            async def status() -> int:
                async with streaming(client) as other:
                    await other.response.aclose()
                    return other.response.status_code

            async def is_full() -> bool:
                return await status() == 503

            async def is_free() -> bool:
                return await status() == 200

            await harness.eventually(is_full)
            await harness.eventually(is_free, within_seconds=30)


# Many


async def test_streams_of_the_same_position_share_their_reads(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "POLL_SECONDS", (60, 60))
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(streaming(client)) for _ in range(20)]
        await create(client)
        for stream in streams:
            await stream.next()
        reads = count_reads(monkeypatch)

        await create(client)
        for stream in streams:
            await stream.next()

    assert len(reads) <= 3


async def test_busy_owner_is_read_ten_times_a_second_at_most(
    user_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with streaming(user_client) as stream:
        reads = count_reads(monkeypatch)
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(create(user_client, 10) for _ in range(10)))
        await stream.take(100)
        seconds = asyncio.get_running_loop().time() - started

    assert len(reads) <= 10 * seconds + 3


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The reads of changes from now on."""
    reads: list[object] = []
    read = Queries.list_changes

    async def counted(self: Queries, *arguments: Any) -> Any:
        reads.append(arguments)
        return await read(self, *arguments)

    monkeypatch.setattr(Queries, "list_changes", counted)
    return reads
