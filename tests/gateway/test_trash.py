"""The trash: a deleted note is there, and nowhere else, until it is restored or purged."""

from typing import Any

import httpx
import pytest
from asyncpg import Connection, Record

from gateway.settings import GatewaySettings
from tests.support import harness
from tests.support.accounts import bearer, sign_in, sign_up
from tests.support.canaries import NOTE
from tests.support.harness import decided
from worker.settings import WorkerSettings

ELSEWHERE = ["", "/versions", "/versions/1"]


async def put_in_trash(client: httpx.AsyncClient, **request: Any) -> dict[str, Any]:
    """A deleted note, as it was."""
    created = await client.post("/notes", json=NOTE, **request)
    assert created.status_code == 201, created.text
    assert (await client.delete(created.headers["location"], **request)).status_code == 204
    note: dict[str, Any] = created.json()
    return note


async def list_ids(client: httpx.AsyncClient, path: str = "/notes/trash") -> list[int]:
    return [note["id"] for note in (await client.get(path)).json()]


async def test_deleted_note_is_in_the_trash_and_nowhere_else(user_client: httpx.AsyncClient) -> None:
    note = await put_in_trash(user_client)

    [listed] = (await user_client.get("/notes/trash")).json()
    one = await user_client.get(f"/notes/trash/{note['id']}")

    deleted_date = listed.pop("deleted_date")
    assert listed == note
    assert deleted_date >= note["created_date"]
    assert one.json() == listed | {"deleted_date": deleted_date}
    assert one.headers["etag"] == '"1"'
    for path in ELSEWHERE:
        gone = await user_client.get(f"/notes/{note['id']}{path}")
        assert (gone.status_code, gone.json()["code"]) == (404, "note_not_found")
    assert (await user_client.get("/notes")).json() == []
    assert (await user_client.put(f"/notes/{note['id']}", json=NOTE)).status_code == 404


async def test_restored_note_is_back_under_its_id_in_a_new_version(user_client: httpx.AsyncClient) -> None:
    note = await put_in_trash(user_client)

    restored = await user_client.post(f"/notes/{note['id']}/restore")

    assert (restored.status_code, restored.headers["etag"]) == (200, '"2"')
    back = restored.json()
    assert back == note | {"version": 2, "updated_date": back["updated_date"]}
    assert back["updated_date"] > note["updated_date"]
    assert (await user_client.get(f"/notes/{note['id']}")).content == restored.content
    assert (await user_client.get("/notes")).json() == [restored.json()]
    assert (await user_client.get("/notes/trash")).json() == []
    assert (await user_client.get(f"/notes/trash/{note['id']}")).status_code == 404


async def test_note_can_be_deleted_and_restored_again_and_again(user_client: httpx.AsyncClient) -> None:
    note = await put_in_trash(user_client)
    path = f"/notes/{note['id']}"
    for version in (2, 3, 4):
        assert (await user_client.post(f"{path}/restore")).json()["version"] == version
        assert (await user_client.delete(path)).status_code == 204
        assert (await user_client.get("/notes/trash")).json()[0]["version"] == version


async def test_note_that_is_changed_and_deleted_by_one_command_is_in_the_trash_as_it_was_last(
    user_client: httpx.AsyncClient,
) -> None:
    note = (await user_client.post("/notes", json=NOTE)).json()["id"]
    items = [{"op": "patch", "id": note, "title": "last"}, {"op": "delete", "id": note}]
    assert (await user_client.post("/notes/batch", json={"items": items})).status_code == 200

    [trashed] = (await user_client.get("/notes/trash")).json()
    restored = await user_client.post(f"/notes/{note}/restore", headers={"If-Match": '"2"'})

    assert (trashed["title"], trashed["version"]) == ("last", 2)
    assert (restored.json()["title"], restored.json()["version"]) == ("last", 3)
    versions = (await user_client.get(f"/notes/{note}/versions")).json()
    assert [(note["version"], note["title"]) for note in versions] == [(3, "last"), (2, "last"), (1, NOTE["title"])]


async def test_note_that_is_created_and_deleted_by_one_command_is_in_the_trash(client: httpx.AsyncClient) -> None:
    items = [{"op": "create", **NOTE}, {"op": "delete", "id": 1}]
    assert (await client.post("/notes/batch", json={"items": items})).status_code == 200

    changes = (await client.get("/notes/changes")).json()["changes"]

    assert await list_ids(client) == [1]
    assert changes == [{"id": 1, "revision": 1, "deleted": True}]


