"""Bad requests are rejected with a problem that describes the error, before anything is published."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import bearer, forged
from tests.support.canaries import NOTE

JSON = {"content-type": "application/json"}
LIMIT = 64 * 1024
WRITES = [("POST", "/notes"), ("PUT", "/notes/1")]


def note(**members: object) -> bytes:
    return json.dumps(NOTE | members).encode()


INVALID = {
    "empty object": (b"{}", [("/body/title", "missing"), ("/body/description", "missing")]),
    "no title": (b'{"description": ""}', [("/body/title", "missing")]),
    "no description": (b'{"title": ""}', [("/body/description", "missing")]),
    "unknown field": (note(colour="blue"), [("/body/colour", "unknown_field")]),
    "id in the body": (note(id=1), [("/body/id", "unknown_field")]),
    "slash and tilde": (note(**{"a/b~c": 1}), [("/body/a~1b~0c", "unknown_field")]),
    "field without a name": (note(**{"": 1}), [("/body/", "unknown_field")]),
    "title is a number": (note(title=1), [("/body/title", "wrong_type")]),
    "title is null": (note(title=None), [("/body/title", "wrong_type")]),
    "title is a list": (note(title=["Ink"]), [("/body/title", "wrong_type")]),
    "title is an object": (note(title={}), [("/body/title", "wrong_type")]),
    "title is true": (note(title=True), [("/body/title", "wrong_type")]),
    "description is a number": (note(description=1.5), [("/body/description", "wrong_type")]),
    "body is a list": (b"[]", [("/body", "wrong_type")]),
    "body is a list of notes": (b"[" + note() + b"]", [("/body", "wrong_type")]),
    "body is a string": (b'"Ink"', [("/body", "wrong_type")]),
    "body is a number": (b"1", [("/body", "wrong_type")]),
    "body is null": (b"null", [("/body", "wrong_type")]),
    "long title": (note(title="a" * 51), [("/body/title", "too_long")]),
    "long description": (note(description="a" * 201), [("/body/description", "too_long")]),
    "both too long": (
        note(title="a" * 51, description="a" * 201),
        [("/body/title", "too_long"), ("/body/description", "too_long")],
    ),
    "U+0000 in title": (note(title="a\0"), [("/body/title", "invalid_value")]),
    "U+0000 in description": (note(description="\0"), [("/body/description", "invalid_value")]),
    "title is NaN": (b'{"title": NaN, "description": ""}', [("/body/title", "wrong_type")]),
    "body is NaN": (b"NaN", [("/body", "wrong_type")]),
    "title is Infinity": (b'{"title": -Infinity, "description": ""}', [("/body/title", "wrong_type")]),
    "title is a huge number": (b'{"title": 1e999, "description": ""}', [("/body/title", "wrong_type")]),
    "all at once": (
        note(title=1, description="\0", colour="blue"),
        [("/body/title", "wrong_type"), ("/body/description", "invalid_value"), ("/body/colour", "unknown_field")],
    ),
}

NOT_JSON = {
    "empty": b"",
    "white space": b" \n",
    "cut off": b'{"title":',
    "text after the end": note() + b"x",
    "single quotes": b"{'title': 'Ink', 'description': ''}",
    "trailing comma": b'{"title": "Ink", "description": "",}',
    "form": b"title=Ink&description=",
    "lone surrogate": b'{"title": "\\ud800", "description": ""}',
    "lone low surrogate": b'{"title": "\\udc00", "description": ""}',
    "surrogates in the wrong order": b'{"title": "", "description": "\\udc00\\ud800"}',
    "lone surrogate in a name": b'{"title": "", "description": "", "\\ud800": 1}',
    "lone surrogate as bytes": b'{"title": "\xed\xa0\x80", "description": ""}',
    "latin-1": '{"title": "é", "description": ""}'.encode("latin-1"),
    "utf-16": '{"title": "", "description": ""}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + note(),
    "U+0000 bytes": b"\0\0\0",
    "control character": b'{"title": "a\nb", "description": ""}',
    "deeply nested": b"[" * 60_000,
    "deeply nested and closed": b"[" * 30_000 + b"]" * 30_000,
    "deeply nested title": b'{"description": "", "title": ' + b'{"a":' * 10_000,
    "too many digits": b'{"description": "", "title": ' + b"9" * 5000 + b"}",
}

TOO_LARGE = {
    "long description": note(description="a" * LIMIT),
    "one byte too many": note().ljust(LIMIT + 1),
    "deeply nested": b"[" * 100_000,
    "not JSON": b"a" * 10 * LIMIT,
}

NOT_INTEGERS = [
    *("abc", "1.5", "%00", "1%00", "1e3", "0x1", "--1", "true", "%20", "%ff", "1;2", "1,2", "٣", "\uff11", "1%CC%81"),
    *("1_0", "1.0", "+1", "%2B1", "-1", "-0", "01", "00", "%201", "1%20", "%091", "1%0A", "1%0D", "0_1"),
]
BEYOND_64_BITS = [str(2**63), str(2**64 + 1), "1" + "0" * 19, "9" * 1000, "9" * 5000]
NOT_UUIDS = [
    *("x", "1", "{{{0}}}", "urn:uuid:{0}", "{0}%0A", "%20{0}", "{1}", "{0}0", "{0}-", "0x{1}", "{2}"),
    "00000000-0000-4000-8000-00000000000g",
]
"""Spellings of a UUID other than the hyphenated one, which is {0}; {1} lacks hyphens, {2} has them elsewhere."""


SETTINGS = {
    "database_url": "postgresql://nobody:nothing@127.0.0.1:1/nowhere",
    "broker_url": "amqp://nobody:nothing@127.0.0.1:1/",
    "signing_keys": ("a-key-that-is-used-in-the-tests-only",),
    "fingerprint_key": "another-key-that-is-used-in-the-tests-only",
    "publish_timeout_seconds": 0.2,
    "body_limit_bytes": LIMIT,
}


@pytest.fixture(scope="module")
async def gateway() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway without servers, which rejects these requests alone."""
    async with harness.gateway(GatewaySettings.model_validate(SETTINGS | {"auth": "none"})) as client:
        yield client


