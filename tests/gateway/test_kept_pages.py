"""Lists answered from memory are as current and as private as those from Postgres."""

from collections.abc import Callable

import httpx
import pytest
from asyncpg import Connection, Record

from gateway.reads.kept_pages import PAGE_OVERHEAD_BYTES, KeptPage, KeptPages
from gateway.reads.queries import Queries
from gateway.settings import GatewaySettings
from shared.primary import Timeline
from tests.support import harness
from tests.support.accounts import bearer, forged, sign_up
from tests.support.canaries import NOTE
from worker.settings import WorkerSettings


@pytest.fixture
def lists_read(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The kinds of lists that were read from Postgres, in order."""
    shapes: list[object] = []
    read = Queries.list_notes

    async def counted(self: Queries, caller: object, shape: object, deadline: object, **arguments: object) -> object:
        shapes.append(shape)
        return await read(self, caller, shape, deadline, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Queries, "list_notes", counted)
    return shapes


async def test_unchanged_list_is_read_once(user_client: httpx.AsyncClient, lists_read: list[object]) -> None:
    await user_client.post("/notes", json=NOTE)

    first, second = await user_client.get("/notes?total=true"), await user_client.get("/notes?total=true")

    assert len(lists_read) == 1
    assert second.content == first.content
    assert {name: second.headers[name] for name in ("etag", "link", "x-total-count", "content-type")} == {
        name: first.headers[name] for name in ("etag", "link", "x-total-count", "content-type")
    }
    unmodified = await user_client.get("/notes?total=true", headers={"If-None-Match": first.headers["etag"]})
    assert (unmodified.status_code, unmodified.content, len(lists_read)) == (304, b"", 1)


CHANGES: dict[str, Callable[[httpx.AsyncClient, int], object]] = {
    "POST": lambda client, _: client.post("/notes", json=NOTE),
    "PUT": lambda client, note: client.put(f"/notes/{note}", json=NOTE | {"title": "other"}),
    "PATCH": lambda client, note: client.patch(f"/notes/{note}", json={"title": "other"}),
    "DELETE": lambda client, note: client.delete(f"/notes/{note}"),
    "batch": lambda client, note: client.post("/notes/batch", json={"items": [{"op": "delete", "id": note}]}),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_client_sees_its_own_change_in_a_kept_list(user_client: httpx.AsyncClient, change: str) -> None:
    note = (await user_client.post("/notes", json=NOTE)).json()["id"]
    before = await user_client.get("/notes")

    changed = await CHANGES[change](user_client, note)  # type: ignore[misc]

    assert changed.is_success, changed.text
    after = await user_client.get("/notes")
    assert after.json() != before.json()
    assert after.headers["etag"] != before.headers["etag"]


INSERTION = """
insert into notes (owner_id, title, description, created_date, updated_date, version)
select owner_id, 'by hand', '', now(), now(), 1 from notes where id = $1
"""


@pytest.mark.parametrize(
    "correction",
    ["update notes set title = 'by hand' where id = $1", "delete from notes where id = $1", INSERTION],
    ids=["update", "delete", "insert"],
)
async def test_correction_by_hand_is_seen_in_a_kept_list(
    client: httpx.AsyncClient, database: "Connection[Record]", correction: str
) -> None:
    note = (await client.post("/notes", json=NOTE)).json()["id"]
    before = (await client.get("/notes")).json()

    await database.execute(correction, note)

    assert (await client.get("/notes")).json() != before


async def test_kept_list_is_its_owners_alone(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.worker(worker_settings), harness.gateway(password_settings) as client:
        ada, bob = [await sign_up(client, name) for name in ("Ada", "Bob")]
        await client.post("/notes", json=NOTE, headers=ada.headers)
        lists = [(await client.get("/notes", headers=person.headers)).json() for person in (ada, bob, ada)]
        outdated = bearer(forged(password_settings, ada.id, credentials_version=7))

        refused = await client.get("/notes", headers=outdated)

    assert [len(each) for each in lists] == [1, 0, 1]
    assert refused.status_code == 401


def page(text: bytes, revision: int = 1) -> KeptPage:
    return KeptPage((None, revision), text, '"1"', {})


def test_pages_are_kept_up_to_a_number_of_bytes_the_ones_read_last() -> None:
    pages = KeptPages(2 * (PAGE_OVERHEAD_BYTES + 100))
    keys = [(1, "/notes", b"skip=%d" % number) for number in range(3)]
    pages.keep(keys[0], page(b"x" * 50))
    pages.keep(keys[1], page(b"x" * 50))
    pages.find(keys[0])

    pages.keep(keys[2], page(b"x" * 50))

    assert [pages.find(key) is not None for key in keys] == [True, False, True]


def test_page_larger_than_the_limit_is_not_kept_and_moves_nothing_out() -> None:
    pages = KeptPages(PAGE_OVERHEAD_BYTES + 100)
    pages.keep((1, "/notes", b""), page(b"x"))

    pages.keep((2, "/notes", b""), page(b"x" * 200))

    assert pages.find((1, "/notes", b""))
    assert not pages.find((2, "/notes", b""))


def test_equal_numbers_of_different_timelines_are_different_revisions() -> None:
    former, current = (Timeline("7", number) for number in (1, 2))

    assert (former, 3) != (current, 3)
