"""Entity tags and conditions: reads that save a body, and changes of exactly the version that was read."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.canaries import NOTE
from tests.support.harness import decided
from worker.settings import WorkerSettings

NEW = NOTE | {"title": "Pencil"}
CHANGES: list[tuple[str, Any]] = [("PUT", NEW), ("PATCH", {"title": "Pen"}), ("DELETE", None)]
MALFORMED = ["", ",", "1", '"1', "'1'", 'w/"1"', 'W/ "1"', '"1" "2"', '"1""2"', '"1";"2"', '*, "1"', "**", '"a b"']
CODINGS = ["gzip", "br", "zstd", "deflate"]
TAGS_OF_VERSION_1 = [
    *('"1"', '"0", "1"', '"1","x"', ',"1",,', '"\xe9", "1"', "*", 'W/"1"', 'W/"0", W/"1"', 'W/"2","1"'),
    *(f'"1-{coding}"' for coding in CODINGS),
    *('W/"1-gzip"', '"0", "1-br"', '"1--gzip"'),
]
OTHER_TAGS = [
    *('"2"', '"01"', '"1.0"', '"-1"', '""', '"x"', '"*"', f'"{"9" * 30}"', '"²"', 'W/"2"', '"2-gzip"', 'W/"2-gzip"'),
    *('"1-"', '"1-x"', '"1-GZIP"', '"1gzip"', '"1---gzip"', '"-gzip"', '"1-gzip-"', '"1-gzip-gzip"'),
]


def conditional(name: str, *values: str) -> list[tuple[bytes, bytes]]:
    """A header line for each value."""
    return [(name.encode(), value.encode("latin-1")) for value in values]


def assert_outdated(response: httpx.Response, tag: str = '"1"') -> None:
    """412 with the current tag."""
    assert (response.status_code, response.headers["etag"]) == (412, tag)
    assert response.json()["code"] == "precondition_failed"


def assert_malformed(response: httpx.Response, name: str) -> None:
    assert (response.status_code, response.json()["code"]) == (400, "invalid_header")
    assert response.json()["errors"][0]["pointer"] == f"/header/{name.lower()}"


async def test_every_response_with_a_note_has_the_tag_of_its_version(shared_client: httpx.AsyncClient) -> None:
    created = await shared_client.post("/notes", json=NOTE)
    path = created.headers["location"]
    replaced = await shared_client.put(path, json=NEW)
    patched = await shared_client.patch(path, json={"title": "Pen"})
    read, head = await shared_client.get(path), await shared_client.head(path)

    responses = (created, replaced, patched, read, head)
    assert [response.headers["etag"] for response in responses] == ['"1"', '"2"', '"3"', '"3"', '"3"']


@pytest.mark.parametrize(("method", "body"), CHANGES)
@pytest.mark.parametrize("tags", TAGS_OF_VERSION_1)
async def test_change_of_the_version_that_was_seen_is_applied(
    shared_client: httpx.AsyncClient, path: str, method: str, body: Any, tags: str
) -> None:
    assert (await shared_client.request(method, path, json=body, headers=conditional("If-Match", tags))).is_success


@pytest.mark.parametrize(("method", "body"), CHANGES)
@pytest.mark.parametrize("tags", OTHER_TAGS)
async def test_change_of_another_version_is_refused_and_has_no_effect(
    shared_client: httpx.AsyncClient, path: str, method: str, body: Any, tags: str
) -> None:
    assert_outdated(await shared_client.request(method, path, json=body, headers=conditional("If-Match", tags)))
    assert (await shared_client.get(path)).json()["version"] == 1


@pytest.mark.parametrize(("method", "body"), CHANGES)
@pytest.mark.parametrize("tags", TAGS_OF_VERSION_1)
async def test_change_unless_it_is_this_version_is_refused_and_has_no_effect(
    shared_client: httpx.AsyncClient, path: str, method: str, body: Any, tags: str
) -> None:
    assert_outdated(await shared_client.request(method, path, json=body, headers=conditional("If-None-Match", tags)))
    assert (await shared_client.get(path)).json()["version"] == 1


@pytest.mark.parametrize(("method", "body"), CHANGES)
async def test_change_unless_it_is_another_version_is_applied(
    shared_client: httpx.AsyncClient, path: str, method: str, body: Any
) -> None:
    headers = conditional("If-None-Match", ", ".join(OTHER_TAGS))

    assert (await shared_client.request(method, path, json=body, headers=headers)).is_success


@pytest.mark.parametrize(("method", "body"), CHANGES)
@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("tags", ["*", '"1"'])
async def test_note_that_does_not_exist_is_not_found_whatever_the_condition(
    shared_client: httpx.AsyncClient, method: str, body: Any, name: str, tags: str
) -> None:
    response = await shared_client.request(method, "/notes/999999", json=body, headers=conditional(name, tags))

    assert (response.status_code, response.json()["code"]) == (404, "note_not_found")
    assert "etag" not in response.headers


async def test_conditions_in_several_lines_are_one_list(shared_client: httpx.AsyncClient, path: str) -> None:
    matching = conditional("If-Match", '"8"', '"1"')

    assert (await shared_client.put(path, json=NEW, headers=matching)).status_code == 200
    assert_outdated(await shared_client.put(path, json=NEW, headers=matching), '"2"')


async def test_both_conditions_must_hold(shared_client: httpx.AsyncClient, path: str) -> None:
    both = conditional("If-Match", '"1"') + conditional("If-None-Match", '"1"')

    assert_outdated(await shared_client.put(path, json=NOTE, headers=both))


@pytest.mark.parametrize(("method", "body"), [("GET", None), *CHANGES])
@pytest.mark.parametrize("tags", MALFORMED)
async def test_malformed_condition_is_refused(
    shared_client: httpx.AsyncClient, path: str, method: str, body: Any, tags: str
) -> None:
    for name in ("If-None-Match",) if method == "GET" else ("If-Match", "If-None-Match"):
        refused = await shared_client.request(method, path, json=body, headers=conditional(name, tags))

        assert_malformed(refused, name)
    assert (await shared_client.get(path)).json()["version"] == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("tags", TAGS_OF_VERSION_1)
async def test_note_that_the_client_has_is_not_sent_again(
    shared_client: httpx.AsyncClient, path: str, method: str, tags: str
) -> None:
    response = await shared_client.request(method, path, headers=conditional("If-None-Match", tags))

    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", '"1"')
    assert not {"content-type", "content-length"} & set(response.headers)


@pytest.mark.parametrize("tags", OTHER_TAGS)
async def test_note_in_another_version_is_sent(shared_client: httpx.AsyncClient, path: str, tags: str) -> None:
    response = await shared_client.get(path, headers=conditional("If-None-Match", tags))

    assert (response.status_code, response.json()["title"]) == (200, "Ink")


async def test_note_that_does_not_exist_is_not_found_whatever_the_client_has(shared_client: httpx.AsyncClient) -> None:
    assert (await shared_client.get("/notes/999999", headers=conditional("If-None-Match", "*"))).status_code == 404


async def test_list_is_sent_again_once_it_has_changed(client: httpx.AsyncClient) -> None:
    path = (await client.post("/notes", json=NOTE)).headers["location"]
    tags = {(await client.get("/notes")).headers["etag"]}

    async def is_known() -> bool:
        """Whether the list is new to the client, who then remembers it."""
        response = await client.get("/notes", headers=conditional("If-None-Match", ", ".join(tags)))
        known = response.headers["etag"] in tags
        tags.add(response.headers["etag"])
        assert response.status_code == (304 if known else 200)
        return known

    assert await is_known()
    await client.put(path, json=NEW)
    assert not await is_known()
    await client.put(path, json=NEW)
    assert await is_known()
    await client.post("/notes", json=NOTE)
    assert not await is_known()
    await client.delete(path)
    assert not await is_known()
    assert await is_known()


async def test_list_that_the_client_has_is_not_sent_again(shared_client: httpx.AsyncClient, path: str) -> None:
    first, second = await shared_client.get("/notes?limit=1"), await shared_client.get("/notes?skip=1&limit=1")
    tag = first.headers["etag"]

    assert path
    assert not tag.startswith("W/")
    assert tag != second.headers["etag"]
    suffixed = [f'{tag[:-1]}-{coding}"' for coding in CODINGS]
    for tags in (tag, f"W/{tag}", f'"x", {tag}', "*", *suffixed):
        response = await shared_client.get("/notes?limit=1", headers=conditional("If-None-Match", tags))
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", tag)


async def test_of_changes_of_one_version_in_one_batch_the_first_is_applied(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.gateway(gateway_settings) as client:
        async with harness.worker(worker_settings):
            path = (await client.post("/notes", json=NOTE)).headers["location"]
        headers = {"If-Match": '"1"', "Prefer": "respond-async"}
        requests = [*CHANGES[:2], ("DELETE", None), ("PUT", NOTE)]
        urls = [
            (await client.request(method, path, json=body, headers=headers)).headers["location"]
            for method, body in requests
        ]
        async with harness.worker(worker_settings):
            states = [(await decided(client, url))["answer"] for url in urls]

    assert [(state["status"], state["headers"]["ETag"]) for state in states] == [(200, '"2"')] + [(412, '"2"')] * 3


@pytest.fixture(scope="module")
async def strict() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway without servers that demands preconditions."""
    settings = GatewaySettings.model_validate(
        {
            "database_url": "postgresql://nobody:nothing@127.0.0.1:1/nowhere",
            "broker_url": "amqp://nobody:nothing@127.0.0.1:1/",
            "signing_keys": ("a-key-that-is-used-in-the-tests-only",),
            "fingerprint_key": "another-key-that-is-used-in-the-tests-only",
            "auth": "none",
            "publish_timeout_seconds": 0.1,
            "require_preconditions": True,
        }
    )
    async with harness.gateway(settings) as client:
        yield client