async def test_purged_note_is_out_of_the_trash_at_once_and_cannot_be_restored(user_client: httpx.AsyncClient) -> None:
    note = await put_in_trash(user_client)

    purged = await user_client.delete(f"/notes/trash/{note['id']}")

    assert (purged.status_code, purged.content) == (204, b"")
    assert (await user_client.get("/notes/trash")).json() == []
    for method, path in (
        ("GET", f"/notes/trash/{note['id']}"),
        ("DELETE", f"/notes/trash/{note['id']}"),
        ("POST", f"/notes/{note['id']}/restore"),
        ("GET", f"/notes/{note['id']}"),
    ):
        gone = await user_client.request(method, path)
        assert (gone.status_code, gone.json()["code"]) == (404, "note_not_found")


@pytest.mark.parametrize(("method", "path"), [("POST", "/notes/{}/restore"), ("DELETE", "/notes/trash/{}")])
class TestWrite:
    """What a restore and a purge have in common with every write."""

    async def test_note_that_is_live_or_never_was_is_not_in_the_trash(
        self, shared_client: httpx.AsyncClient, method: str, path: str
    ) -> None:
        live = (await shared_client.post("/notes", json=NOTE)).json()["id"]

        for note_id in (live, 999_999):
            response = await shared_client.request(method, path.format(note_id))
            assert (response.status_code, response.json()["code"]) == (404, "note_not_found")
        assert (await shared_client.get(f"/notes/{live}")).status_code == 200

    async def test_preconditions_are_compared_with_the_deleted_version(
        self, shared_client: httpx.AsyncClient, method: str, path: str
    ) -> None:
        url = path.format((await put_in_trash(shared_client))["id"])

        for header, tag in (("If-Match", '"2"'), ("If-None-Match", '"1"'), ("If-None-Match", "*")):
            failed = await shared_client.request(method, url, headers={header: tag})
            assert (failed.status_code, failed.headers["etag"]) == (412, '"1"')
        met = await shared_client.request(method, url, headers={"If-Match": '"1"', "If-None-Match": '"7"'})
        assert met.is_success, met.text

    async def test_key_makes_it_happen_once(self, shared_client: httpx.AsyncClient, method: str, path: str) -> None:
        note = await put_in_trash(shared_client)
        key = {"Idempotency-Key": f"once {method} {note['id']}"}

        first, again = [await shared_client.request(method, path.format(note["id"]), headers=key) for _ in range(2)]

        assert first.is_success
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert again.headers["idempotent-replayed"] == "true"

    async def test_preferences_are_honored(self, shared_client: httpx.AsyncClient, method: str, path: str) -> None:
        url = path.format((await put_in_trash(shared_client))["id"])

        accepted = await shared_client.request(method, url, headers={"Prefer": "respond-async"})
        state = await decided(shared_client, accepted.headers["location"])
        url = path.format((await put_in_trash(shared_client))["id"])
        minimal = await shared_client.request(method, url, headers={"Prefer": "return=minimal"})

        assert accepted.status_code == 202
        assert state["status"] == "applied"
        assert state["answer"]["status"] == (200 if method == "POST" else 204)
        assert (minimal.status_code, minimal.content) == (204, b"")

    async def test_precondition_may_be_required(
        self, gateway_settings: GatewaySettings, method: str, path: str
    ) -> None:
        strict = gateway_settings.model_copy(update={"require_preconditions": True})
        async with harness.gateway(strict) as client:
            response = await client.request(method, path.format(1))

        assert (response.status_code, response.json()["code"]) == (428, "precondition_required")

    async def test_deleted_note_of_another_user_does_not_exist(
        self, shared_users_client: httpx.AsyncClient, method: str, path: str
    ) -> None:
        ada, bob = await sign_up(shared_users_client), await sign_up(shared_users_client)
        note = await put_in_trash(shared_users_client, headers=ada.headers)

        response = await shared_users_client.request(method, path.format(note["id"]), headers=bob.headers)
        read = await shared_users_client.get(f"/notes/trash/{note['id']}", headers=bob.headers)

        assert (response.status_code, response.json()["code"]) == (404, "note_not_found")
        assert (read.status_code, read.json()["code"]) == (404, "note_not_found")
        assert (await shared_users_client.get("/notes/trash", headers=bob.headers)).json() == []
        assert len((await shared_users_client.get("/notes/trash", headers=ada.headers)).json()) == 1


