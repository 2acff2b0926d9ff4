"""A response in parts: framed as HTTP/1.1 and 1.0 have it, cancelled with its client, never silently cut short."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress

import httpx
import pytest

from dev.backend import Services
from gateway import app as app_module
from gateway.http.operations import PUBLIC, Operations
from gateway.http.requests import Request
from gateway.http.responses import Response
from gateway.resources import Gateway
from tests.support import harness
from tests.support.isolation import fresh_prefix, settings_of_gateway
from tests.support.raw_http import connected

operations: Operations[Gateway] = Operations("streams")
ended: list[str] = []
asked = asyncio.Event()
go_on = asyncio.Event()


async def give_three_parts() -> AsyncGenerator[bytes]:
    yield b"one "
    await go_on.wait()
    yield b"two "
    yield b"three"


async def fail_midway() -> AsyncGenerator[bytes]:
    yield b"one "
    raise LookupError


async def give_large_parts() -> AsyncGenerator[bytes]:
    yield b"a" * 200_000
    yield b"b" * 131_072


async def never_end(part: bytes) -> AsyncGenerator[bytes]:
    try:
        yield part
        while True:
            await asyncio.sleep(0 if part else 60)
            yield part
    finally:
        ended.append("endless")


STREAMS: dict[str, Callable[[], AsyncGenerator[bytes]]] = {
    "/streams/three": give_three_parts,
    "/streams/large": give_large_parts,
    "/streams/broken": fail_midway,
    "/streams/quiet": lambda: never_end(b""),
    "/streams/loud": lambda: never_end(b"x" * 65_536),
    "/streams/late": lambda: never_end(b""),
}


async def get_stream(_: Gateway, request: Request) -> Response:
    """Returns a stream, a late one once it may."""
    if request.path == "/streams/late":
        asked.set()
        await go_on.wait()
    return Response(stream=STREAMS[request.path](), media_type="text/plain")


for path in STREAMS:
    operations.add("GET", path, requires=PUBLIC, responses={200: {"description": "A stream"}})(get_stream)


@pytest.fixture(scope="module")
async def client(servers: Services) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that only serves streams, and closes a connection that is not read for two seconds."""
    async with fresh_prefix(servers) as prefix:
        settings = settings_of_gateway(servers, servers.database_url, prefix, send_timeout_seconds=2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app_module, "collect_operations", lambda _: operations)
            async with harness.gateway(settings) as client:
                yield client


@pytest.fixture(autouse=True)
def _forget_what_was() -> None:
    ended.clear()
    asked.clear()
    go_on.clear()


async def read_raw(client: httpx.AsyncClient, request: bytes) -> bytes:
    async with connected(client) as (stream, writer):
        writer.write(request)
        return await stream.read()


async def test_a_part_arrives_before_the_next_exists(client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/streams/three") as response:
        parts = response.aiter_bytes()

        assert await anext(parts) == b"one "
        go_on.set()
        assert b"".join([part async for part in parts]) == b"two three"

    assert (response.headers["transfer-encoding"], response.headers["content-type"]) == ("chunked", "text/plain")
    assert "content-length" not in response.headers


async def test_the_connection_serves_the_next_request(client: httpx.AsyncClient) -> None:
    go_on.set()

    received = await read_raw(
        client,
        b"GET /streams/three HTTP/1.1\r\nHost: localhost\r\n\r\n"
        b"GET /streams/three HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )

    assert received.count(b"HTTP/1.1 200") == 2
    assert received.count(b"\r\n5\r\nthree\r\n0\r\n\r\n") == 2


async def test_http_1_0_gets_the_body_without_chunks(client: httpx.AsyncClient) -> None:
    go_on.set()

    head, body = (await read_raw(client, b"GET /streams/three HTTP/1.0\r\nHost: localhost\r\n\r\n")).split(b"\r\n\r\n")

    assert body == b"one two three"
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head


async def test_large_parts_are_whole(client: httpx.AsyncClient) -> None:
    large = b"a" * 200_000 + b"b" * 131_072

    assert (await client.get("/streams/large")).content == large
    assert (await read_raw(client, b"GET /streams/large HTTP/1.0\r\nHost: localhost\r\n\r\n")).endswith(
        b"\r\n\r\n" + large
    )


async def test_head_gets_no_body_at_once(client: httpx.AsyncClient) -> None:
    response = await client.head("/streams/quiet")

    assert (response.status_code, response.content) == (200, b"")


async def test_a_stream_that_fails_is_not_taken_for_a_whole_one(client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get("/streams/broken")


@pytest.mark.parametrize("path", ["/streams/quiet", "/streams/loud"])
async def test_a_stream_ends_with_its_client(client: httpx.AsyncClient, path: str) -> None:
    async with client.stream("GET", path):
        pass

    async def is_ended() -> bool:
        return ended == ["endless"]

    await harness.eventually(is_ended, within_seconds=5)


async def test_a_stream_ends_though_its_client_left_before_it_began(client: httpx.AsyncClient) -> None:
    async with connected(client) as (_, writer):
        writer.write(b"GET /streams/late HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asked.wait()
    await writer.wait_closed()
    await asyncio.sleep(0.5)  # the gateway has noticed
    go_on.set()

    async def is_ended() -> bool:
        return ended == ["endless"]

    await harness.eventually(is_ended, within_seconds=5)


async def test_a_stream_that_is_not_read_is_closed(client: httpx.AsyncClient) -> None:
    async with connected(client) as (_, writer):
        writer.write(b"GET /streams/loud HTTP/1.1\r\nHost: localhost\r\n\r\n")

        async def is_ended() -> bool:
            return ended == ["endless"]

        await harness.eventually(is_ended, within_seconds=15)


async def test_a_quiet_stream_outlasts_the_limit_for_reading(client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/streams/quiet"):
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()

        assert not ended
