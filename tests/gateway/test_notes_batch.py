"""Several writes at once: all of them happen, or none."""

from typing import Any

import httpx
import pytest
from asyncpg import Connection, Record

from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import sign_up
from tests.support.canaries import NOTE
from tests.support.harness import decided
from worker.settings import WorkerSettings

CREATE = {"op": "create", **NOTE}


async def batch(client: httpx.AsyncClient, *items: dict[str, Any], **headers: str) -> httpx.Response:
    return await client.post("/notes/batch", json={"items": items}, headers=headers)


async def all_notes(client: httpx.AsyncClient) -> list[tuple[int, str, int]]:
    return [(note["id"], note["title"], note["version"]) for note in (await client.get("/notes")).json()]


@pytest.fixture
async def three(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client of a gateway with the notes 1 to 3."""
    response = await batch(client, CREATE, CREATE, CREATE)
    assert [item["id"] for item in response.json()["items"]] == [1, 2, 3]
    return client


async def test_all_writes_happen_in_their_order(three: httpx.AsyncClient) -> None:
    response = await batch(
        three,
        {"op": "create", "title": "New", "description": ""},
        {"op": "replace", "id": 1, "title": "Replaced", "description": ""},
        {"op": "patch", "id": 1, "title": "Patched"},
        {"op": "delete", "id": 2},
        {"op": "patch", "id": 3, "description": "", "if_match": [1]},
    )

    assert response.status_code == 200
    assert response.json() == {
        "items": [
            {"status": 201, "id": 4, "version": 1},
            {"status": 200, "id": 1, "version": 2},
            {"status": 200, "id": 1, "version": 3},
            {"status": 204, "id": 2, "version": None},
            {"status": 200, "id": 3, "version": 2},
        ]
    }
    assert await all_notes(three) == [(1, "Patched", 3), (3, "Ink", 2), (4, "New", 1)]


async def test_item_that_changes_nothing_has_the_unchanged_version_of_its_note(three: httpx.AsyncClient) -> None:
    response = await batch(
        three,
        {"op": "patch", "id": 1},
        {"op": "replace", "id": 2, **NOTE, "if_match": [1]},
        {"op": "patch", "id": 3, "title": "Pen"},
        {"op": "patch", "id": 3, "title": "Pen"},
    )

    assert [(item["status"], item["version"]) for item in response.json()["items"]] == [
        (200, 1),
        (200, 1),
        (200, 2),
        (200, 2),
    ]


@pytest.mark.parametrize(
    ("bad", "status", "code"),
    [
        ({"op": "delete", "id": 99}, 404, "note_not_found"),
        ({"op": "patch", "id": 1, "title": "b"}, 404, "note_not_found"),
        ({"op": "replace", "id": 2, "title": "b", "description": "", "if_match": [7]}, 412, "precondition_failed"),
        ({"op": "delete", "id": 2, "if_none_match": [1]}, 412, "precondition_failed"),
    ],
)
async def test_one_bad_item_leaves_nothing_behind(
    three: httpx.AsyncClient, bad: dict[str, Any], status: int, code: str
) -> None:
    before = await all_notes(three)

    response = await batch(three, CREATE, {"op": "delete", "id": 1}, bad, CREATE)

    assert response.status_code == status
    assert (response.json()["code"], response.json()["item"]) == (code, 2)
    assert await all_notes(three) == before


async def test_failed_condition_has_the_unchanged_version_of_the_note(three: httpx.AsyncClient) -> None:
    change = {"op": "patch", "id": 1, "title": "b"}

    response = await batch(three, change, change | {"if_match": [1]})

    assert (response.status_code, response.headers["etag"]) == (412, '"1"')


async def test_anothers_note_is_not_found_among_several(users_client: httpx.AsyncClient) -> None:
    ada, bob = await sign_up(users_client), await sign_up(users_client)
    note = (await users_client.post("/notes", json=NOTE, headers=ada.headers)).json()

    response = await batch(users_client, CREATE, {"op": "patch", "id": note["id"], "title": "Mine"}, **bob.headers)

    assert (response.status_code, response.json()["item"]) == (404, 1)
    assert (await users_client.get("/notes", headers=bob.headers)).json() == []


async def test_a_thousand_writes_are_one_command(client: httpx.AsyncClient, database: "Connection[Record]") -> None:
    response = await batch(client, *[CREATE] * 1000)

    assert len(response.json()["items"]) == 1000
    assert await database.fetchval("select count(*) from commands") == 1
    assert await database.fetchval("select count(distinct xmin::text) from notes") == 1


async def test_repeated_key_has_one_effect_and_the_same_response(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "once"}

    first, again = await batch(client, CREATE, CREATE, **key), await batch(client, CREATE, CREATE, **key)
    other = await batch(client, CREATE, **key)

    assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(await all_notes(client)) == 2


async def test_repeated_rejection_names_the_item_again(three: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "once"}

    for _ in range(2):
        response = await batch(three, CREATE, {"op": "delete", "id": 99}, **key)
        assert (response.status_code, response.json()["item"]) == (404, 1)


async def test_preferences_are_those_of_a_single_write(client: httpx.AsyncClient) -> None:
    minimal = await batch(client, CREATE, Prefer="return=minimal")
    later = await batch(client, CREATE, Prefer="respond-async")

    assert (minimal.status_code, minimal.content) == (204, b"")
    assert later.status_code == 202
    state = await decided(client, later.headers["location"])
    assert state["answer"]["status"] == 200
    assert state["answer"]["body"] == {"items": [{"status": 201, "id": 2, "version": 1}]}


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({}, "/body/items", "missing"),
        ({"items": []}, "/body/items", "too_short"),
        ({"items": [CREATE] * 1001}, "/body/items", "too_long"),
        ({"items": "x"}, "/body/items", "wrong_type"),
        ({"items": [CREATE, 1]}, "/body/items/1", "wrong_type"),
        ({"items": [CREATE], "more": 1}, "/body/more", "unknown_field"),
        ({"items": [CREATE, {"op": "eat", "id": 1}]}, "/body/items/1/op", "invalid_value"),
        ({"items": [{"id": 1}]}, "/body/items/0/op", "missing"),
        ({"items": [CREATE, CREATE | {"title": "x" * 51}]}, "/body/items/1/title", "too_long"),
        ({"items": [CREATE | {"colour": "blue"}]}, "/body/items/0/colour", "unknown_field"),
        ({"items": [{"op": "delete"}]}, "/body/items/0/id", "missing"),
        ({"items": [{"op": "delete", "id": "x"}]}, "/body/items/0/id", "wrong_type"),
        *(
            ({"items": [{"op": "delete", "id": number}]}, "/body/items/0/id", "wrong_type")
            for number in (True, "1", 1.0, 1.5, None)
        ),
        *(
            ({"items": [{"op": "delete", "id": 1, "if_match": [number]}]}, "/body/items/0/if_match/0", "wrong_type")
            for number in (True, "1", 1.0)
        ),
        ({"items": [{"op": "patch", "id": 1, "title": None}]}, "/body/items/0/title", "wrong_type"),
        ({"items": [{"op": "delete", "id": 1, "if_match": [0]}]}, "/body/items/0/if_match/0", "out_of_range"),
        ({"items": [{"op": "replace", "id": 1, "title": "x"}]}, "/body/items/0/description", "missing"),
    ],
)
async def test_bad_item_is_named_by_its_pointer(
    shared_client: httpx.AsyncClient, body: dict[str, Any], pointer: str, code: str
) -> None:
    response = await shared_client.post("/notes/batch", json=body)

    assert response.status_code == 422
    assert [(error["pointer"], error["code"]) for error in response.json()["errors"]] == [(pointer, code)]


async def test_of_very_many_errors_the_first_hundred_are_listed(shared_client: httpx.AsyncClient) -> None:
    body = {"items": [CREATE]} | {f"unknown{number}": 1 for number in range(1000)}

    response = await shared_client.post("/notes/batch", json=body)

    assert response.status_code == 422
    assert len(response.json()["errors"]) == 100


async def test_errors_without_end_are_not_listed_one_by_one(shared_client: httpx.AsyncClient) -> None:
    body = {"items": [CREATE]} | {f"unknown{number}": 1 for number in range(9000)}

    response = await shared_client.post("/notes/batch", json=body)

    assert response.status_code == 422
    assert [(error["pointer"], error["code"]) for error in response.json()["errors"]] == [("/body", "too_many_errors")]


async def test_so_many_writes_may_be_conditional_and_full_of_what_looks_like_json(client: httpx.AsyncClient) -> None:
    text = {"title": '",' * 25, "description": '\\",{' * 50}
    replace = {"op": "replace", "id": 1, "if_match": [1, 2, 3], "if_none_match": [4], **text}

    response = await batch(client, *[replace] * 1000)

    assert (response.status_code, response.json()["code"]) == (404, "note_not_found")


async def test_fewer_writes_go_together_where_notes_may_be_very_long(gateway_settings: GatewaySettings) -> None:
    long = gateway_settings.model_copy(update={"description_max_length": 100_000})

    async with harness.gateway(long) as client:
        response = await batch(client, *[CREATE] * 100)

    assert [error["code"] for error in response.json()["errors"]] == ["too_long"]


async def test_body_may_have_two_mebibytes(client: httpx.AsyncClient) -> None:
    text = {"title": "é" * 50, "description": "é" * 200}
    body = {"items": [{"op": "create", **text}] * 1000}
    assert (await client.post("/notes/batch", json=body)).status_code == 200

    padded = b'{"items": [' + b" " * 2 * 1024 * 1024 + b"]}"
    response = await client.post("/notes/batch", content=padded, headers={"Content-Type": "application/json"})

    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


async def test_item_without_a_condition_is_named_where_one_is_demanded(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    settings = gateway_settings.model_copy(update={"require_preconditions": True})
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        await batch(client, CREATE)
        refused = await batch(client, CREATE, {"op": "delete", "id": 1})
        allowed = await batch(client, CREATE, {"op": "delete", "id": 1, "if_match": [1]})

    assert (refused.status_code, refused.json()["code"], refused.json()["item"]) == (428, "precondition_required", 1)
    assert allowed.status_code == 200
