"""HTTP framing: whatever the bytes and segments, each request gets one response, and a connection stays small."""

import asyncio
import json
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY

from gateway.api.docs import PACKAGE, SCRIPT
from gateway.http import front, protocol
from gateway.http import responses as http_responses
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.harness import eventually
from tests.support.proxy import free_port
from tests.support.raw_http import Response, Responses, connected, exchange, segments, up_to_the_end

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
BODY = json.dumps(NOTE).encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SIZES = [1, 2, 7, 64, 1 << 20]
OFFERS = [b"h2c", b"websocket", b"TLS/1.2", b"h2c, websocket"]
MEGABYTE = 1024 * 1024
FRAMINGS = ["length", "chunked"]


def post(*lines: bytes, body: bytes = BODY, chunked: bool = False, target: bytes = b"/notes") -> bytes:
    """A request that creates a note."""
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    head = [b"POST %b HTTP/1.1" % target, b"Host: localhost", b"Content-Type: application/json", framing, *lines]
    content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    return b"\r\n".join((*head, b"", content))


def get(*lines: bytes, host: bytes = b"Host: localhost", version: bytes = b"HTTP/1.1") -> bytes:
    """A request that is answered 200, apart from these lines."""
    return b"\r\n".join((b"GET /health/live " + version, host, *lines, b"", b""))


def statuses(responses: list[Response]) -> list[int]:
    return [response.status for response in responses]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("offer", OFFERS)
async def test_offer_to_upgrade_is_ignored_and_the_body_is_the_body(
    shared_client: httpx.AsyncClient, offer: bytes, framing: str, size: int
) -> None:
    request = post(
        b"Connection: Upgrade, HTTP2-Settings",
        b"Upgrade: " + offer,
        b"HTTP2-Settings: AAMAA",
        chunked=framing == "chunked",
    )

    responses = await exchange(shared_client, request + LAST, size)

    assert statuses(responses) == [201, 200]
    assert json.loads(responses[0].body).items() >= NOTE.items()


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("size", SIZES)
async def test_request_in_the_body_of_an_offer_to_upgrade_is_not_answered(
    gateway: httpx.AsyncClient, size: int, framing: str
) -> None:
    request = post(b"Connection: upgrade", b"Upgrade: h2c", body=LIVE, chunked=framing == "chunked")

    [refused, last] = await exchange(gateway, request + LAST, size)

    assert (refused.status, json.loads(refused.body)["code"], last.status) == (400, "invalid_json", 200)


@pytest.mark.parametrize("size", SIZES)
async def test_offer_to_upgrade_with_too_many_headers_is_refused(gateway: httpx.AsyncClient, size: int) -> None:
    offer = [b"Connection: Upgrade", b"Upgrade: h2c", *[b"X: a"] * 98, b"Content-Length: %d" % len(LIVE)]
    request = b"\r\n".join((b"POST /notes HTTP/1.1", b"Host: localhost", *offer, b"", LIVE))

    assert statuses(await exchange(gateway, request + LAST, size)) == [431]


@pytest.mark.parametrize("name", [b"Connection", b"Proxy-Connection"])
@pytest.mark.parametrize("is_answered_first", [True, False])
async def test_trailer_that_ends_the_connection_swallows_no_request(
    gateway: httpx.AsyncClient, name: bytes, *, is_answered_first: bool
) -> None:
    head, _, chunks = post(chunked=True, target=b"/nope").partition(b"\r\n\r\n")
    async with connected(gateway) as (stream, writer):
        writer.write(head + b"\r\n\r\n")
        if is_answered_first:
            await stream.readuntil(b"}")
        writer.write(chunks[:-2] + name + b": close\r\n\r\n" + LIVE)
        async with asyncio.timeout(5):  # it ends, instead of waiting for the idle limit
            await up_to_the_end(stream)