@pytest.fixture(scope="module")
async def users_gateway() -> AsyncIterator[httpx.AsyncClient]:
    """As `gateway`, where users sign in; the client has an access token."""
    settings = GatewaySettings.model_validate(SETTINGS)
    async with harness.gateway(settings) as client:
        client.headers.update(bearer(forged(settings, 1)))
        yield client


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    problem = response.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert isinstance(problem["title"], str)
    assert isinstance(problem["detail"], str)


def assert_invalid(response: httpx.Response, *errors: tuple[str, str]) -> None:
    """A problem 422 with these errors, each with pointer and code."""
    assert_problem(response, 422, "validation_failed")
    problem: dict[str, Any] = response.json()
    assert [(error["pointer"], error["code"]) for error in problem["errors"]] == list(errors)
    assert all(error["detail"] for error in problem["errors"])


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize(("body", "errors"), INVALID.values(), ids=INVALID.keys())
async def test_invalid_note_is_refused_with_a_pointer_to_each_error(
    gateway: httpx.AsyncClient, method: str, path: str, body: bytes, errors: list[tuple[str, str]]
) -> None:
    assert_invalid(await gateway.request(method, path, content=body, headers=JSON), *errors)


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_body_that_is_not_json_is_refused(
    gateway: httpx.AsyncClient, method: str, path: str, body: bytes
) -> None:
    assert_problem(await gateway.request(method, path, content=body, headers=JSON), 400, "invalid_json")


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize("body", TOO_LARGE.values(), ids=TOO_LARGE.keys())
async def test_body_that_says_it_is_too_large_is_refused(
    gateway: httpx.AsyncClient, method: str, path: str, body: bytes
) -> None:
    assert_problem(await gateway.request(method, path, content=body, headers=JSON), 413, "body_too_large")


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize("body", TOO_LARGE.values(), ids=TOO_LARGE.keys())
async def test_body_that_turns_out_too_large_is_refused(
    gateway: httpx.AsyncClient, method: str, path: str, body: bytes
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 8192):
            yield body[start : start + 8192]

    assert_problem(await gateway.request(method, path, content=chunks(), headers=JSON), 413, "body_too_large")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_headers_that_are_too_large_are_refused(gateway: httpx.AsyncClient, method: str) -> None:
    tags = {"If-Match": ",".join(['"1"'] * 10_000)}

    assert_problem(await gateway.request(method, "/notes/1", headers=tags), 431, "headers_too_large")