async def test_credentials_that_may_not_read_get_no_text_back(shared_users_client: httpx.AsyncClient) -> None:
    ada = await sign_up(shared_users_client)
    note = await put_in_trash(shared_users_client, headers=ada.headers)
    write_only = bearer(await sign_in(shared_users_client, ada.name, scope="notes:write"))

    restored = await shared_users_client.post(f"/notes/{note['id']}/restore", headers=write_only)

    assert (restored.status_code, restored.content, restored.headers["etag"]) == (204, b"", '"2"')


async def test_trash_is_listed_page_by_page_from_the_last_deletion(user_client: httpx.AsyncClient) -> None:
    ids = [(await user_client.post("/notes", json=NOTE)).json()["id"] for _ in range(7)]
    at_once = {"items": [{"op": "delete", "id": each} for each in ids[2:5]]}
    order = [ids[5], *ids[2:5], ids[0], ids[6]]
    await user_client.delete(f"/notes/{ids[5]}")
    await user_client.post("/notes/batch", json=at_once)
    for each in (ids[0], ids[6]):
        await user_client.delete(f"/notes/{each}")
    await user_client.delete(f"/notes/{ids[1]}")
    await user_client.delete(f"/notes/trash/{ids[1]}")

    seen: list[int] = []
    path = "/notes/trash?limit=2"
    while path:
        page = await user_client.get(path)
        seen += [note["id"] for note in page.json()]
        assert len(page.json()) == 2
        assert page.links["first"]["url"] == "/notes/trash?limit=2"
        path = page.links.get("next", {}).get("url", "")

    assert seen == order[::-1]


async def test_page_of_the_trash_stays_where_it_is_while_notes_are_deleted(user_client: httpx.AsyncClient) -> None:
    ids = [(await put_in_trash(user_client))["id"] for _ in range(4)]
    first = await user_client.get("/notes/trash?limit=2")
    await put_in_trash(user_client)
    await user_client.post(f"/notes/{ids[3]}/restore")

    assert await list_ids(user_client, first.links["next"]["url"]) == [ids[1], ids[0]]


async def test_unchanged_page_of_the_trash_is_not_sent_again(user_client: httpx.AsyncClient) -> None:
    note = await put_in_trash(user_client)
    for path in ("/notes/trash", f"/notes/trash/{note['id']}"):
        tag = (await user_client.get(path)).headers["etag"]
        assert (await user_client.get(path, headers={"If-None-Match": tag})).status_code == 304
        assert (await user_client.head(path)).headers["etag"] == tag


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "skip=1", "sort=id", "cursor=", "cursor=eyJpZCI6MX0", "cursor=e30"]
)
async def test_invalid_page_of_the_trash_is_rejected(shared_client: httpx.AsyncClient, query: str) -> None:
    response = await shared_client.get(f"/notes/trash?{query}")

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")


async def test_cursor_of_another_list_is_rejected(user_client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await user_client.post("/notes", json=NOTE)
        await put_in_trash(user_client)
    note = (await user_client.get("/notes")).json()[0]["id"]
    await user_client.put(f"/notes/{note}", json=NOTE | {"title": "Pen"})
    paths = ["/notes", "/notes/trash", f"/notes/{note}/versions"]
    cursors = [
        (await user_client.get(f"{path}?limit=1")).links["next"]["url"].partition("cursor=")[2] for path in paths
    ]

    for path in paths:
        statuses = [(await user_client.get(f"{path}?cursor={cursor}")).status_code for cursor in cursors]
        assert statuses == [200 if each == path else 422 for each in paths]


async def test_response_to_a_write_of_an_erased_note_is_repeated_without_its_text(
    client: httpx.AsyncClient, database: "Connection[Record]"
) -> None:
    key = {"Idempotency-Key": "create"}
    created = await client.post("/notes", json=NOTE, headers=key)
    await client.delete(created.headers["location"])
    await client.delete(f"/notes/trash/{created.json()['id']}")
    await database.execute("update commands set body = null")

    again = await client.post("/notes", json=NOTE, headers=key)

    assert (again.status_code, again.content) == (201, b"")
    assert again.headers["location"] == created.headers["location"]


async def test_without_trash_a_deleted_note_is_gone(
    worker_settings: WorkerSettings, gateway_settings: GatewaySettings, database: "Connection[Record]"
) -> None:
    settings = worker_settings.model_copy(update={"trash_retention_days": 0})
    async with harness.worker(settings), harness.gateway(gateway_settings) as client:
        note = await put_in_trash(client)

        assert await list_ids(client) == []
        assert (await client.post(f"/notes/{note['id']}/restore")).status_code == 404
    assert await database.fetchval("select count(*) - count(title) from tombstones") == 1
