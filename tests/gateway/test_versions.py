"""The history of a note: every text that it had, whichever way it was written."""

from typing import Any

import httpx
import pytest
from asyncpg import Connection, Record

from tests.support.accounts import sign_up
from tests.support.canaries import NOTE


async def create(client: httpx.AsyncClient, title: str = "1", **request: Any) -> str:
    """The path of a new note."""
    created = await client.post("/notes", json=NOTE | {"title": title}, **request)
    assert created.status_code == 201, created.text
    return str(created.headers["location"])


async def change_together(client: httpx.AsyncClient, path: str, *titles: str) -> None:
    """Gives the note one title after the other in one batch."""
    note_id = int(path.rsplit("/", maxsplit=1)[-1])
    items = [{"op": "patch", "id": note_id, "title": title} for title in titles]
    response = await client.post("/notes/batch", json={"items": items})
    assert response.status_code == 200, response.text


async def titles(client: httpx.AsyncClient, path: str) -> list[str]:
    listed = await client.get(f"{path}/versions")
    assert listed.status_code == 200, listed.text
    assert [note["version"] for note in listed.json()] == list(range(len(listed.json()), 0, -1))
    return [note["title"] for note in listed.json()]


async def test_history_has_every_text_the_newest_first(user_client: httpx.AsyncClient) -> None:
    path = await create(user_client)
    await user_client.put(path, json=NOTE | {"title": "2"}, headers={"Prefer": "return=minimal"})
    await change_together(user_client, path, "3", "4", "4", "5")
    await user_client.patch(path, json={"title": "6"}, headers={"Prefer": "respond-async"})
    await user_client.patch(path, json={"title": "6"})

    assert await titles(user_client, path) == ["6", "5", "4", "3", "2", "1"]
    for version in range(1, 7):
        one = await user_client.get(f"{path}/versions/{version}")
        assert (one.json()["title"], one.json()["version"], one.headers["etag"]) == (
            str(version),
            version,
            f'"{version}"',
        )
    assert (await user_client.get(f"{path}/versions/6")).content == (await user_client.get(path)).content


async def test_notes_of_a_batch_have_a_history_from_their_creation(user_client: httpx.AsyncClient) -> None:
    items = [{"op": "create", **NOTE, "title": "1"}, {"op": "create", **NOTE, "title": "another"}]
    written = await user_client.post("/notes/batch", json={"items": items})
    path = f"/notes/{written.json()['items'][0]['id']}"
    await user_client.patch(path, json={"title": "2"})

    assert await titles(user_client, path) == ["2", "1"]


async def test_versions_are_whole_notes_as_they_were_answered(user_client: httpx.AsyncClient) -> None:
    created = await user_client.post("/notes", json=NOTE)
    path = created.headers["location"]
    replaced = await user_client.put(path, json={"title": 'Pen "äöü" 🖋', "description": "\n\\"})
    await change_together(user_client, path, "Quill")
    current = await user_client.get(path)

    listed = await user_client.get(f"{path}/versions")

    assert listed.content == b"[%b,%b,%b]" % (current.content, replaced.content, created.content)


async def test_former_version_is_restored_by_a_put_with_if_match(user_client: httpx.AsyncClient) -> None:
    path = await create(user_client)
    await user_client.patch(path, json={"title": "2"})
    former = (await user_client.get(f"{path}/versions/1")).json()
    current = (await user_client.get(path)).headers["etag"]

    text = {name: former[name] for name in ("title", "description")}
    restored = await user_client.put(path, json=text, headers={"If-Match": current})

    assert (restored.status_code, restored.headers["etag"]) == (200, '"3"')
    assert await titles(user_client, path) == ["1", "2", "1"]


async def test_history_comes_back_with_a_restored_note(user_client: httpx.AsyncClient) -> None:
    path = await create(user_client)
    await change_together(user_client, path, "2")
    await user_client.delete(path)
    assert (await user_client.get(f"{path}/versions")).status_code == 404
    assert (await user_client.get(f"{path}/versions/1")).status_code == 404

    await user_client.post(f"{path}/restore")

    assert await titles(user_client, path) == ["2", "2", "1"]


async def test_history_is_read_page_by_page(user_client: httpx.AsyncClient) -> None:
    path = await create(user_client)
    await change_together(user_client, path, *"23")
    await user_client.patch(path, json={"title": "4"})
    await change_together(user_client, path, *"567")
    first = next_page = f"{path}/versions?limit=3"

    seen: list[str] = []
    while next_page:
        page = await user_client.get(next_page)
        seen.append("".join(note["title"] for note in page.json()))
        assert page.links["first"]["url"] == first
        next_page = page.links.get("next", {}).get("url", "")

    assert seen == ["765", "432", "1"]


async def test_page_of_a_history_stays_where_it_is_while_the_note_is_changed(user_client: httpx.AsyncClient) -> None:
    path = await create(user_client)
    await change_together(user_client, path, *"234")
    page = await user_client.get(f"{path}/versions?limit=2")
    await change_together(user_client, path, *"56")

    assert [note["title"] for note in (await user_client.get(page.links["next"]["url"])).json()] == ["2", "1"]


@pytest.mark.parametrize("version", [3, 999, 2**31 - 1])
async def test_version_that_does_not_exist_is_not_found(shared_client: httpx.AsyncClient, version: int) -> None:
    path = await create(shared_client)
    await shared_client.patch(path, json={"title": "2"})

    response = await shared_client.get(f"{path}/versions/{version}")

    assert (response.status_code, response.json()["code"]) == (404, "version_not_found")


@pytest.mark.parametrize("version", ["0", "-1", "01", "x", str(2**31), str(2**64)])
async def test_invalid_version_is_rejected(shared_client: httpx.AsyncClient, version: str) -> None:
    response = await shared_client.get(f"{await create(shared_client)}/versions/{version}")

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")


async def test_version_whose_outcome_is_pruned_is_not_kept_and_the_current_one_is(
    client: httpx.AsyncClient, database: "Connection[Record]"
) -> None:
    path = await create(client)
    await change_together(client, path, *"23")
    await database.execute("delete from commands")
    await database.execute("delete from note_versions where version = 2")

    listed = await client.get(f"{path}/versions")

    assert [note["title"] for note in listed.json()] == ["3"]
    for version, status in ((1, 404), (2, 404), (3, 200)):
        assert (await client.get(f"{path}/versions/{version}")).status_code == status


async def test_history_of_another_users_note_does_not_exist(shared_users_client: httpx.AsyncClient) -> None:
    ada, bob = await sign_up(shared_users_client), await sign_up(shared_users_client)
    path = await create(shared_users_client, headers=ada.headers)

    for version in ("", "/1", "/99"):
        response = await shared_users_client.get(f"{path}/versions{version}", headers=bob.headers)
        assert (response.status_code, response.json()["code"]) == (404, "note_not_found")


async def test_unchanged_history_is_not_sent_again(user_client: httpx.AsyncClient) -> None:
    path = await create(user_client)
    for url in (f"{path}/versions", f"{path}/versions/1"):
        tag = (await user_client.get(url)).headers["etag"]
        assert (await user_client.get(url, headers={"If-None-Match": tag})).status_code == 304
        assert (await user_client.head(url)).headers["etag"] == tag


async def test_row_that_is_corrected_by_hand_is_the_version_that_it_says(
    client: httpx.AsyncClient, database: "Connection[Record]"
) -> None:
    path = await create(client)
    await change_together(client, path, "2")
    await database.execute("update notes set title = 'by hand'")

    assert await titles(client, path) == ["by hand", "1"]
    assert (await client.get(f"{path}/versions/2")).json()["title"] == "by hand"
