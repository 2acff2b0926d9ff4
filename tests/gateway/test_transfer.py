"""Exports and imports: whole, resumable, repeatable, and bounded in memory and time."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from gateway.api import transfer
from gateway.app import create_app
from gateway.http import requests
from gateway.reads import exports
from gateway.resources import IMPORTS_LIMIT
from gateway.settings import GatewaySettings
from gateway.writes import submission
from shared.database import Session
from tests.support import harness
from tests.support.accounts import Person, bearer, personal_token, sign_in, sign_up
from tests.support.canaries import NEW_PASSWORD, NOTE, PASSWORD
from tests.support.harness import eventually
from tests.support.raw_http import connected
from worker.settings import WorkerSettings

NDJSON = {"Content-Type": "application/x-ndjson"}
KEY = {"Idempotency-Key": "once"}
Json = dict[str, Any]


def lines(*notes: Json | str) -> bytes:
    return "".join(f"{note if isinstance(note, str) else json.dumps(note)}\n" for note in notes).encode()


def parse(body: str) -> list[Json]:
    return [json.loads(line) for line in body.splitlines()]


def texts(notes: Iterable[Json]) -> list[tuple[str, str, str]]:
    return [(note["title"], note["description"], note["created_date"]) for note in notes]


def numbered(count: int) -> list[Json]:
    created = datetime(2020, 1, 1, tzinfo=UTC)
    return [
        NOTE | {"title": f"Note {number}", "created_date": (created + timedelta(hours=number)).isoformat()}
        for number in range(count)
    ]


async def import_lines(client: httpx.AsyncClient, content: Any, headers: dict[str, str] | None = None) -> list[Json]:
    response = await client.post("/notes/import", content=content, headers=NDJSON | (headers or {}))
    assert (response.status_code, response.headers.get("content-type")) == (200, "application/x-ndjson"), response.text
    return parse(response.text)


async def export(client: httpx.AsyncClient, after_id: int = 0, headers: dict[str, str] | None = None) -> list[Json]:
    response = await client.get("/notes/export", params={"after_id": after_id}, headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson"), response.text
    return parse(response.text)


@pytest.fixture
async def person(shared_users_client: httpx.AsyncClient) -> Person:
    return await sign_up(shared_users_client)


async def test_export_has_the_notes_as_lists_print_them_between_its_first_and_its_last_line(
    shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    for title in ("one", "two\nlines", "drei — 🖋"):
        await shared_users_client.post("/notes", json=NOTE | {"title": title}, headers=person.headers)
    listed = await shared_users_client.get("/notes", headers=person.headers)

    first, *notes, last = await export(shared_users_client, headers=person.headers)

    assert notes == listed.json()
    assert first["export"].keys() == {"revision", "time", "after_id"}
    assert first["export"]["revision"] == 3
    assert last == {"end": {"complete": True, "notes": 3, "last_id": notes[-1]["id"]}}


async def test_export_of_no_notes_is_complete(shared_users_client: httpx.AsyncClient, person: Person) -> None:
    _, last = await export(shared_users_client, headers=person.headers)

    assert last == {"end": {"complete": True, "notes": 0, "last_id": 0}}


async def test_export_continues_after_the_last_note_that_arrived(
    shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    await import_lines(shared_users_client, lines(*numbered(5)), person.headers)
    _, *notes, _ = await export(shared_users_client, headers=person.headers)

    first, *rest, _ = await export(shared_users_client, notes[1]["id"], person.headers)

    assert (first["export"]["after_id"], rest) == (notes[1]["id"], notes[2:])


async def test_import_of_an_export_gives_equal_notes_with_new_ids(
    shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    await import_lines(shared_users_client, lines(*numbered(3)), person.headers)
    exported = await shared_users_client.get("/notes/export", headers=person.headers)
    other = await sign_up(shared_users_client)

    [chunk, end] = await import_lines(shared_users_client, exported.content, other.headers)

    assert chunk == {"lines": [1, 5], "imported": 3}
    assert end == {"end": {"complete": True, "imported": 3, "rejected": 0}}
    _, *before, _ = parse(exported.text)
    _, *after, _ = await export(shared_users_client, headers=other.headers)
    assert texts(after) == texts(before)
    assert not {note["id"] for note in after} & {note["id"] for note in before}
    assert {note["version"] for note in after} == {1}


async def test_created_date_is_kept_but_never_in_the_future(
    shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    dates = ["0001-01-02T00:00:00Z", "1970-01-01T01:00:00+01:00", "2999-01-01T00:00:00Z"]
    before = datetime.now(UTC)

    await import_lines(
        shared_users_client, lines(NOTE, *({**NOTE, "created_date": each} for each in dates)), person.headers
    )

    _, *notes, _ = await export(shared_users_client, headers=person.headers)
    missing, first, past, future = [datetime.fromisoformat(note["created_date"]) for note in notes]
    assert (first, past) == (datetime(1, 1, 2, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC))
    updated = datetime.fromisoformat(notes[3]["updated_date"])
    assert before - timedelta(seconds=5) < missing == future == updated < datetime.now(UTC) + timedelta(seconds=5)


BAD_LINES: dict[str, tuple[str, str, str | None]] = {
    "not JSON": ('{"title": ', "invalid_json", None),
    "a list": ("[]", "validation_failed", "/body"),
    "no title": ('{"description": ""}', "validation_failed", "/body/title"),
    "long title": (json.dumps(NOTE | {"title": "a" * 51}), "validation_failed", "/body/title"),
    "unknown member": (json.dumps(NOTE | {"colour": "blue"}), "validation_failed", "/body/colour"),
    "null date": (json.dumps(NOTE | {"created_date": None}), "validation_failed", "/body/created_date"),
    "number as date": (json.dumps(NOTE | {"created_date": 7}), "validation_failed", "/body/created_date"),
    "date without offset": (json.dumps(NOTE | {"created_date": "2020-01-01T00:00:00"}), "validation_failed", None),
    "date too early": (json.dumps(NOTE | {"created_date": "0000-01-01T00:00:00Z"}), "validation_failed", None),
    "date too late": (json.dumps(NOTE | {"created_date": "9999-01-01T00:00:00Z"}), "validation_failed", None),
    "first date": (json.dumps(NOTE | {"created_date": "0001-01-01T00:00:00Z"}), "validation_failed", None),
    "U+0000": ('{"title": "\\u0000", "description": ""}', "validation_failed", "/body/title"),
    "surrogate": ('{"title": "\\ud800", "description": ""}', "invalid_json", None),
    "too long": (json.dumps(NOTE | {"description": "a" * 70_000}), "body_too_large", None),
    "many members": (json.dumps({str(number): number for number in range(2000)}), "validation_failed", "/body"),
    "nested": ("[" * 60_000, "invalid_json", None),
    "end with more": ('{"end": {}, "title": "Ink"}', "validation_failed", None),
}


@pytest.mark.parametrize("name", BAD_LINES)
async def test_bad_line_is_named_and_the_others_are_imported(
    shared_users_client: httpx.AsyncClient, person: Person, name: str
) -> None:
    text, code, pointer = BAD_LINES[name]

    bad, chunk, end = await import_lines(shared_users_client, lines(NOTE, "", text, NOTE), person.headers)

    assert (bad["line"], bad["problem"]["code"]) == (3, code)
    if pointer:
        assert pointer in [error["pointer"].rstrip("/") for error in bad["problem"]["errors"]]
    assert chunk == {"lines": [1, 4], "imported": 2}
    assert end == {"end": {"complete": True, "imported": 2, "rejected": 1}}


async def test_last_line_needs_no_end_and_lines_may_end_as_on_windows(
    shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    content = lines(NOTE, NOTE, NOTE).replace(b"\n", b"\r\n").removesuffix(b"\r\n")

    assert (await import_lines(shared_users_client, content, person.headers))[-1]["end"]["imported"] == 3


async def test_nothing_is_imported_of_nothing(shared_users_client: httpx.AsyncClient, person: Person) -> None:
    for content in (b"", b"\n\n"):
        assert await import_lines(shared_users_client, content, person.headers) == [
            {"end": {"complete": True, "imported": 0, "rejected": 0}}
        ]


async def test_repeated_import_with_its_key_creates_no_note_twice(
    shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    content = lines(*numbered(1200))
    first = await import_lines(shared_users_client, content, person.headers | KEY)

    again = await import_lines(shared_users_client, content, person.headers | KEY)

    assert again == first
    assert [line.get("lines") for line in first] == [[1, 500], [501, 1000], [1001, 1200], None]
    _, *_, end = await export(shared_users_client, headers=person.headers)
    assert end["end"]["notes"] == 1200


async def test_import_without_a_key_works_each_time(shared_users_client: httpx.AsyncClient, person: Person) -> None:
    for _ in range(2):
        await import_lines(shared_users_client, lines(NOTE), person.headers)

    assert (await export(shared_users_client, headers=person.headers))[-1]["end"]["notes"] == 2


async def test_other_content_under_the_key_is_reported_for_its_chunk_alone(
    shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    notes = numbered(1001)
    await import_lines(shared_users_client, lines(*notes), person.headers | KEY)

    notes[700] |= {"title": "another"}
    first, second, third, end = await import_lines(shared_users_client, lines(*notes), person.headers | KEY)

    assert (first["imported"], third["imported"]) == (500, 1)
    assert (second["lines"], second["problem"]["code"]) == ([501, 1000], "idempotency_key_reused")
    assert end == {"end": {"complete": True, "imported": 501, "rejected": 500}}
    assert (await export(shared_users_client, headers=person.headers))[-1]["end"]["notes"] == 1001


async def test_key_of_an_import_is_not_that_of_a_batch(shared_users_client: httpx.AsyncClient, person: Person) -> None:
    headers = person.headers | KEY
    await shared_users_client.post("/notes/batch", json={"items": [{"op": "create", **NOTE}]}, headers=headers)

    assert (await import_lines(shared_users_client, lines(NOTE), headers))[-1]["end"]["imported"] == 1


async def test_chunks_depend_on_the_lines_and_not_on_how_they_arrive(
    shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    content = lines(*numbered(30), {"description": "a" * 1_000_000}, *numbered(600))

    async def parts(size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    whole = await import_lines(shared_users_client, content, person.headers | KEY)
    for size in (1009, 65_537):
        assert await import_lines(shared_users_client, parts(size), person.headers | KEY) == whole

    assert [line["lines"] for line in whole if "lines" in line] == [[1, 30], [32, 531], [532, 631]]
    assert [line["line"] for line in whole if "line" in line] == [31]


async def test_results_arrive_while_lines_are_sent(shared_users_client: httpx.AsyncClient, person: Person) -> None:
    rest = asyncio.Event()
    first, second = lines(*numbered(500)), lines(*numbered(10))
    head = (
        "POST /notes/import HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        f"Authorization: {person.headers['Authorization']}\r\n"
        f"Content-Type: application/x-ndjson\r\nContent-Length: {len(first) + len(second)}\r\n\r\n"
    )
    async with connected(shared_users_client) as (stream, writer):
        writer.write(head.encode())
        assert (await stream.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(first)

        assert (await stream.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert b'{"lines":[1,500],"imported":500}' in await stream.readuntil(b"500}\n")
        rest.set()
        writer.write(second)
        assert b'"imported":510' in await stream.readuntil(b"0\r\n\r\n")


async def test_lines_show_no_notes_and_need_the_scope_to_write(
    shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    write_only = bearer(await sign_in(shared_users_client, person.name, scope="notes:write"))
    read_only = bearer(await sign_in(shared_users_client, person.name, scope="notes:read"))

    response = await shared_users_client.post("/notes/import", content=lines(NOTE), headers=NDJSON | write_only)
    assert response.status_code == 200
    assert NOTE["title"] not in response.text
    refused = await shared_users_client.post("/notes/import", content=lines(NOTE), headers=NDJSON | read_only)
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
    assert (await shared_users_client.get("/notes/export", headers=write_only)).status_code == 403
    assert len(await export(shared_users_client, headers=read_only)) == 3


@pytest.mark.parametrize("declared", ["application/json", "text/plain", "application/x-ndjson; charset=latin-1"])
async def test_import_of_another_media_type_is_rejected(
    shared_users_client: httpx.AsyncClient, person: Person, declared: str
) -> None:
    headers = person.headers | {"Content-Type": declared}

    response = await shared_users_client.post("/notes/import", content=lines(NOTE), headers=headers)

    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


async def test_head_of_an_export_holds_nothing(shared_users_client: httpx.AsyncClient, person: Person) -> None:
    for _ in range(6):
        response = await shared_users_client.head("/notes/export", headers=person.headers)
        assert (response.status_code, response.content) == (200, b"")


async def test_a_user_has_one_export_at_a_time_and_others_have_theirs(
    shared_users_client: httpx.AsyncClient, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports.Export, "fetch", never)
    other = await sign_up(shared_users_client)
    async with shared_users_client.stream("GET", "/notes/export", headers=person.headers):
        second = await shared_users_client.get("/notes/export", headers=person.headers)
        assert (second.status_code, second.json()["code"]) == (503, "overloaded")
        assert second.headers["retry-after"]
        async with shared_users_client.stream("GET", "/notes/export", headers=other.headers) as response:
            assert response.status_code == 200
    monkeypatch.undo()

    async def is_free() -> bool:
        return (await shared_users_client.get("/notes/export", headers=person.headers)).status_code == 200

    await eventually(is_free, within_seconds=5)


async def never(_: exports.Export) -> list[Any]:
    await asyncio.Event().wait()
    return []


async def test_export_shows_one_revision_whatever_is_written_meanwhile(
    user_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await import_lines(user_client, lines(*numbered(700)))
    go_on = asyncio.Event()
    fetch = exports.Export.fetch

    async def wait_and_fetch(export: exports.Export) -> list[Any]:
        await go_on.wait()
        return await fetch(export)

    monkeypatch.setattr(exports.Export, "fetch", wait_and_fetch)
    async with user_client.stream("GET", "/notes/export") as response:
        before = (await user_client.get("/notes?limit=1000")).json()
        await user_client.post("/notes", json=NOTE)
        await user_client.delete(f"/notes/{before[600]['id']}")
        await user_client.patch(f"/notes/{before[601]['id']}", json={"title": "changed"})
        go_on.set()
        first, *notes, _ = parse((await response.aread()).decode())

    assert notes == before
    assert first["export"]["revision"] == 2  # one for each command


async def test_export_outlasts_the_limits_on_statements_and_idle_sessions(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = gateway_settings.model_copy(update={"read_timeout_seconds": 0.5})
    async with harness.worker(worker_settings), harness.gateway(settings) as client:
        await import_lines(client, lines(*numbered(1200)))
        fetch = exports.Export.fetch

        async def fetch_late(export: exports.Export) -> list[Any]:
            await asyncio.sleep(4)
            return await fetch(export)

        monkeypatch.setattr(exports.Export, "fetch", fetch_late)
        assert (await export(client))[-1]["end"]["notes"] == 1200


async def test_export_ends_with_its_time_and_says_where(
    user_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await import_lines(user_client, lines(*numbered(1200)))
    monkeypatch.setattr(transfer, "EXPORT_SECONDS", 0.0)

    _, end = await export(user_client)
    assert end == {"end": {"complete": False, "notes": 0, "last_id": 0}}


async def test_export_that_is_read_too_slowly_ends_and_leaves_its_place_to_others(
    shared_users_client: httpx.AsyncClient, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "EXPORT_SECONDS", 1)
    monkeypatch.setattr(exports, "IDLE_MARGIN_SECONDS", 1)

    async def fetch(_: exports.Export) -> list[Any]:
        return [{"id": 1, "note": json.dumps(NOTE | {"title": "a" * 1024 * 1024})}]

    async with connected(shared_users_client) as (stream, writer):
        with monkeypatch.context() as patch:
            patch.setattr(exports.Export, "fetch", fetch)
            head = f"GET /notes/export HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {person.token}\r\n\r\n"
            writer.write(head.encode())

            async def read_slowly() -> None:
                while await stream.read(65_536):
                    await asyncio.sleep(0.5)

            reading = asyncio.create_task(read_slowly())
            await asyncio.sleep(0.5)

            async def has_place() -> bool:
                async with shared_users_client.stream("GET", "/notes/export", headers=person.headers) as response:
                    return response.status_code == 200

            assert not await has_place()
            await eventually(has_place, within_seconds=10)
        assert not reading.done()
        reading.cancel()


async def test_export_ends_when_postgres_is_restarted_and_can_be_continued(
    client: httpx.AsyncClient, database: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    await import_lines(client, lines(*numbered(1200)))
    fetch = exports.Export.fetch

    async def lose_and_fetch(export: exports.Export) -> list[Any]:
        rows = await fetch(export)
        await database.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'inkwell-gateway export'"
            " and datname = current_database()"
        )
        return rows

    monkeypatch.setattr(exports.Export, "fetch", lose_and_fetch)
    _, *notes, end = await export(client)
    assert (end["end"]["complete"], end["end"]["problem"]["code"]) == (False, "database_unavailable")
    assert end["end"]["last_id"] == notes[-1]["id"]
    monkeypatch.undo()

    _, *rest, end = await export(client, end["end"]["last_id"])

    assert (len(notes) + len(rest), end["end"]["complete"]) == (1200, True)


async def test_transfers_end_when_the_gateway_stops_and_say_where(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(gateway_settings)
    fetched = asyncio.Event()
    fetch = exports.Export.fetch

    async def slow_lines() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield lines(*numbered(500))
            await asyncio.sleep(0.3)

    async def fetch_and_wait(export: exports.Export) -> list[Any]:
        rows = await fetch(export)
        fetched.set()
        await asyncio.sleep(0.5)
        return rows

    async with (
        harness.worker(worker_settings),
        harness.serving(app, gateway_settings) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        await import_lines(client, lines(*numbered(1200)))
        monkeypatch.setattr(exports.Export, "fetch", fetch_and_wait)
        running = [asyncio.create_task(export(client)), asyncio.create_task(import_lines(client, slow_lines()))]
        await fetched.wait()
        assert app.front.resources
        app.front.resources.replies.drain()  # as on SIGTERM

        [*notes, last], [*_, end] = await asyncio.gather(*running)

    assert last == {"end": {"complete": False, "notes": 500, "last_id": notes[-1]["id"]}}
    assert (end["end"]["complete"], end["end"]["imported"] < 4000) == (False, True)


@pytest.mark.parametrize("change", ["revoked", "new password"])
async def test_transfers_end_soon_after_their_token(
    users_client: httpx.AsyncClient, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "AUTHENTICATION_SECONDS", 0.2)
    person = await sign_up(users_client)
    token = await personal_token(users_client, person)
    headers = bearer(token["token"])
    fetch = exports.Export.fetch

    async def fetch_one(export: exports.Export) -> list[Any]:
        await asyncio.sleep(0.3)
        return await fetch(export)

    async def slow_lines() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield lines(*numbered(500))
            await asyncio.sleep(0.3)

    await import_lines(users_client, lines(*numbered(5000)), headers)
    monkeypatch.setattr(exports.Export, "fetch", fetch_one)
    running = [
        asyncio.create_task(export(users_client, headers=headers)),
        asyncio.create_task(import_lines(users_client, slow_lines(), headers)),
    ]
    await asyncio.sleep(1)
    if change == "revoked":
        path = f"/auth/tokens/{token['id']}"
        assert (await users_client.delete(path, headers=person.headers)).status_code == 204
    else:
        body = {"password": NEW_PASSWORD, "current_password": PASSWORD}
        response = await users_client.patch("/users/me", json=body, headers=person.headers)
        assert response.status_code == 200, response.text

    for *_, before, last in await asyncio.gather(*running):
        assert not last["end"]["complete"]
        assert (last["end"].get("problem") or before["problem"])["status"] == 401


async def test_import_waits_while_nothing_decides_and_then_says_where_it_stopped(
    gateway_settings: GatewaySettings, worker_settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "REPLY_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(submission, "IMPORT_WAIT_SECONDS", 0.5)
    content = lines(*numbered(1200))
    async with harness.gateway(gateway_settings) as client:
        pending, end = await import_lines(client, content, KEY)

        assert pending["lines"] == [1, 500]
        assert (await client.get(pending["command"])).json()["status"] == "pending"
        assert end == {"end": {"complete": False, "imported": 0, "rejected": 0}}
        async with harness.worker(worker_settings):
            assert (await import_lines(client, content, KEY))[-1]["end"]["imported"] == 1200
            assert (await export(client))[-1]["end"]["notes"] == 1200


async def test_import_without_a_broker_says_that_its_chunk_has_no_effect(gateway: httpx.AsyncClient) -> None:
    chunk, end = await import_lines(gateway, lines(NOTE))

    assert (chunk["lines"], chunk["problem"]["code"]) == ([1, 1], "not_accepted")
    assert end == {"end": {"complete": False, "imported": 0, "rejected": 0}}


async def test_body_that_stops_arriving_ends_the_import(
    shared_users_client: httpx.AsyncClient, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT_SECONDS", 0.5)

    async def parts() -> AsyncIterator[bytes]:
        yield lines(*numbered(500)) + b'{"title": '
        await asyncio.sleep(2)

    chunk, end = await import_lines(shared_users_client, parts(), person.headers)

    assert chunk["imported"] == 500
    assert (end["end"]["complete"], end["end"]["problem"]["code"]) == (False, "request_timeout")


async def test_import_whose_client_has_gone_leaves_its_place_to_another(gateway: httpx.AsyncClient) -> None:
    for _ in range(IMPORTS_LIMIT):
        async with connected(gateway) as (stream, writer):
            writer.write(
                b"POST /notes/import HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
                b"Content-Type: application/x-ndjson\r\n\r\n1\r\n{\r\n"
            )
            assert await stream.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
            writer.transport.abort()

    async def is_accepted() -> bool:
        return (await gateway.post("/notes/import", content=b"", headers=NDJSON)).status_code == 200

    await eventually(is_accepted)


async def test_rest_of_an_import_that_has_ended_is_read_for_a_while_only(
    gateway: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "DISCARD_SECONDS", 0.3)
    async with connected(gateway) as (stream, writer):
        writer.write(
            b"POST /notes/import HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/x-ndjson\r\n\r\n"
        )
        part = lines(*numbered(501))  # without a broker, the first chunk ends the import
        writer.write(b"%x\r\n%b\r\n" % (len(part), part))  # and the body never ends
        async with asyncio.timeout(20):
            received = await stream.readuntil(b"0\r\n\r\n")

    assert b'"end":{"complete":false,"imported":0' in received


async def test_import_whose_line_never_ends_ends_with_its_token(
    users_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "AUTHENTICATION_SECONDS", 0.2)
    person = await sign_up(users_client)
    token = await personal_token(users_client, person)

    async with connected(users_client) as (stream, writer):

        async def drip() -> None:
            while True:
                writer.write(b"1\r\nx\r\n")
                await asyncio.sleep(0.1)

        writer.write(
            b"POST /notes/import HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/x-ndjson\r\nAuthorization: Bearer " + token["token"].encode() + b"\r\n\r\n"
        )
        dripping = asyncio.create_task(drip())
        revoked = await users_client.delete(f"/auth/tokens/{token['id']}", headers=person.headers)
        assert revoked.status_code == 204
        async with asyncio.timeout(5):
            received = await stream.readuntil(b"}\n")
        dripping.cancel()

    [end] = parse(received.decode().splitlines()[-1])
    assert (end["end"]["complete"], end["end"]["problem"]["status"]) == (False, 401)


async def test_bad_lines_leave_time_to_others_between_them(
    shared_users_client: httpx.AsyncClient, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = 0
    turns: list[int] = []
    describe = transfer.describe_problem

    async def take_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def describe_in_turn(error: Any) -> Json:
        turns.append(turn)
        return describe(error)

    monkeypatch.setattr(transfer, "describe_problem", describe_in_turn)
    others = asyncio.create_task(take_turns())

    *_, end = await import_lines(shared_users_client, b"{}\n" * 100, person.headers)

    others.cancel()
    assert end["end"]["rejected"] == len(turns) == len(set(turns)) == 100