@pytest.mark.parametrize(("method", "body"), CHANGES)
@pytest.mark.parametrize("condition", [{}, {"If-None-Match": '"1"'}, {"If-None-Match": "*"}])
async def test_change_without_the_version_is_refused_where_it_is_demanded(
    strict: httpx.AsyncClient, method: str, body: Any, condition: dict[str, str]
) -> None:
    refused = await strict.request(method, "/notes/1", json=body, headers=condition)

    assert (refused.status_code, refused.json()["code"]) == (428, "precondition_required")


@pytest.mark.parametrize(("method", "body"), CHANGES)
@pytest.mark.parametrize("tags", ['"1"', "*"])
async def test_change_with_the_version_passes_where_it_is_demanded(
    strict: httpx.AsyncClient, method: str, body: Any, tags: str
) -> None:
    passed = await strict.request(method, "/notes/1", json=body, headers={"If-Match": tags})

    assert passed.json()["code"] == "not_accepted"  # the only error is the missing broker


async def test_creation_needs_no_version_where_it_is_demanded(strict: httpx.AsyncClient) -> None:
    assert (await strict.post("/notes", json=NOTE)).json()["code"] == "not_accepted"


async def test_openapi_says_whether_the_version_is_demanded(
    strict: httpx.AsyncClient, shared_client: httpx.AsyncClient
) -> None:
    async def required(client: httpx.AsyncClient) -> list[bool]:
        operations = (await client.get("/openapi.json")).json()["paths"]["/notes/{note_id}"]
        parameters = [each for how in ("put", "patch", "delete") for each in operations[how]["parameters"]]
        return [each["required"] for each in parameters if each["name"] == "If-Match"]

    assert await required(strict) == [True] * 3
    assert await required(shared_client) == [False] * 3
