"""Limits of a request: the length of its target and headers, and the time that it may take to arrive."""

import asyncio

import httpx
import pytest
from uvicorn._types import ASGI3Application

from gateway.http import protocol, requests
from gateway.http.request_cycle import RequestCycle
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.raw_http import connected, up_to_the_end

TARGET_LIMIT = 8 * 1024
FIELDS_LIMIT = 100
PIECE = b"a" * 16 * 1024
START = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
UPLOAD = b"POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


async def answered_while_sending(stream: asyncio.StreamReader, writer: asyncio.StreamWriter, piece: bytes) -> bytes:
    """Everything received until the connection ends, while the piece is sent again and again."""
    response = asyncio.create_task(up_to_the_end(stream))
    while not response.done():
        writer.write(piece)
        await asyncio.wait({response}, timeout=0.02)
    return await response


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize("start", ["/", "/notes?q=", "/notes/1?q="])
async def test_target_over_the_limit_is_refused_and_one_at_the_limit_is_not(
    gateway: httpx.AsyncClient, start: str
) -> None:
    question_marks = start.count("?")
    longest = start + "a" * (TARGET_LIMIT - len(start) + question_marks)

    assert (await gateway.put(longest)).status_code != 414
    assert_problem(await gateway.put(longest + "a"), 414, "uri_too_long")


async def test_fields_over_the_limit_are_refused_and_as_many_as_the_limit_are_not(gateway: httpx.AsyncClient) -> None:
    fields = [("host", "localhost")] + [("x", "")] * (FIELDS_LIMIT - 1)
    request = httpx.Request("GET", gateway.base_url.join("/health/live"), headers=fields)
    one_more = httpx.Request("GET", request.url, headers=[*fields, ("x", "")])

    assert (await gateway.send(request)).status_code == 200
    assert_problem(await gateway.send(one_more), 431, "headers_too_large")


@pytest.mark.parametrize("start", [b"GET /", START + b"Endless: ", START + b"Endless"])
async def test_head_without_an_end_is_refused_before_it_fills_the_memory(
    gateway: httpx.AsyncClient, start: bytes
) -> None:
    async with connected(gateway) as (stream, writer):
        writer.write(start)

        response = await answered_while_sending(stream, writer, PIECE)

    assert response.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"headers_too_large"' in response


async def test_many_requests_in_one_piece_are_not_taken_for_a_long_head(gateway: httpx.AsyncClient) -> None:
    times = 4 * protocol.HEAD_LIMIT_BYTES // len(START)
    unfinished, rest = START[:10], START[10:]
    async with connected(gateway) as (stream, writer):
        writer.write(START + b"\r\n" + unfinished)
        await stream.readuntil(b"\r\n\r\n")

        writer.write((rest + b"\r\n" + unfinished) * times + rest + b"Connection: close\r\n\r\n")

        assert (await stream.read()).count(b"HTTP/1.1 200 OK") == times + 1


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET", START, START + b"\r\n" + START])
async def test_connection_that_owes_a_head_is_closed(
    gateway: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_SECONDS", 0.3)

    async with connected(gateway) as (stream, writer):
        writer.write(sent)

        assert (await stream.read()).count(b"HTTP/1.1 200 OK") == sent.count(b"\r\n\r\n")


async def test_head_that_drips_is_not_waited_for_longer(
    gateway: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_SECONDS", 0.3)

    async with connected(gateway) as (stream, writer):
        writer.write(START)

        assert await answered_while_sending(stream, writer, b"A: b\r\n") == b""


async def test_upload_that_goes_on_after_its_refusal_is_ended(
    gateway: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_SECONDS", 0.3)

    async with connected(gateway) as (stream, writer):
        writer.write(UPLOAD % 10**12)

        response = await answered_while_sending(stream, writer, PIECE)

    assert response.startswith(b"HTTP/1.1 413 ")
    assert response.count(b"HTTP/1.1") == 1


async def test_response_may_take_longer_than_a_head(
    gateway_settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_SECONDS", 0.2)

    async with harness.gateway(gateway_settings) as client:
        write = await client.post("/notes", json={"title": "Ink", "description": ""}, headers={"Prefer": "wait=1"})

    assert write.status_code == 202
    assert "connection" not in write.headers


@pytest.mark.parametrize("sent", [b"", b'{"title"'])
async def test_body_that_does_not_come_is_refused(
    gateway: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT_SECONDS", 0.3)

    async with connected(gateway) as (stream, writer):
        writer.write(UPLOAD % 100 + sent)

        response = await stream.read()

    assert response.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in response


async def test_client_that_leaves_in_the_middle_of_its_body_is_no_bug(
    gateway: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled = asyncio.Event()
    run = RequestCycle.run_asgi

    async def noticed(cycle: RequestCycle, app: ASGI3Application) -> None:
        await run(cycle, app)
        handled.set()

    monkeypatch.setattr(RequestCycle, "run_asgi", noticed)
    async with connected(gateway) as (_, writer):
        writer.write(UPLOAD % 100 + b"{")
        await writer.drain()

    async with asyncio.timeout(60):
        await handled.wait()

    assert "bug: " not in caplog.text