async def test_flood_of_tiny_chunks_is_parsed_in_turns_and_answered(
    gateway: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    parse = protocol.BoundedProtocol._parse

    def count(connection: protocol.BoundedProtocol) -> None:
        turns.append(len(connection._unparsed))
        parse(connection)

    monkeypatch.setattr(protocol, "TURN_BYTES", 2048)
    monkeypatch.setattr(protocol.BoundedProtocol, "_parse", count)
    head, _, _ = post(chunked=True, target=b"/nope").partition(b"\r\n\r\n")

    responses = await exchange(gateway, head + b"\r\n\r\n" + b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n" + LAST, 1 << 20)

    assert statuses(responses) == [404, 200]
    assert len(turns) >= 60_000 / 2048


async def test_body_may_come_long_after_the_head_of_an_offer(shared_client: httpx.AsyncClient) -> None:
    head, _, body = post(b"Connection: Upgrade", b"Upgrade: h2c").partition(b"\r\n\r\n")
    async with connected(shared_client) as (stream, writer):
        writer.write(head + b"\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(body + LAST)

        responses = Responses()
        responses.feed(await up_to_the_end(stream))

    assert statuses(responses.complete) == [201, 200]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl_that_offers_http2_writes(shared_client: httpx.AsyncClient) -> None:
    url = str(shared_client.base_url.join("/notes"))
    command = ["curl", "--silent", "--http2", "--fail", "--json", BODY.decode(), url, "--next", url]

    curl = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    printed, _ = await curl.communicate()

    assert curl.returncode == 0
    assert json.loads(printed.partition(b"}")[0] + b"}").items() >= NOTE.items()


def memory_bytes(pid: int) -> int:
    """The resident memory of a process."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@dataclass
class GatewayProcess:
    """A gateway in its own process, so that its memory can be measured."""

    client: httpx.AsyncClient
    pid: int


@pytest.fixture(scope="module")
async def process() -> AsyncIterator[GatewayProcess]:
    settings, port = harness.settings_without_servers(), free_port()
    environment = {
        "INKWELL_DATABASE_URL": str(settings.database_url.get_secret_value()),
        "INKWELL_BROKER_URL": str(settings.broker_url.get_secret_value()),
        "INKWELL_SIGNING_KEYS": settings.signing_keys[0].get_secret_value(),
        "INKWELL_FINGERPRINT_KEY": settings.fingerprint_key.get_secret_value(),
        "INKWELL_AUTH": "none",
        "INKWELL_PORT": str(port),
        "INKWELL_SEND_TIMEOUT_SECONDS": "2",
    }
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:

        async def answers() -> bool:
            try:
                return (await client.get("/health/live")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(answers)
        yield GatewayProcess(client, running.pid)
    running.kill()
    await running.wait()


@needs_proc
@pytest.mark.parametrize("request_", [LIVE, get(b"X: " + b"a" * 900), post()], ids=["short", "long", "with a body"])
async def test_unread_responses_to_requests_fill_no_memory(process: GatewayProcess, request_: bytes) -> None:
    times = 20_000
    async with connected(process.client) as (_, writer):
        before = memory_bytes(process.pid)
        sending = asyncio.create_task(send_all(writer, request_, times))
        await asyncio.wait({sending}, timeout=5)
        most = 0
        for _ in range(20):
            most = max(most, memory_bytes(process.pid) - before)
            await asyncio.sleep(0.05)
        sending.cancel()

    assert most < 10 * MEGABYTE


@needs_proc
async def test_large_responses_that_are_not_read_fill_no_memory(process: GatewayProcess) -> None:
    script = f"/docs/{version(PACKAGE)}/{SCRIPT}"
    assert len((await process.client.get(script)).content) > MEGABYTE
    request = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % script.encode()
    before = memory_bytes(process.pid)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            _, writer = await stack.enter_async_context(connected(process.client))
            writer.write(request * 10)
        most = 0
        for _ in range(20):
            await asyncio.sleep(0.05)
            most = max(most, memory_bytes(process.pid) - before)

    assert most < 10 * MEGABYTE


async def send_all(writer: asyncio.StreamWriter, data: bytes, times: int) -> None:
    for _ in range(times // 100):
        writer.write(data * 100)
        await writer.drain()


@pytest.mark.parametrize("size", SIZES)
async def test_pipelined_requests_are_answered_in_their_order(gateway: httpx.AsyncClient, size: int) -> None:
    pipeline = b"".join(get(b"X-Request-ID: request-%d" % number) for number in range(100))

    responses = await exchange(gateway, pipeline + LAST, size)

    assert [response.headers["x-request-id"] for response in responses[:-1]] == [
        f"request-{number}" for number in range(100)
    ]


@pytest.mark.parametrize("size", SIZES)
async def test_what_cannot_be_parsed_is_answered_after_the_requests_before_it(
    shared_client: httpx.AsyncClient, size: int
) -> None:
    responses = await exchange(shared_client, post() + post() + b"nonsense\r\n\r\n" + LIVE, size)

    assert statuses(responses) == [201, 201, 400]


@pytest.mark.parametrize("size", SIZES)
async def test_trailer_is_no_header(shared_client: httpx.AsyncClient, size: int) -> None:
    written = post(b"Prefer: return=minimal", chunked=True)
    trailers = b"Idempotency-Key: k\r\nPrefer: respond-async\r\nX-Request-ID: trailer\r\nHost: example.org\r\n\r\n"

    responses = await exchange(shared_client, (written[:-2] + trailers) * 2 + LAST, size)

    assert statuses(responses) == [201, 201, 200]
    assert responses[0].headers["location"] != responses[1].headers["location"]
    assert all(response.headers["x-request-id"] != "trailer" for response in responses)


async def test_login_throttle_believes_no_trailer(password_settings: GatewaySettings) -> None:
    settings = password_settings.model_copy(update={"login_limit": "3/minute"})
    trusting = GatewaySettings.model_validate(settings.model_dump() | {"trusted_proxies": "127.0.0.1"})
    form = b"username=ada&password=wrong"
    head = (
        b"POST /auth/token HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.1\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    tries = [
        head + b"%x\r\n%b\r\n0\r\nX-Forwarded-For: 198.51.100.%d\r\n\r\n" % (len(form), form, number)
        for number in range(6)
    ]

    async with harness.gateway(trusting) as client:
        responses = await exchange(client, b"".join(tries) + LAST)

    assert statuses(responses) == [400, 400, 400, 429, 429, 429, 200]


@pytest.mark.parametrize(
    "endless", [b"X: " + b"a" * 1000, b"X: a\r\nY: b\r\n" * 100], ids=["one trailer", "many trailers"]
)
async def test_trailers_without_an_end_are_refused(gateway: httpx.AsyncClient, endless: bytes) -> None:
    body_up_to_its_trailers = post(chunked=True)[:-2]

    responses = await exchange(gateway, body_up_to_its_trailers + endless * 1000)

    assert statuses(responses) == [431]
    assert json.loads(responses[0].body)["code"] == "headers_too_large"
    assert responses[0].headers["connection"] == "close"


async def test_extension_of_a_chunk_without_an_end_is_refused(gateway: httpx.AsyncClient) -> None:
    head = post(chunked=True).partition(b"\r\n\r\n")[0]

    responses = await exchange(gateway, head + b"\r\n\r\n5;" + b"a" * 100_000)

    assert statuses(responses) == [431]


UNPARSABLE = {
    "an endless head": (431, b"X: " + b"a" * 200_000),
    "a second length": (400, b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    "a broken line": (400, b"Accept: */*\r\nno header\r\n\r\n"),
}


@pytest.mark.parametrize(("status", "rest"), UNPARSABLE.values(), ids=UNPARSABLE)
async def test_what_the_protocol_refuses_is_answered_and_counted_as_any_other_problem(status: int, rest: bytes) -> None:
    page = b"https://app.example"
    settings = harness.settings_without_servers(trust_network=True, cors_origins=page.decode())
    head = b"GET /notes HTTP/1.1\r\nHost: localhost\r\nOrigin: " + page + b"\r\nX-Forwarded-Proto: https\r\n"
    labels = {"http_request_method": "_OTHER", "http_route": "", "http_response_status_code": str(status)}

    async with harness.gateway(settings) as client:
        before = REGISTRY.get_sample_value("http_server_request_duration_seconds_count", labels) or 0
        [response] = await exchange(client, head + rest)

    assert response.status == status
    assert response.headers["access-control-allow-origin"] == page.decode()
    assert response.headers["strict-transport-security"] == "max-age=31536000"
    assert response.headers["connection"] == "close"
    assert len(response.headers["x-request-id"]) == 32
    assert REGISTRY.get_sample_value("http_server_request_duration_seconds_count", labels) == before + 1


async def test_headers_that_a_preflight_names_are_echoed_whatever_their_bytes() -> None:
    settings = harness.settings_without_servers(trust_network=True, cors_origins="https://app.example")
    preflight = b"\r\n".join(
        (
            b"OPTIONS /notes HTTP/1.1",
            b"Host: localhost",
            b"Origin: https://app.example",
            b"Access-Control-Request-Method: GET",
            b"Access-Control-Request-Headers: a\tb,\xe9",
            b"Connection: close",
            b"",
            b"",
        )
    )

    async with harness.gateway(settings) as client, connected(client) as (stream, writer):
        writer.write(preflight)
        response = await up_to_the_end(stream)

    assert response.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nAccess-Control-Allow-Headers: a\tb, \xe9\r\n".lower() in response.lower()


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\0"])
def test_a_header_cannot_become_two(end: str) -> None:
    response = http_responses.Response(headers={"Location": f"/notes/1{end}Set-Cookie: a=b"})

    with pytest.raises(ValueError, match="Location"):
        response.encode()


async def test_a_bug_of_the_front_itself_is_answered_too(
    gateway: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug for the test")

    monkeypatch.setattr(front, "add_defaults", fail)
    bugs = REGISTRY.get_sample_value("inkwell_bugs_total") or 0

    [response] = await exchange(gateway, LIVE)

    assert (response.status, response.headers["connection"]) == (500, "close")
    assert "a bug for the test" in caplog.text
    assert REGISTRY.get_sample_value("inkwell_bugs_total") == bugs + 1


async def test_few_trailers_and_short_extensions_are_fine(shared_client: httpx.AsyncClient) -> None:
    head = post(chunked=True).partition(b"\r\n\r\n")[0]
    chunks = b"".join(b"1;ext=%d\r\n%b\r\n" % (index, BODY[index : index + 1]) for index in range(len(BODY)))

    responses = await exchange(shared_client, head + b"\r\n\r\n" + chunks + b"0\r\nChecksum: x\r\n\r\n" + LAST)

    assert statuses(responses) == [201, 200]


@needs_proc
async def test_unread_responses_end_the_connection(process: GatewayProcess) -> None:
    async with connected(process.client) as (_, writer):
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        port = writer.get_extra_info("sockname")[1]
        assert await is_connected(port)

        await eventually(lambda: is_connected(port, expected=False))


async def is_connected(port: int, *, expected: bool = True) -> bool:
    """Whether a server still has the connection of the client with this port."""
    command = ("ss", "-Htn", "state", "established", f"dport = :{port}")
    listing = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    printed, _ = await listing.communicate()
    return bool(printed.strip()) is expected


async def test_responses_that_are_taken_slowly_are_sent_to_the_end(process: GatewayProcess) -> None:
    times = 40
    document = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    responses = Responses()
    async with connected(process.client) as (stream, writer):
        writer.write(document * times + LAST)
        while part := await stream.read(64 * 1024):
            responses.feed(part)
            await asyncio.sleep(0.05)

    assert len(responses.complete) == times + 1


@pytest.mark.parametrize("padding", [b" ", b"  ", b"\t", b" \t "])
async def test_white_space_around_a_value_is_no_part_of_it(shared_client: httpx.AsyncClient, padding: bytes) -> None:
    keys = [b"Idempotency-Key: k1" + padding, b"Idempotency-Key:" + padding + b"k1", b"Idempotency-Key:k1"]
    target = b"/notes"

    responses = await exchange(shared_client, b"".join(post(key, target=target) for key in keys) + LAST)

    assert statuses(responses) == [201, 201, 201, 200]
    assert len({response.headers["location"] for response in responses[:3]}) == 1


REFUSED = {
    "two hosts": get(b"Host: localhost"),
    "two different hosts": get(b"Host: example.org"),
    "no host": get(host=b"X: y"),
    "a host that is none": get(host=b"Host: a/b"),
    "a host with a user": get(host=b"Host: me@localhost"),
    "two credentials": get(b"Authorization: Bearer a", b"Authorization: Bearer b"),
    "a coding followed by a tab": get(b"Transfer-Encoding: chunked\t"),
    "HTTP/0.9": get(version=b"HTTP/0.9"),
    "HTTP/0.9 without a version": b"GET /health/live\r\n\r\n",
    "HTTP/1.2": get(version=b"HTTP/1.2"),
    "HTTP/2.0": get(version=b"HTTP/2.0"),
    "a method of RTSP": b"DESCRIBE /health/live RTSP/1.0\r\n\r\n",
    "ICE/1.0": b"SOURCE /health/live ICE/1.0\r\n\r\n",
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target at another host": b"GET http://example.org/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target of another scheme": b"GET foo://localhost/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a fragment": b"GET /health/live#a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an authority": b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a length and a coding": get(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "a coding and a length": get(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "two lengths": get(b"Content-Length: 0", b"Content-Length: 0"),
    "a list of lengths": get(b"Content-Length: 0, 0"),
    "a signed length": get(b"Content-Length: +0"),
    "two codings": get(b"Transfer-Encoding: gzip, chunked"),
    "an unknown coding": get(b"Transfer-Encoding: gzip"),
    "a coding with HTTP/1.0": get(b"Transfer-Encoding: chunked", version=b"HTTP/1.0"),
    "a folded header": get(b"X: a", b" b"),
    "a space before a colon": get(b"X : a"),
    "a bare line feed": get(b"X: a\nY: b"),
    "a bare carriage return": get(b"X: a\rY: b"),
    "a zero byte": get(b"X: a\0b"),
}


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
async def test_ambiguous_request_is_refused_and_ends_the_connection(
    gateway: httpx.AsyncClient, request_: bytes, size: int
) -> None:
    responses = await exchange(gateway, request_ + LIVE, size)

    assert statuses(responses) == [400]
    assert json.loads(responses[0].body)["code"] == "bad_request"
    assert responses[0].headers["connection"] == "close"


REFUSED_HEADS = {
    "no host": (b"400", b"HEAD /health/live HTTP/1.1\r\n\r\n"),
    "an invalid target": (b"400", b"HEAD /\x01 HTTP/1.1\r\n\r\n"),
    "an invalid header": (b"400", b"HEAD / HTTP/1.1\r\nno header\r\n\r\n"),
    "a long target": (b"414", b"HEAD /?" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "many headers": (b"431", b"HEAD / HTTP/1.1\r\nHost: a\r\n" + b"a:b\r\n" * 200 + b"\r\n"),
    "an endless head": (b"431", b"HEAD / HTTP/1.1\r\nX: " + b"a" * 200_000),
    "a large body": (b"413", b"HEAD /docs HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n"),
    "a bad chunk": (b"200", b"HEAD /docs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"),
}


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize(("status", "request_"), REFUSED_HEADS.values(), ids=REFUSED_HEADS)
async def test_refused_head_request_gets_no_body(
    gateway: httpx.AsyncClient, status: bytes, request_: bytes, size: int
) -> None:
    async with connected(gateway) as (stream, writer):
        receiving = asyncio.create_task(up_to_the_end(stream))
        for segment in segments(request_, size if len(request_) < 1000 else 1 << 20):
            writer.write(segment)
            await asyncio.sleep(0)
        writer.write_eof()
        head, end, body = (await receiving).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 " + status)
    assert (end, body) == (b"\r\n\r\n", b"")


async def test_what_is_no_request_after_a_head_request_gets_a_body(gateway: httpx.AsyncClient) -> None:
    async with connected(gateway) as (stream, writer):
        writer.write(LIVE.replace(b"GET", b"HEAD") + b"nonsense\r\n\r\n")
        first, second, body = (await up_to_the_end(stream)).split(b"\r\n\r\n")

    assert (first[:12], second[:12]) == (b"HTTP/1.1 200", b"HTTP/1.1 400")
    assert json.loads(body)["code"] == "bad_request"


async def test_http_1_0_needs_no_host(gateway: httpx.AsyncClient) -> None:
    assert statuses(await exchange(gateway, b"GET /health/live HTTP/1.0\r\n\r\n")) == [200]


BROKEN_BODIES = {
    "no size": b"x\r\n",
    "a negative size": b"-1\r\n",
    "a hexadecimal size as in C": b"0x5\r\n",
    "a huge size": b"f" * 17 + b"\r\n",
    "more than its size": b"1\r\nab\r\n0\r\n\r\n",
    "a bare line feed": b"1\na\n0\n\n",
}


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("chunks", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
async def test_body_that_cannot_be_parsed_has_one_response(
    gateway: httpx.AsyncClient, chunks: bytes, size: int
) -> None:
    head = post(chunked=True).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    responses = await exchange(gateway, LIVE + head + chunks + LIVE, size)

    assert statuses(responses) == [200, 400]
    assert responses[1].headers["connection"] == "close"


async def test_change_whose_needless_body_cannot_be_parsed_is_answered_truthfully(
    shared_client: httpx.AsyncClient,
) -> None:
    path = (await shared_client.post("/notes", json=NOTE)).headers["location"]
    deletion = b"DELETE %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n" % path.encode()

    [response] = await exchange(shared_client, deletion)

    assert (response.status, response.headers["connection"]) == (204, "close")
    assert (await shared_client.get(path)).status_code == 404


async def test_request_that_was_refused_before_its_body_was_asked_for_ends_the_connection(
    gateway: httpx.AsyncClient,
) -> None:
    request = post(b"Expect: 100-continue", b"Content-Type: text/plain").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    [response] = await exchange(gateway, request)

    assert (response.status, response.headers["connection"]) == (415, "close")


async def test_idle_connection_is_kept_as_long_as_the_setting_says(gateway: httpx.AsyncClient) -> None:
    async with connected(gateway) as (stream, writer):
        writer.write(LIVE)
        await stream.readuntil(b"}")
        await asyncio.sleep(6)  # uvicorn's own limit is 5 s

        writer.write(LAST)

        assert (await stream.read()).startswith(b"HTTP/1.1 200 ")


async def test_connection_that_was_idle_for_longer_is_closed() -> None:
    async with (
        harness.gateway(harness.settings_without_servers(trust_network=True, keep_alive_seconds=1)) as client,
        connected(client) as (stream, writer),
    ):
        writer.write(LIVE)
        await stream.readuntil(b"}")

        assert await stream.read() == b""


async def test_connection_that_begins_a_request_and_does_not_end_it_is_closed(
    gateway: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_SECONDS", 0.3)
    async with connected(gateway) as (stream, writer):
        writer.write(LIVE)
        await stream.readuntil(b"}")
        writer.write(b"GE")

        assert await stream.read() == b""


async def test_target_may_be_absolute(gateway: httpx.AsyncClient) -> None:
    targets = [b"http://localhost/health/live", b"https://LOCALHOST:8000/health/live"]
    requests = [b"GET %b HTTP/1.1\r\nHost: localhost:8000\r\n\r\n" % target for target in targets]

    assert statuses(await exchange(gateway, b"".join(requests) + LAST)) == [200, 200, 200]


async def test_response_to_a_body_that_is_still_coming_reaches_the_client(gateway: httpx.AsyncClient) -> None:
    body = b"a" * 10 * MEGABYTE
    head = b"POST /notes HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(5):
        async with connected(gateway) as (stream, writer):
            writer.write(head + body)
            await writer.drain()  # raises where the gateway has closed its end

            response = await stream.read()

        assert response.startswith(b"HTTP/1.1 413 ")


@needs_proc
async def test_head_of_very_many_headers_is_small(process: GatewayProcess) -> None:
    head = b"GET /nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n" + b"a:b\r\n" * 15_000 + b"\r\n"
    slow = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
    before = memory_bytes(process.pid)
    for _ in range(5):
        async with connected(process.client) as (_, writer):
            writer.write(slow + head * 9)
            await writer.drain()
            await asyncio.sleep(0.2)

    assert memory_bytes(process.pid) - before < 8 * MEGABYTE


async def test_client_that_hangs_up_on_several_requests_is_no_bug(
    shared_client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        async with connected(shared_client) as (_, writer):
            writer.write(post() + LIVE + post())
            await writer.drain()
            writer.transport.abort()
    await asyncio.sleep(0.5)

    assert "bug: " not in caplog.text


async def test_write_that_takes_longer_than_an_idle_connection_is_answered(gateway_settings: GatewaySettings) -> None:
    settings = gateway_settings.model_copy(update={"keep_alive_seconds": 1})  # without a worker
    refused_early = post(body=b"abcde", target=b"/nope")
    async with harness.gateway(settings) as client, connected(client) as (stream, writer):
        writer.write(refused_early[:-5])
        await stream.readuntil(b"}")
        writer.write(refused_early[-5:] + post(b"Prefer: wait=3", b"Connection: close"))

        assert (await stream.read()).startswith(b"HTTP/1.1 202 ")


async def test_client_whose_requests_follow_closely_is_not_cut_off(
    gateway: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_SECONDS", 2.5)
    monkeypatch.setattr(protocol, "WATCH_SECONDS", 0.1)
    times = 40
    async with connected(gateway) as (stream, writer):
        writer.write(LIVE[:20])
        for _ in range(times):
            await asyncio.sleep(0.1)
            writer.write(LIVE[20:] + LIVE[:20])
        writer.write(LIVE[20:] + LAST)

        assert (await stream.read()).count(b"HTTP/1.1 200 ") == times + 2


async def test_line_end_after_a_request_does_not_end_an_idle_connection(
    gateway: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "WATCH_SECONDS", 0.1)
    async with connected(gateway) as (stream, writer):
        writer.write(LIVE)
        await stream.readuntil(b"}")
        writer.write(b"\r\n")
        await asyncio.sleep(1)
        writer.write(LAST)

        assert (await stream.read()).startswith(b"HTTP/1.1 200 ")


async def test_expectation_of_http_1_0_is_ignored(shared_client: httpx.AsyncClient) -> None:
    request = post(b"Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")

    async with connected(shared_client) as (stream, writer):
        writer.write(request)

        assert (await stream.read()).startswith(b"HTTP/1.1 201 ")


class Hostile:
    """Generates requests from parts that may be invalid; the effect of each invalid part is known."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - keeps no secret

    def __iter__(self) -> Iterator[tuple[bytes, list[int]]]:
        """Endless: the bytes of some requests with the statuses of their responses; the last closes the connection."""
        while True:
            data, expected = b"", list[int]()
            for _ in range(self._random.randint(1, 4)):
                part, status, ends = self._request()
                data, expected = data + part, [*expected, status]
                if ends:
                    yield data + self._random.choice([b"", LIVE, b"\0" * 50]), expected
                    break
            else:
                yield data + LAST, [*expected, 200]

    def _request(self) -> tuple[bytes, int, bool]:
        """Return a request, the status of its response, and whether it closes the connection."""
        pick = self._random.choice
        match pick(["offer", "refused", "bad chunk", "not JSON", "odd but right", "long"]):
            case "offer":
                offer = (b"Connection: " + pick([b"Upgrade", b"keep-alive, upgrade"]), b"Upgrade: " + pick(OFFERS))
                return post(*offer, chunked=pick([True, False])), 201, False
            case "refused":
                return pick(list(REFUSED.values())), 400, True
            case "bad chunk":
                head = post(chunked=True).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
                return head + pick(list(BROKEN_BODIES.values())), 400, True
            case "not JSON":
                return post(body=pick([LIVE, b"{", b"\xff" * 10, b"[" * 500])), 400, False
            case "odd but right":
                odd = [b"Expect: 100-continue", b"X:", b"X: \xff\xfe", b"TE: trailers", b"Connection: , ,keep-alive"]
                return b"\r\n" * pick([0, 1, 5]) + post(pick(odd) + pick([b"", b" ", b"\t"])), 201, False
            case _:
                return get(b"Long: " + b"a" * pick([40_000, 70_000])), 431, False


CASES = 300


@pytest.mark.parametrize("seed", range(6))
async def test_hostile_requests_have_one_response_each(shared_client: httpx.AsyncClient, seed: int) -> None:
    hostile = iter(Hostile(seed))
    sizes = random.Random(seed)  # noqa: S311 - keeps no secret
    for _ in range(CASES // 6):
        data, expected = next(hostile)
        size = sizes.choice([1, 3, 17, 100, 1000, 1 << 20]) if len(data) < 10_000 else 1 << 20

        assert statuses(await exchange(shared_client, data, size)) == expected, (data[:2000], size)
