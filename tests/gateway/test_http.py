"""Rules for every path: slashes, HEAD, 405, 404; and how lists are bounded and measured."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import httpx
import pytest
from sqlalchemy import make_url
from uuid_utils.compat import uuid7

from dev.backend import Services
from gateway.settings import GatewaySettings
from gateway.writes.command_urls import CommandUrls
from shared.contracts import DeleteNote, NoteTarget
from shared.tables import IMPLICIT_OWNER
from tests.support import harness
from tests.support.harness import lasting_headers
from worker.settings import WorkerSettings

NOTES = 103
ROLE = "inkwell_gateway"
PATHS = ["/notes", "/notes/2", "command", "/health/live", "/health/ready", "/openapi.json", "/docs"]
NOT_FOUND_PATHS = [
    "/",
    "/nope",
    "/notes//",
    "/notes%2F",
    "/health%2flive",
    "//health/live",
    "/notes/1/2",
    "/Notes",
    "/commands",
    "/health",
]
ALLOWED = {
    "/notes": {"GET", "HEAD", "POST"},
    "/notes/2": {"GET", "HEAD", "PUT", "PATCH", "DELETE"},
    "command": {"GET", "HEAD"},
    "/health/live": {"GET", "HEAD"},
    "/health/ready": {"GET", "HEAD"},
    "/openapi.json": {"GET", "HEAD"},
    "/docs": {"GET", "HEAD"},
}


@pytest.fixture(scope="module")
async def settings(servers: Services, template: str) -> AsyncIterator[GatewaySettings]:
    """A gateway that only reads: on a database with notes in no order, and with its broker down."""
    name = f"inkwell_test_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(servers.database_url)
    await admin.execute(f"create database {name} template {template}")
    url = make_url(servers.database_url).set(database=name)
    await insert_notes(url.render_as_string(hide_password=False))
    yield GatewaySettings.model_validate(
        {
            "database_url": url.set(username=ROLE, password=ROLE).render_as_string(hide_password=False),
            "broker_url": "amqp://guest:guest@127.0.0.1:1/",
            "signing_keys": ("a-key-that-is-used-in-the-tests-only",),
            "fingerprint_key": "another-key-that-is-used-in-the-tests-only",
            "auth": "none",
        }
    )
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


async def insert_notes(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "insert into notes (id, owner_id, title, description, created_date, updated_date, version)"
        " overriding system value"
        " select id, $1, 'Note ' || id, '', now(), now(), 1 from generate_series(1, $2) id order by id * 37 % 103",
        IMPLICIT_OWNER,
        NOTES,
    )
    await connection.close()


@pytest.fixture(scope="module")
async def reader(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    async with harness.gateway(settings) as client:
        yield client


@pytest.fixture
def path(request: pytest.FixtureRequest, settings: GatewaySettings) -> str:
    """The path with its parameter, or a command's URL for `command`."""
    name: str = request.param
    return command_url(settings) if name == "command" else name


def command_url(settings: GatewaySettings) -> str:
    command = DeleteNote(
        id=uuid7(),
        time=datetime.now(UTC),
        owner=IMPLICIT_OWNER,
        credentials_version=1,
        fingerprint="",
        attempt_id=uuid4(),
        data=NoteTarget(note_id=1),
    )
    return CommandUrls(settings).url(command, confirmed=True)


@pytest.mark.parametrize("path", PATHS, indirect=True)
async def test_trailing_slash_makes_no_difference(reader: httpx.AsyncClient, path: str) -> None:
    without, with_slash = await reader.get(path), await reader.get(path + "/")

    assert without.status_code == 200
    assert (with_slash.status_code, with_slash.content) == (200, without.content)
    assert lasting_headers(with_slash) == lasting_headers(without)


async def test_trailing_slash_keeps_the_query(reader: httpx.AsyncClient) -> None:
    assert (await reader.get("/notes/?skip=4&limit=2")).text == (await reader.get("/notes?skip=4&limit=2")).text


@pytest.mark.parametrize("slash", ["", "/"])
async def test_writes_need_no_trailing_slash_and_mind_none(client: httpx.AsyncClient, slash: str) -> None:
    note = {"title": "Ink", "description": ""}
    created = await client.post(f"/notes{slash}", json=note)
    one = f"{created.headers['location']}{slash}"

    statuses = [created, await client.put(one, json=note), await client.delete(one)]

    assert [response.status_code for response in statuses] == [201, 200, 204]


@pytest.mark.parametrize("path", [*PATHS, "/notes/999999", "/notes/x", "/nope", "/commands/x"], indirect=True)
async def test_head_is_answered_as_get_without_a_body(reader: httpx.AsyncClient, path: str) -> None:
    get, head = await reader.get(path), await reader.head(path)

    assert head.status_code == get.status_code
    assert head.content == b""
    assert lasting_headers(head) == lasting_headers(get)
    assert int(head.headers["content-length"]) == len(get.content)