async def test_body_that_never_ends_is_refused_when_it_is_too_large(gateway: httpx.AsyncClient) -> None:
    stream, writer = await asyncio.open_connection(gateway.base_url.host, gateway.base_url.port)
    writer.write(
        b"POST /notes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    writer.write(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
    for _ in range(LIMIT // 0x2000):
        writer.write(b"2000\r\n" + b" " * 0x2000 + b"\r\n")

    async with asyncio.timeout(10):
        status_line = await stream.readline()

    writer.close()
    assert status_line.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize(
    "content_types",
    [
        [],
        [""],
        ["text/plain"],
        ["text/json"],
        ["application/x-www-form-urlencoded"],
        ["multipart/form-data; boundary=x"],
        ["application/jsonp"],
        ["application/problem+json"],
        ["application/json; charset=latin-1"],
        ["application/json; charset=utf-16"],
        ["application/json; charset=utf-8-sig"],
        ["application/json; charset=utf-7"],
        ["application/json; charset=nonsense"],
        ["application/json; charset=idna"],
        ["application/json; charset=hex"],
        ["application/json; charset=%00"],
        ["application/json; charset="],
        ['application/json; charset=""'],
        [f"application/json; charset={'x' * 5000}"],
        ["application/json; charset=utf-8; charset=latin-1"],
        ["application/json; profile=x; CHARSET=latin-1"],
        ['application/json; charset="latin\\-1"'],
        ["application/json charset=utf-8"],
        ["application/json; charset"],
        ["application/json; charset = utf-8"],
        ['application/json; profile="x'],
        ["application/json; profile=a b"],
        ["application/json, text/plain"],
        ["application/json; profile=x, text/plain"],
        ["application/json", "text/plain"],
        ["application/json", "application/json"],
        [f"application/json{'; ' * 5000}x"],
    ],
    ids=" and ".join,
)
async def test_body_that_is_not_declared_as_json_is_refused(
    gateway: httpx.AsyncClient, method: str, path: str, content_types: list[str]
) -> None:
    headers = [("content-type", content_type) for content_type in content_types]

    response = await gateway.request(method, path, content=note(), headers=headers)

    assert_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    [
        "APPLICATION/JSON",
        "application/json;",
        "application/json ; ;",
        "application/json;charset=UTF-8",
        'application/json; charset="utf-8"',
        'application/json; charset="\\utf-8"',
        *(f"application/json; charset={name}" for name in ("utf8", "UTF8", "Utf_8", "u8", "utf", "cp65001")),
        "application/json; profile=x",
        "application/json; odata.metadata=minimal; v=1.0; charset=utf8",
        'application/json; profile="https://schema.example/a;charset=latin-1, \\"b"; charset=utf-8',
        "application/json; charset=utf-8; charset=UTF8",
    ],
)
async def test_every_spelling_of_json_is_read(gateway: httpx.AsyncClient, content_type: str) -> None:
    response = await gateway.post("/notes", content=b"{}", headers={"content-type": content_type})

    assert_problem(response, 422, "validation_failed")


WITH_A_BODY = [
    *(("POST", path) for path in ("/notes", "/notes/batch", "/users", "/auth/tokens", "/auth/token")),
    *(("PUT", "/notes/1"), ("PATCH", "/notes/1"), ("PATCH", "/users/me")),
]


@pytest.mark.parametrize(("method", "path"), WITH_A_BODY)
@pytest.mark.parametrize(
    "codings", [["gzip"], ["GZIP"], ["br"], ["identity, gzip"], ["gzip, gzip"], ["identity", "zstd"], ["x"]], ids=str
)
async def test_compressed_body_is_refused_with_the_codings_there_are(
    users_gateway: httpx.AsyncClient, method: str, path: str, codings: list[str]
) -> None:
    form = path == "/auth/token"
    content_type = "application/x-www-form-urlencoded" if form else "application/json"
    content = gzip.compress(b"username=Ada&password=secret" if form else note())
    headers = [("Content-Type", content_type), *(("Content-Encoding", coding) for coding in codings)]

    response = await users_gateway.request(method, path, content=content, headers=headers)

    assert_problem(response, 415, "unsupported_media_type")
    assert response.headers["accept-encoding"] == "identity"
    assert "accept-patch" not in response.headers


@pytest.mark.parametrize("coding", ["identity", "Identity", "", "identity, identity", ",identity"])
async def test_unencoded_body_may_say_so(gateway: httpx.AsyncClient, coding: str) -> None:
    response = await gateway.post("/notes", content=b"{}", headers=JSON | {"Content-Encoding": coding})

    assert_problem(response, 422, "validation_failed")


@pytest.mark.parametrize("text", ["%ff", "%C3", "a%80b", "%C0%80", "%ED%A0%80", "%F5%80%80%80", "a%C3&b%A9"])
async def test_bytes_of_a_query_that_are_no_utf_8_are_refused(gateway: httpx.AsyncClient, text: str) -> None:
    for request, name in (
        ("GET /notes?limit=1&title_prefix={0}", "title_prefix"),
        ("GET /notes/search?q={0}", "q"),
        ("GET /notes?limit={0}", "limit"),
        ("GET /notes/1?colour={0}", "colour"),
        ("DELETE /notes/1?{0}=1", None),
    ):
        response = await gateway.request(*request.format(text).split())

        assert_problem(response, 422, "validation_failed")
        errors = response.json()["errors"]
        assert {error["code"] for error in errors} == {"invalid_value"}
        assert errors[0]["pointer"] == f"/query/{name}" if name else "\ufffd" in errors[0]["pointer"]


@pytest.mark.parametrize("text", ["é", "\xff", "%C3\xa9"])
async def test_target_with_bytes_beyond_ascii_is_refused(gateway: httpx.AsyncClient, text: str) -> None:
    for target in (f"/notes?title_prefix={text}", f"/notes/1{text}"):
        stream, writer = await asyncio.open_connection(gateway.base_url.host, gateway.base_url.port)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1"))
        async with asyncio.timeout(10):
            response = await stream.read()
        writer.close()

        assert response.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("note_id", NOT_INTEGERS)
async def test_id_that_is_no_integer_is_refused(gateway: httpx.AsyncClient, method: str, note_id: str) -> None:
    body = NOTE if method in ("PUT", "PATCH") else None

    response = await gateway.request(method, f"/notes/{note_id}", json=body)

    assert_invalid(response, ("/path/note_id", "not_an_integer"))


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("note_id", BEYOND_64_BITS, ids=lambda note_id: note_id[:20])
async def test_id_beyond_64_bits_is_refused(gateway: httpx.AsyncClient, method: str, note_id: str) -> None:
    body = NOTE if method == "PUT" else None

    response = await gateway.request(method, f"/notes/{note_id}", json=body)

    assert_invalid(response, ("/path/note_id", "out_of_range"))


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("spelling", NOT_UUIDS)
async def test_token_id_in_another_spelling_is_refused(
    users_gateway: httpx.AsyncClient, method: str, spelling: str
) -> None:
    token_id = UUID("8e03978e-40d5-43dd-bc93-6894a57f9324")
    spelt = spelling.format(token_id, token_id.hex, f"{token_id.hex[:4]}-{token_id.hex[4:]}")

    assert_invalid(await users_gateway.request(method, f"/auth/tokens/{spelt}"), ("/path/token_id", "invalid_value"))


@pytest.mark.parametrize("days", [True, False, "5", 5.0, 5.5, "1_0", None, [], 10**30, "NaN"])
async def test_days_that_are_no_json_integer_are_refused(users_gateway: httpx.AsyncClient, days: object) -> None:
    body = {"name": "script", "scopes": ["notes:read"], "expires_in_days": days}

    response = await users_gateway.post("/auth/tokens", json=body)

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == ["/body/expires_in_days"]


@pytest.mark.parametrize("name", ["skip", "limit"])
@pytest.mark.parametrize(
    "value",
    [
        *("", "abc", "1.5", "1e3", "null", "%00", "1,2", "-1", "+1", "%2B1", "01", "1_0", "1.0", "%201", "1+", "1%0A"),
        *("%D9%A3", "%EF%BC%91", "true"),
    ],
)
async def test_page_that_is_no_integer_is_refused(gateway: httpx.AsyncClient, name: str, value: str) -> None:
    assert_invalid(await gateway.get(f"/notes?{name}={value}"), (f"/query/{name}", "not_an_integer"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("skip", str(2**63)),
        ("skip", "9" * 5000),
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", str(2**63)),
        ("limit", "9" * 5000),
    ],
    ids=lambda value: value[:20],
)
async def test_page_out_of_range_is_refused(gateway: httpx.AsyncClient, name: str, value: str) -> None:
    assert_invalid(await gateway.get(f"/notes?{name}={value}"), (f"/query/{name}", "out_of_range"))


async def test_every_wrong_parameter_is_named(gateway: httpx.AsyncClient) -> None:
    response = await gateway.get("/notes?skip=9223372036854775808&limit=x")

    assert_invalid(response, ("/query/skip", "out_of_range"), ("/query/limit", "not_an_integer"))


@pytest.mark.parametrize("token", ["x", "%00", "%ff", "a.b", "WzFd.AAAA", "x" * 5000, "é", "🖋"])
async def test_unsigned_command_url_is_not_found(gateway: httpx.AsyncClient, token: str) -> None:
    assert_problem(await gateway.get(f"/commands/{token}"), 404, "command_not_found")


async def test_command_url_in_another_spelling_is_not_found(shared_client: httpx.AsyncClient) -> None:
    accepted = await shared_client.post("/notes", json=NOTE, headers={"Prefer": "respond-async"})
    url = accepted.headers["location"]
    same_bytes = url[:-1] + chr(ord(url[-1]) + 1)  # the last character has two bits that base64 does not use

    assert (await shared_client.get(url)).status_code == 200
    for other in (
        f"{url}=",
        f"{url}%20",
        f"{url}%0A",
        f"{url}!",
        same_bytes,
        url.replace(".", "=."),
        f"{url}.",
    ):
        assert_problem(await shared_client.get(other), 404, "command_not_found")


async def test_refused_requests_write_nothing(client: httpx.AsyncClient, database: Any) -> None:
    first = (await client.post("/notes", json=NOTE)).json()
    bodies = [body for body, _ in INVALID.values()] + [*NOT_JSON.values(), *TOO_LARGE.values()]

    for body in bodies:
        for method, path in ("POST", "/notes"), ("PUT", f"/notes/{first['id']}"):
            assert (await client.request(method, path, content=body, headers=JSON)).is_client_error
    for note_id in NOT_INTEGERS + BEYOND_64_BITS:
        assert (await client.delete(f"/notes/{note_id}")).is_client_error

    # An owner's writes are applied in order: had one of those been published, it would be visible by now.
    last = (await client.post("/notes", json=NOTE)).json()
    assert (await client.get("/notes")).json() == [first, last]
    assert await database.fetchval("select count(*) from commands") == 2


async def test_of_a_member_that_comes_twice_the_last_counts(client: httpx.AsyncClient) -> None:
    body = b'{"title": "Ink", "title": "Pen", "description": ""}'

    created = await client.post("/notes", content=body, headers=JSON)

    assert (created.status_code, created.json()["title"]) == (201, "Pen")
