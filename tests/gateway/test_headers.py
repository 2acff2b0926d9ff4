"""The headers of every response: security, caching, and cross-origin access."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.reads.queries import Queries
from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.canaries import NOTE

SECURITY = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
RESPONSES: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "list": (200, "GET", "/notes", {}),
    "created": (201, "POST", "/notes", {"json": NOTE}),
    "accepted": (202, "POST", "/notes", {"json": NOTE, "headers": {"Prefer": "respond-async"}}),
    "not JSON": (400, "POST", "/notes", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
    "no such note": (404, "GET", "/notes/999999", {}),
    "no such path": (404, "GET", "/nope", {}),
    "no such method": (405, "PUT", "/notes", {}),
    "large body": (413, "POST", "/notes", {"content": b"a" * 100_000}),
    "long URL": (414, "GET", "/notes", {"params": {"q": "a" * 10_000}}),
    "other media type": (415, "POST", "/notes", {"content": b"a"}),
    "wrong parameter": (422, "GET", "/notes?limit=0", {}),
    "large headers": (431, "GET", "/notes", {"headers": {"Long": "a" * 40_000}}),
    "health": (200, "GET", "/health/ready", {}),
    "OpenAPI": (200, "GET", "/openapi.json", {}),
}
PAGE = "https://app.example"
BUG = RuntimeError("a bug for the test")


def shared(response: httpx.Response) -> dict[str, list[str]]:
    """The security headers of a response."""
    return {name: response.headers.get_list(name) for name in SECURITY}


ONCE = {name: [value] for name, value in SECURITY.items()}


@pytest.mark.parametrize(("status", "method", "path", "request_"), RESPONSES.values(), ids=RESPONSES)
async def test_response_has_the_security_headers(
    shared_client: httpx.AsyncClient, status: int, method: str, path: str, request_: dict[str, Any]
) -> None:
    response = await shared_client.request(method, path, **request_)

    assert response.status_code == status
    assert shared(response) == ONCE
    assert len(response.headers.get_list("x-request-id")) == 1
    assert "strict-transport-security" not in response.headers


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
async def test_what_is_not_http_is_answered_with_a_problem_and_the_security_headers(
    shared_client: httpx.AsyncClient, data: bytes
) -> None:
    stream, writer = await asyncio.open_connection(shared_client.base_url.host, shared_client.base_url.port)
    writer.write(data)

    async with asyncio.timeout(10):
        head, _, body = (await stream.read()).decode().partition("\r\n\r\n")

    writer.close()
    status_line, *lines = head.split("\r\n")
    assert status_line == "HTTP/1.1 400 Bad Request"
    assert {f"{name}: {value}" for name, value in SECURITY.items()} <= set(lines)
    assert {"cache-control: no-store", f"content-length: {len(body)}", "connection: close"} <= set(lines)
    assert '"code":"bad_request"' in body


async def test_only_a_response_over_https_demands_https(shared_client: httpx.AsyncClient) -> None:
    over_https = await shared_client.get("/notes", headers={"X-Forwarded-Proto": "https"})
    over_http = await shared_client.get("/notes", headers={"X-Forwarded-Proto": "http"})

    assert over_https.headers["strict-transport-security"] == "max-age=31536000"
    assert "strict-transport-security" not in over_http.headers


async def test_a_reader_may_keep_what_has_a_tag_and_asks_again(shared_client: httpx.AsyncClient) -> None:
    path = (await shared_client.post("/notes", json=NOTE)).headers["location"]

    for method in ("GET", "HEAD"):
        read = await shared_client.request(method, path)

        assert read.headers["cache-control"] == "private, no-cache"
        assert read.headers["vary"] == "Authorization"


async def test_not_modified_says_of_caching_what_the_whole_response_says(shared_client: httpx.AsyncClient) -> None:
    path = (await shared_client.post("/notes", json=NOTE)).headers["location"]
    whole = await shared_client.get(path)

    unchanged = await shared_client.get(path, headers={"If-None-Match": whole.headers["etag"]})

    assert unchanged.status_code == 304
    for name in ("etag", "cache-control", "vary"):
        assert unchanged.headers[name] == whole.headers[name]


@pytest.mark.parametrize("case", sorted(RESPONSES.keys() - {"list"}))
async def test_nothing_else_is_stored(shared_client: httpx.AsyncClient, case: str) -> None:
    _, method, path, request_ = RESPONSES[case]

    response = await shared_client.request(method, path, **request_)

    assert response.headers["cache-control"] == "no-store"


async def test_responses_that_preferences_change_say_so(shared_client: httpx.AsyncClient) -> None:
    accepted = await shared_client.post("/notes", json=NOTE, headers={"Prefer": "respond-async"})
    polled = await shared_client.get(accepted.headers["location"])

    for response in (accepted, polled):
        assert response.headers["vary"] == "Authorization, Prefer"


async def test_page_of_another_origin_gets_no_permission_by_default(shared_client: httpx.AsyncClient) -> None:
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
    asked = await shared_client.options("/notes", headers=preflight)
    response = await shared_client.get("/notes", headers={"Origin": PAGE})

    assert asked.status_code == 405
    for each in (asked, response):
        assert not [name for name in each.headers if name.startswith("access-control-")]


@pytest.fixture(scope="module")
async def open_client() -> AsyncIterator[httpx.AsyncClient]:
    """Settings of a gateway that one other origin may use."""
    async with harness.gateway(harness.settings_without_servers(cors_origins=PAGE)) as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_page_of_a_named_origin_may_send_what_the_api_reads(open_client: httpx.AsyncClient, method: str) -> None:
    wanted = "authorization,content-type,idempotency-key,if-match,if-none-match,prefer,traceparent,x-request-id"
    preflight = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": wanted}

    response = await open_client.options("/notes/1", headers={"Origin": PAGE} | preflight)

    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert method in response.headers["access-control-allow-methods"].split(", ")
    assert set(wanted.split(",")) <= set(response.headers["access-control-allow-headers"].lower().split(", "))
    assert "access-control-allow-credentials" not in response.headers
    assert shared(response) == ONCE


@pytest.mark.parametrize("wanted", ["tracestate, baggage", "sentry-trace,x-requested-with", "x-of-tomorrow"])
async def test_page_of_a_named_origin_may_send_whatever_its_tools_add(
    open_client: httpx.AsyncClient, wanted: str
) -> None:
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}

    response = await open_client.options("/notes", headers={"Origin": PAGE} | preflight)

    assert response.status_code == 200
    assert response.headers["access-control-allow-headers"] == ", ".join(map(str.strip, wanted.split(",")))


@pytest.mark.parametrize(
    "preflight",
    [
        {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"},
        {"Origin": PAGE, "Access-Control-Request-Method": "TRACE"},
    ],
)
async def test_preflight_that_is_refused_is_answered_with_a_problem(
    open_client: httpx.AsyncClient, preflight: dict[str, str]
) -> None:
    response = await open_client.options("/notes", headers=preflight)

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert response.headers["content-type"] == "application/problem+json"
    assert "Origin" in response.headers["vary"]
    assert shared(response) == ONCE


@pytest.mark.parametrize(
    ("status", "path", "headers"),
    [
        (404, "/nope", {}),
        (422, "/notes?limit=0", {}),
        (431, "/notes", {"Long": "a" * 40_000}),
        (503, "/notes", {}),
    ],
)
async def test_page_of_a_named_origin_may_see_the_errors(
    open_client: httpx.AsyncClient, status: int, path: str, headers: dict[str, str]
) -> None:
    response = await open_client.get(path, headers={"Origin": PAGE} | headers)

    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == PAGE
    exposed = set(response.headers["access-control-expose-headers"].split(", "))
    assert {
        "Allow",
        "ETag",
        "Idempotent-Replayed",
        "Location",
        "Preference-Applied",
        "Retry-After",
        "X-Request-ID",
    } <= exposed
    assert "Origin" in response.headers["vary"].split(", ")


async def test_page_of_another_origin_than_the_named_gets_no_permission(open_client: httpx.AsyncClient) -> None:
    response = await open_client.get("/nope", headers={"Origin": f"{PAGE}.evil.example"})

    assert "access-control-allow-origin" not in response.headers
    assert "Origin" in response.headers["vary"].split(", ")


async def test_response_to_a_request_without_an_origin_says_that_another_one_may_differ(
    open_client: httpx.AsyncClient,
) -> None:
    response = await open_client.get("/notes")

    assert "access-control-allow-origin" not in response.headers
    assert "Origin" in ", ".join(response.headers.get_list("vary")).split(", ")


async def test_a_bug_is_answered_as_everything_else(
    open_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_notes(*_: object) -> None:
        raise BUG

    monkeypatch.setattr(Queries, "list_notes", list_notes)

    response = await open_client.get("/notes", headers={"Origin": PAGE})

    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert shared(response) == ONCE
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["access-control-allow-origin"] == PAGE


async def test_documentation_has_headers_of_its_own(shared_client: httpx.AsyncClient) -> None:
    page = await shared_client.get("/docs/")
    script = page.text.partition('<script src="')[2].partition('"')[0]
    loaded = await shared_client.get(script)

    [policy] = page.headers.get_list("content-security-policy")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert loaded.status_code == 200
    assert loaded.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert "vary" not in loaded.headers
    assert loaded.headers["x-content-type-options"] == "nosniff"


async def test_without_documentation_its_paths_do_not_exist(gateway_settings: GatewaySettings) -> None:
    async with harness.gateway(gateway_settings.model_copy(update={"docs": False})) as client:
        for path in ("/docs", "/openapi.json", "/redoc"):
            assert (await client.get(path)).status_code == 404


async def test_request_keeps_its_own_id(shared_client: httpx.AsyncClient) -> None:
    response = await shared_client.get("/nope", headers={"X-Request-ID": "Web-7_f.3"})

    assert response.headers.get_list("x-request-id") == ["Web-7_f.3"]


@pytest.mark.parametrize("unfit", [b"", b"a b", b"a" * 129, "é".encode(), b'x","y', b"<script>"])
async def test_request_with_an_unfit_id_gets_another(shared_client: httpx.AsyncClient, unfit: bytes) -> None:
    headers = {b"X-Request-ID": unfit}
    ids = {(await shared_client.get("/nope", headers=headers)).headers["x-request-id"] for _ in range(2)}

    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