async def test_head_sends_no_byte_after_its_headers(reader: httpx.AsyncClient) -> None:
    stream, writer = await asyncio.open_connection(reader.base_url.host, reader.base_url.port)
    writer.write(b"HEAD /notes/2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

    async with asyncio.timeout(10):
        response = await stream.read()

    writer.close()
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(("path", "allowed"), ALLOWED.items(), indirect=["path"])
async def test_method_that_a_path_lacks_is_refused_with_those_it_has(
    reader: httpx.AsyncClient, path: str, allowed: set[str], slash: str
) -> None:
    for method in {"POST", "PUT", "PATCH", "DELETE"} - allowed:
        response = await reader.request(method, path + slash, json={})

        assert_problem(response, 405, "method_not_allowed")
        assert sorted(response.headers["allow"].split(", ")) == sorted(allowed)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", NOT_FOUND_PATHS)
async def test_unknown_path_is_not_found(reader: httpx.AsyncClient, method: str, path: str) -> None:
    assert_problem(await reader.request(method, path), 404, "not_found")


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["title"]
    assert problem["detail"]


async def test_list_of_no_notes_is_empty(gateway_settings: GatewaySettings) -> None:
    async with harness.gateway(gateway_settings) as client:
        response = await client.get("/notes")

    assert (response.status_code, response.text) == (200, "[]")
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("", range(1, 101)),
        ("?limit=1000", range(1, NOTES + 1)),
        ("?limit=1", [1]),
        ("?skip=0&limit=2", [1, 2]),
        ("?skip=2&limit=2", [3, 4]),
        ("?skip=100", range(101, NOTES + 1)),
        ("?skip=103", []),
        ("?skip=9223372036854775807&limit=1000", []),
    ],
)
async def test_list_is_a_page_in_the_order_of_ids(
    reader: httpx.AsyncClient, query: str, ids: range | list[int]
) -> None:
    response = await reader.get(f"/notes{query}")

    assert response.status_code == 200
    assert [note["id"] for note in response.json()] == list(ids)


async def test_list_shows_a_note_as_it_is_shown_alone(reader: httpx.AsyncClient) -> None:
    [listed] = (await reader.get("/notes?skip=4&limit=1")).json()

    assert listed == (await reader.get("/notes/5")).json()


async def test_openapi_states_the_default_limits(reader: httpx.AsyncClient) -> None:
    assert await stated_limits(reader) == [(50, 200), (50, 200)]


async def test_openapi_follows_the_settings(settings: GatewaySettings) -> None:
    other = settings.model_copy(update={"title_max_length": 7, "description_max_length": 11})

    async with harness.gateway(other) as client:
        assert await stated_limits(client) == [(7, 11), (7, 11)]


async def stated_limits(client: httpx.AsyncClient) -> list[tuple[int, int]]:
    """The longest title and description that OpenAPI allows, for creating and for replacing."""
    document = (await client.get("/openapi.json")).json()
    operations = [document["paths"]["/notes"]["post"], document["paths"]["/notes/{note_id}"]["put"]]
    names = [operation["requestBody"]["content"]["application/json"]["schema"]["$ref"] for operation in operations]
    bodies = [document["components"]["schemas"][name.rpartition("/")[2]] for name in names]
    return [tuple(body["properties"][name]["maxLength"] for name in ("title", "description")) for body in bodies]


async def test_limits_count_characters_and_are_exact(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    limits = gateway_settings.model_copy(update={"title_max_length": 3, "description_max_length": 5})
    longest = {"title": "🖋" * 3, "description": "🪶" * 5}

    async with harness.worker(worker_settings), harness.gateway(limits) as client:
        accepted = await client.post("/notes", json=longest)
        assert accepted.status_code == 201
        assert accepted.json() | longest == accepted.json()

        for method, path in ("POST", "/notes"), ("PUT", accepted.headers["location"]):
            refused = await client.request(method, path, json={"title": "🖋" * 4, "description": "🪶" * 6})
            assert_problem(refused, 422, "validation_failed")
            errors = [(error["pointer"], error["code"]) for error in refused.json()["errors"]]
            assert errors == [("/body/title", "too_long"), ("/body/description", "too_long")]


async def test_refusal_of_a_long_text_states_the_limit_in_characters(reader: httpx.AsyncClient) -> None:
    refused = await reader.post("/notes", json={"title": "a" * 51, "description": ""})

    [error] = refused.json()["errors"]
    assert "50 characters" in error["detail"]
