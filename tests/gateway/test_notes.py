"""The notes API for clients, with a running worker."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests.support.canaries import NOTE


async def test_created_note_is_answered_with_its_location_and_can_be_read(shared_client: httpx.AsyncClient) -> None:
    created = await shared_client.post("/notes/", json=NOTE)

    assert created.status_code == 201
    note = created.json()
    assert note == NOTE | {k: note[k] for k in ("id", "created_date", "updated_date")} | {"version": 1}
    assert isinstance(note["id"], int)
    assert created.headers["location"] == f"/notes/{note['id']}"
    assert (await shared_client.get(created.headers["location"])).text == created.text


async def test_dates_are_utc_with_offset(shared_client: httpx.AsyncClient) -> None:
    note = (await shared_client.post("/notes/", json=NOTE)).json()

    created = datetime.fromisoformat(note["created_date"])
    assert created.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - created) < timedelta(seconds=10)


async def test_replaced_note_keeps_its_created_date_and_counts_its_version(shared_client: httpx.AsyncClient) -> None:
    before = (await shared_client.post("/notes/", json=NOTE)).json()

    replaced = await shared_client.put(f"/notes/{before['id']}", json={"title": "Pen", "description": ""})

    assert replaced.status_code == 200
    after = replaced.json()
    assert (after["title"], after["description"], after["version"]) == ("Pen", "", 2)
    assert after["created_date"] == before["created_date"]
    assert after["updated_date"] > before["updated_date"]
    assert (await shared_client.get(f"/notes/{before['id']}")).text == replaced.text


async def test_replacement_with_the_same_text_leaves_the_note_to_those_who_know_it(
    shared_client: httpx.AsyncClient,
) -> None:
    created = await shared_client.post("/notes/", json=NOTE)
    path, known = created.headers["location"], {"If-None-Match": created.headers["etag"]}

    replaced = await shared_client.put(path, json=NOTE)
    patched = await shared_client.patch(path, json={}, headers={"If-Match": created.headers["etag"]})

    assert (replaced.status_code, replaced.text, replaced.headers["etag"]) == (200, created.text, '"1"')
    assert (patched.status_code, patched.text, patched.headers["etag"]) == (200, created.text, '"1"')
    assert (await shared_client.get(path, headers=known)).status_code == 304


async def test_deleted_note_is_gone(shared_client: httpx.AsyncClient) -> None:
    path = (await shared_client.post("/notes/", json=NOTE)).headers["location"]

    deleted = await shared_client.delete(path)

    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await shared_client.get(path)).status_code == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize("note_id", ["999999", "0", str(2**63 - 1)])
async def test_note_that_does_not_exist_is_not_found(
    shared_client: httpx.AsyncClient, method: str, note_id: str
) -> None:
    response = await shared_client.request(method, f"/notes/{note_id}", json=NOTE if method == "PUT" else None)

    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    if method != "HEAD":
        assert response.json()["detail"] == "Note not found"
        assert response.json()["code"] == "note_not_found"
