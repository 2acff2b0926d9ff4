"""Streams of changes survive the restarts of the servers, and end cleanly with the gateway."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.following import Copy, EventStream, streaming
from tests.support.harness import eventually
from tests.support.stack import Load, Stack
from tests.system.servers import Servers

pytestmark = pytest.mark.needs_docker


@pytest.fixture
async def breakable_stack(breakable: Servers, tmp_path: Path) -> AsyncIterator[Stack]:
    async with breakable.stack(tmp_path, wait_seconds="0.5") as stack:
        yield stack


async def keep_copy(stream: EventStream, copy: Copy) -> None:
    while True:
        copy.apply(await stream.next())


async def read_all(client: httpx.AsyncClient) -> dict[int, object]:
    """The notes by id, once Postgres answers."""
    notes: dict[int, object] = {}
    url = "/notes?limit=1000"
    while url:
        response = await client.get(url)
        response.raise_for_status()
        notes |= {note["id"]: note for note in response.json()}
        url = response.links.get("next", {}).get("url", "")
    return notes


@pytest.mark.parametrize("server", ["postgres", "rabbitmq"])
async def test_stream_outlives_a_restart_and_misses_nothing(
    breakable: Servers, breakable_stack: Stack, server: str
) -> None:
    stack, copy = breakable_stack, Copy()
    async with streaming(stack.client) as stream:
        following = asyncio.create_task(keep_copy(stream, copy))
        async with Load(stack.client).running(2) as load:
            await eventually(lambda: is_longer(copy, 10))
            await (breakable.restart_postgres() if server == "postgres" else breakable.restart_rabbitmq())
            before = len(load.titles(201))
            await eventually(lambda: has_written(load, before + 20), within_seconds=60)

        async def is_whole() -> bool:
            return load.accepted <= {note["title"] for note in copy.notes.values()}

        await eventually(is_whole, within_seconds=30)
        assert not following.done()
        following.cancel()

    assert copy.notes == await read_all(stack.client)
    revisions = [change["revision"] for change in copy.changes]
    assert revisions == sorted(revisions)
    async with streaming(stack.client, resume=stream.last_id) as again:
        assert again.response.status_code == 200


async def is_longer(copy: Copy, number: int) -> bool:
    return len(copy.changes) >= number


async def has_written(load: Load, number: int) -> bool:
    return len(load.titles(201)) >= number


async def test_hints_are_received_only_while_somebody_follows(stack: Stack) -> None:
    queues = f"{stack.queue_prefix}.changes.v1"
    assert queues  # the queue itself is seen by the wake-up below, within less time than a look takes
    for _ in range(2):
        async with streaming(stack.client) as stream:
            await asyncio.sleep(0.5)
            started = time.monotonic()
            await stack.client.post("/notes/", json={"title": "Ink", "description": ""})
            await stream.next()
        assert time.monotonic() - started < 4


async def test_stopped_gateway_ends_its_streams_and_exits_with_0(stack: Stack) -> None:
    async with streaming(stack.client) as stream:
        resting = asyncio.create_task(stream.rest())
        await asyncio.sleep(0.5)

        assert await stack.gateway.stop() == 0

        assert await resting == []
        assert len(stream.retries) == 2


async def test_reads_of_many_streams_do_not_hold_up_a_note(stack: Stack) -> None:
    created = await stack.client.post("/notes/", json={"title": "Ink", "description": ""}, headers={"Prefer": "wait=9"})
    async with streaming(stack.client), streaming(stack.client), Load(stack.client).running(4):
        for _ in range(20):
            started = time.monotonic()
            response = await stack.client.get(f"/notes/{created.json()['id']}")
            assert response.status_code == 200
            assert time.monotonic() - started < 2
