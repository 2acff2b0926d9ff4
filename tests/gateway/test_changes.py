"""Following changes by pages: nothing is missed, whatever happened between two pages."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from asyncpg import Record

from gateway.reads.queries import Queries
from gateway.reads.statements import LIST_CHANGES
from gateway.settings import GatewaySettings
from shared.connections import Connections
from shared.database import Session, Statement
from shared.primary import Primary, Timeline
from tests.support import harness
from tests.support.accounts import bearer, forged, sign_up
from tests.support.canaries import NOTE
from tests.support.commands import create as create_note
from tests.support.following import Copy
from worker.apply import apply_batch, record_failure
from worker.settings import WorkerSettings

PURGE = """
with purged as (delete from tombstones where id = $1 returning owner_id, mod_revision)
update users set purged_revision = greatest(purged_revision, mod_revision) from purged where users.id = owner_id
"""


async def create(client: httpx.AsyncClient, number: int = 1, **request: object) -> list[int]:
    """The ids of new notes."""
    responses = [await client.post("/notes", json=NOTE, **request) for _ in range(number)]  # type: ignore[arg-type]
    return [response.json()["id"] for response in responses]


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_pages_from_the_beginning_are_the_list(user_client: httpx.AsyncClient, limit: int) -> None:
    first, second, *others = await create(user_client, 5)
    await user_client.delete(f"/notes/{second}")
    await user_client.patch(f"/notes/{first}", json={"title": "Changed last"})

    copy = await Copy().catch_up(user_client, limit=limit)

    assert copy.in_order == (await user_client.get("/notes")).json()
    assert [(change["id"], change["deleted"]) for change in copy.changes] == [
        *((note, False) for note in others),
        (second, True),
        (first, False),
    ]
    revisions = [change["revision"] for change in copy.changes]
    assert revisions == sorted(set(revisions))


async def test_owner_without_notes_gets_a_cursor_to_go_on_from(user_client: httpx.AsyncClient) -> None:
    copy = await Copy().catch_up(user_client)
    assert (copy.changes, copy.cursor is None) == ([], False)

    [note] = await create(user_client)

    assert list((await copy.catch_up(user_client)).notes) == [note]


async def test_each_change_comes_once_and_as_the_note_is_now(user_client: httpx.AsyncClient) -> None:
    [note] = await create(user_client)
    copy = await Copy().catch_up(user_client)
    for title in ("first", "second", "third"):
        await user_client.patch(f"/notes/{note}", json={"title": title})

    before = len(copy.changes)
    await copy.catch_up(user_client)
    await copy.catch_up(user_client)

    assert [change["note"]["title"] for change in copy.changes[before:]] == ["third"]


async def test_several_notes_of_one_revision_are_divided_among_pages(user_client: httpx.AsyncClient) -> None:
    items = [{"op": "create", **NOTE} for _ in range(5)]
    await user_client.post("/notes/batch", json={"items": items})

    copy = await Copy().catch_up(user_client, limit=2)

    assert [change["id"] for change in copy.changes] == [note["id"] for note in copy.in_order]
    assert len(copy.notes) == 5
    assert len({change["revision"] for change in copy.changes}) == 1


async def test_note_that_is_changed_between_two_pages_comes_again(user_client: httpx.AsyncClient) -> None:
    notes = await create(user_client, 3)
    copy = Copy()
    await copy.turn_page(user_client, limit=2)
    await user_client.patch(f"/notes/{notes[0]}", json={"title": "again"})

    await copy.catch_up(user_client, limit=2)

    assert [change["id"] for change in copy.changes] == [*notes, notes[0]]
    assert copy.in_order == (await user_client.get("/notes")).json()


async def test_notes_from_before_revisions_come_first(client: httpx.AsyncClient, database: Session) -> None:
    await create(client, 3)
    await database.execute("alter table notes disable trigger user")
    await database.execute("update notes set mod_revision = 0 where id > 1")
    await database.execute("alter table notes enable trigger user")

    copy = await Copy().catch_up(client, limit=1)

    assert [(change["id"], change["revision"]) for change in copy.changes] == [(2, 0), (3, 0), (1, 1)]


async def test_deleted_note_does_not_show_its_text(user_client: httpx.AsyncClient) -> None:
    [note] = await create(user_client)
    await user_client.delete(f"/notes/{note}")

    response = await user_client.get("/notes/changes")

    assert response.json()["changes"] == [{"id": note, "revision": 2, "deleted": True}]
    assert NOTE["title"] not in response.text


async def test_correction_by_hand_appears(client: httpx.AsyncClient, database: Session) -> None:
    await create(client, 2)
    copy = await Copy().catch_up(client)

    await database.execute("update notes set title = 'by hand' where id = 1")

    assert (await copy.catch_up(client)).notes[1]["title"] == "by hand"


async def test_replayed_dead_letter_and_a_write_that_was_stalled_appear_with_their_old_dates(
    client: httpx.AsyncClient, connections: Connections
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=1)
    letter, stalled = create_note(time=long_ago), create_note(time=long_ago)
    await record_failure(connections, letter, "data_error")
    await create(client)
    copy = await Copy().catch_up(client)

    await apply_batch(connections, [letter.model_copy(update={"replayed_at": datetime.now(UTC)})])
    await apply_batch(connections, [stalled])
    await copy.catch_up(client)

    assert copy.in_order == (await client.get("/notes")).json()
    assert len(copy.changes) == 3
    assert all(datetime.fromisoformat(change["note"]["created_date"]) for change in copy.changes)


async def test_rejected_write_is_no_change_and_costs_the_follower_nothing(user_client: httpx.AsyncClient) -> None:
    await create(user_client)
    copy = await Copy().catch_up(user_client)
    before = copy.cursor

    assert (await user_client.delete("/notes/999")).status_code == 404
    await copy.catch_up(user_client)

    assert len(copy.changes) == 1
    assert copy.cursor != before


# When changes are gone


async def response_of(client: httpx.AsyncClient, cursor: str | None) -> tuple[int, str | None]:
    """Status and code of the next page."""
    response = await client.get("/notes/changes", params={"since": cursor or ""})
    return response.status_code, response.json().get("code")


async def test_purge_is_410_only_for_those_who_may_have_missed_the_deletion(
    client: httpx.AsyncClient, database: Session
) -> None:
    await create(client, 3)
    early, middle, late = Copy(), Copy(), Copy()
    await early.turn_page(client, limit=2)
    await middle.catch_up(client)
    await client.delete("/notes/1")
    await late.catch_up(client)

    await database.execute(PURGE, 1)

    assert await response_of(client, early.cursor) == (410, "changes_gone")
    assert await response_of(client, middle.cursor) == (410, "changes_gone")
    assert await response_of(client, late.cursor) == (200, None)


async def test_one_who_saw_half_of_the_purged_revision_begins_anew(
    client: httpx.AsyncClient, database: Session
) -> None:
    await create(client, 3)
    items = [{"op": "delete", "id": note} for note in (1, 2, 3)]
    half, whole = await Copy().catch_up(client), await Copy().catch_up(client)
    await client.post("/notes/batch", json={"items": items})
    await half.turn_page(client, limit=1)
    await whole.catch_up(client)

    await database.execute(PURGE, 3)

    assert await response_of(client, half.cursor) == (410, "changes_gone")
    assert await response_of(client, whole.cursor) == (200, None)


async def test_first_synchronization_after_a_purge_is_whole(client: httpx.AsyncClient, database: Session) -> None:
    await create(client, 5)
    await client.delete("/notes/5")
    await database.execute(PURGE, 5)

    copy = await Copy().catch_up(client, limit=1)

    assert copy.in_order == (await client.get("/notes")).json()


async def test_deletion_of_which_nothing_is_left_is_410_for_everyone_before_it(
    client: httpx.AsyncClient, database: Session
) -> None:
    await create(client, 2)
    copy = await Copy().catch_up(client)

    await database.execute("delete from notes where id = 1")  # as the version before does, too

    assert await response_of(client, copy.cursor) == (410, "changes_gone")
    assert list((await Copy().catch_up(client)).notes) == [2]


async def test_cursor_ahead_of_its_owner_is_410(client: httpx.AsyncClient, database: Session) -> None:
    await create(client, 2)
    copy = await Copy().catch_up(client)

    await database.execute("alter table users disable trigger user")
    await database.execute("update users set revision = 1")  # as a restored backup has it

    assert await response_of(client, copy.cursor) == (410, "changes_gone")


@pytest.mark.parametrize("other", [Timeline("7", 1), None])
async def test_cursor_of_another_timeline_is_410(
    user_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, other: Timeline | None
) -> None:
    await create(user_client, 2)
    copy = await Copy().catch_up(user_client)

    monkeypatch.setattr(Primary, "timeline_of", lambda *_: other)

    assert await response_of(user_client, copy.cursor) == ((410, "changes_gone") if other else (200, None))


async def test_failover_that_becomes_known_during_a_read_does_not_take_the_timeline_from_its_cursor(
    client: httpx.AsyncClient, gateway_settings: GatewaySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary = Primary.of(gateway_settings.database_url.get_secret_value())
    fetch = Statement.fetch

    async def fetch_and_fail_over(statement: Statement, session: Session, **values: object) -> list[Record]:
        rows = await fetch(statement, session, **values)
        if statement is LIST_CHANGES and primary.timeline:
            primary.observe(Timeline(primary.timeline.system, primary.timeline.number + 1))
        return rows

    before = (await Copy().catch_up(client)).cursor
    with monkeypatch.context() as patch:
        patch.setattr(primary, "timeline", primary.timeline)
        patch.setattr(Statement, "fetch", fetch_and_fail_over)
        during = (await client.get("/notes/changes")).json()["cursor"]

    assert during == before


async def test_cursor_of_another_user_is_410(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.worker(worker_settings), harness.gateway(password_settings) as client:
        ada, bob = [await sign_up(client, name) for name in ("Ada", "Bob")]
        copy = await Copy().catch_up(client, headers=ada.headers)

        response = await client.get("/notes/changes", params={"since": str(copy.cursor)}, headers=bob.headers)

    assert (response.status_code, response.json()["code"]) == (410, "changes_gone")


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "1", "1.2.3.4", "1.2.3.4.0123456789ab ", "1.02.end.0.-"),
        *(f"{'9' * 19}.2.end.0.-", f"1.{'9' * 19}.end.0.-", f"1.2.{'9' * 19}.0.-", f"1.2.end.{'9' * 19}.-"),
    ],
)
async def test_what_is_no_cursor_is_422(shared_client: httpx.AsyncClient, cursor: str) -> None:
    response = await shared_client.get("/notes/changes", params={"since": cursor})

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/query/since"


async def test_cursor_needs_no_encoding(user_client: httpx.AsyncClient) -> None:
    await create(user_client, 2)
    copies = [Copy(), Copy()]
    await copies[0].turn_page(user_client, limit=1)
    await copies[1].catch_up(user_client)

    for copy in copies:
        assert str(copy.cursor).replace(".", "").replace("-", "").isalnum()
        assert len(str(copy.cursor)) < 100


# Who sees what


async def test_changes_are_their_owners_alone(
    password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    async with harness.worker(worker_settings), harness.gateway(password_settings) as client:
        ada, bob = [await sign_up(client, name) for name in ("Ada", "Bob")]
        [mine] = await create(client, headers=ada.headers)
        copies = [await Copy().catch_up(client, headers=person.headers) for person in (ada, bob)]
        outdated = bearer(forged(password_settings, ada.id, credentials_version=7))

        refused = await client.get("/notes/changes", headers=outdated)

    assert [list(copy.notes) for copy in copies] == [[mine], []]
    assert refused.status_code == 401


# Waiting


async def test_wait_ends_with_the_first_change(user_client: httpx.AsyncClient) -> None:
    copy = await Copy().catch_up(user_client)
    waiting = asyncio.create_task(
        user_client.get("/notes/changes", params={"since": str(copy.cursor)}, headers={"Prefer": "wait=20"})
    )
    await asyncio.sleep(1)
    started = time.monotonic()

    [note] = await create(user_client)
    response = await waiting

    assert time.monotonic() - started < 2
    assert [change["id"] for change in response.json()["changes"]] == [note]
    assert response.headers["preference-applied"] == "wait=20"


async def test_wait_without_a_change_ends_with_a_cursor(user_client: httpx.AsyncClient) -> None:
    started = time.monotonic()

    response = await user_client.get("/notes/changes", headers={"Prefer": "wait=1"})

    assert 0.9 < time.monotonic() - started < 3
    assert response.json()["changes"] == []
    assert response.headers["preference-applied"] == "wait=1"
    assert await response_of(user_client, response.json()["cursor"]) == (200, None)


async def test_wait_ends_in_time_though_reads_of_followers_wait_for_long(
    user_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def wait_for_long(*_: object) -> AsyncIterator[None]:
        await asyncio.sleep(20)
        yield

    monkeypatch.setattr(Queries, "limit_followers", wait_for_long)
    started = time.monotonic()

    response = await user_client.get("/notes/changes", headers={"Prefer": "wait=1"})

    assert time.monotonic() - started < 6
    assert response.json()["changes"] == []
    assert await response_of(user_client, response.json()["cursor"]) == (200, None)


async def test_what_is_there_is_not_waited_for(user_client: httpx.AsyncClient) -> None:
    await create(user_client)
    started = time.monotonic()

    response = await user_client.get("/notes/changes", headers={"Prefer": "wait=20"})

    assert len(response.json()["changes"]) == 1
    assert time.monotonic() - started < 2
