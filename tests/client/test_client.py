"""The client program against a real Inkwell: what it writes, what it continues, and what it tells its user."""

import asyncio
import json
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from dev.backend import ROOT
from inkwell_client import __main__ as program
from inkwell_client import credentials
from inkwell_client.api import RetryPolicy
from inkwell_client.credentials import Credentials
from inkwell_client.errors import ClientError
from inkwell_client.exporting import find_end, iter_whole_lines
from inkwell_client.importing import PART_LINES, derive_key, iter_parts
from inkwell_client.watching import Event, iter_changes, iter_events
from tests.support import harness
from tests.support.accounts import Person, personal_token, sign_up
from tests.support.canaries import NOTE, PASSWORD

Json = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    output: str
    errors: str


@dataclass
class Program:
    """The program as a process, with a configuration of its own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    async def start(self, *arguments: object) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        environment = {"XDG_CONFIG_HOME": str(self.folder), "PYTHONPATH": str(ROOT / "client")} | self.environment
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "inkwell_client", *map(str, arguments)),
            env=environment,
            cwd=self.folder,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )

    async def __call__(self, *arguments: object, typed: bytes = b"") -> Ended:
        process = await self.start(*arguments)
        output, errors = await process.communicate(typed)
        assert process.returncode is not None
        return Ended(process.returncode, output.decode(), errors.decode())


@pytest.fixture
async def person(shared_users_client: httpx.AsyncClient) -> Person:
    return await sign_up(shared_users_client)


@pytest.fixture
async def inkwell(shared_users_client: httpx.AsyncClient, person: Person, tmp_path: Path) -> Program:
    """The program of a user who is signed in."""
    token = (await personal_token(shared_users_client, person))["token"]
    return Program(tmp_path, {"INKWELL_URL": str(shared_users_client.base_url), "INKWELL_TOKEN": token})


def write_notes(path: Path, *notes: Json | str) -> Path:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in notes))
    return path


def numbered(count: int) -> list[Json]:
    return [NOTE | {"title": f"Note {number}"} for number in range(count)]


def titles(text: str) -> list[str]:
    return [note["title"] for note in map(json.loads, text.splitlines()) if "title" in note]


async def count(client: httpx.AsyncClient, person: Person) -> int:
    response = await client.get("/notes?total=true&limit=1", headers=person.headers)
    return int(response.headers["x-total-count"])


async def test_what_is_exported_is_what_was_imported(inkwell: Program, tmp_path: Path) -> None:
    notes = write_notes(tmp_path / "notes", *numbered(PART_LINES + 10))

    imported = await inkwell("import", notes)
    exported = await inkwell("export", "out")

    assert (imported.code, exported.code) == (0, 0), imported.errors + exported.errors
    assert f"{PART_LINES + 10} notes imported, 0 lines rejected" in imported.errors
    text = (tmp_path / "out").read_text()
    assert titles(text) == [note["title"] for note in numbered(PART_LINES + 10)]
    assert not (tmp_path / "out.part").exists()
    assert (await inkwell("export", "-")).output.splitlines()[1:-1] == text.splitlines()[1:-1]
    assert "out exists" in (await inkwell("export", "out")).errors


async def test_file_that_is_imported_twice_is_imported_once_unless_asked_to(
    inkwell: Program, tmp_path: Path, shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    notes = write_notes(tmp_path / "notes", *numbered(30))

    for _ in range(2):
        assert "30 notes imported" in (await inkwell("import", notes)).errors
    assert await count(shared_users_client, person) == 30

    await inkwell("import", notes, "--again")
    assert await count(shared_users_client, person) == 60


async def test_bad_lines_are_named_and_copied_and_the_others_are_imported(
    inkwell: Program, tmp_path: Path, shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    long, unknown = json.dumps(NOTE | {"title": "a" * 51}), "{"
    notes = write_notes(tmp_path / "notes", *numbered(PART_LINES + 1), long, *numbered(1), unknown)

    ended = await inkwell("import", notes, "--rejected", "bad")

    assert ended.code == 3
    named = [line for line in ended.errors.splitlines() if line.startswith("line ")]
    assert [line.split(": ")[:3] for line in named] == [
        [f"line {PART_LINES + 2}", "validation_failed", "title"],
        [f"line {PART_LINES + 4}", "invalid_json", named[1].split(": ")[2]],
    ]
    assert (tmp_path / "bad").read_text().splitlines() == [long, unknown]
    assert await count(shared_users_client, person) == PART_LINES + 2


async def test_notes_are_piped_from_one_program_to_the_other(
    inkwell: Program, tmp_path: Path, shared_users_client: httpx.AsyncClient
) -> None:
    await inkwell("import", write_notes(tmp_path / "notes", *numbered(5)))
    other = await sign_up(shared_users_client)
    token = (await personal_token(shared_users_client, other))["token"]

    exported = await inkwell("export", "-")
    imported = await Program(tmp_path, inkwell.environment | {"INKWELL_TOKEN": token})(
        "import", "-", typed=exported.output.encode()
    )

    assert (imported.code, await count(shared_users_client, other)) == (0, 5)


async def test_export_that_was_killed_continues(inkwell: Program, tmp_path: Path) -> None:
    await inkwell("import", write_notes(tmp_path / "notes", *numbered(1000)))
    await inkwell("export", "whole")
    whole = (tmp_path / "whole").read_bytes()

    for cut in (0, 10, 30_000, len(whole) - 5):
        (tmp_path / "out.part").write_bytes(whole[:cut])
        assert (await inkwell("export", "out")).code == 0

        assert titles((tmp_path / "out").read_text()) == titles(whole.decode())
        (tmp_path / "out").unlink()


async def test_responses_that_refuse_end_the_program_with_their_reason(inkwell: Program, tmp_path: Path) -> None:
    stranger = Program(tmp_path, inkwell.environment | {"INKWELL_TOKEN": "inkwell_0123456789"})
    notes = write_notes(tmp_path / "notes", NOTE)

    for arguments in (("export", "out"), ("import", notes)):
        ended = await stranger(*arguments)
        assert (ended.code, ended.output) == (1, "")
        assert ended.errors == "inkwell: invalid_token: The token is invalid, expired or revoked\n"
    assert "not signed in" in (await Program(tmp_path)("export", "out")).errors
    assert "No such file" in (await inkwell("import", tmp_path / "none")).errors
    assert (await inkwell("fly")).code == 2


async def test_login_keeps_a_token_that_only_its_user_can_read(
    shared_users_client: httpx.AsyncClient, person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(shared_users_client.base_url)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda _: person.name)
    monkeypatch.setattr("getpass.getpass", lambda _: PASSWORD)

    assert await asyncio.to_thread(program.main, ["login", url + "/"]) == 0

    file = tmp_path / "inkwell/credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert PASSWORD not in file.read_text()
    assert (await Program(tmp_path)("export", "-")).code == 0
    assert credentials.load().token
    monkeypatch.setenv("INKWELL_URL", "http://elsewhere.example")
    assert credentials.load() == Credentials("http://elsewhere.example", None)


async def test_login_with_a_wrong_password_says_so(
    shared_users_client: httpx.AsyncClient,
    person: Person,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda _: person.name)
    monkeypatch.setattr("getpass.getpass", lambda _: "wrong")

    assert await asyncio.to_thread(program.main, ["login", str(shared_users_client.base_url)]) == 1

    assert "invalid_grant: The name or the password is incorrect" in capsys.readouterr().err
    with pytest.raises(ClientError, match="not signed in"):
        credentials.load()


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/typo", "not_found"), (":80a0", "Invalid port")],
)
async def test_login_at_a_wrong_url_says_so_and_keeps_nothing(
    shared_client: httpx.AsyncClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    path: str,
    reason: str,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda _: "anyone")
    monkeypatch.setattr("getpass.getpass", lambda _: "anything")
    url = "http://localhost" if path.startswith(":") else str(shared_client.base_url)

    assert await asyncio.to_thread(program.main, ["login", url + path]) == 1

    assert reason in capsys.readouterr().err
    with pytest.raises(ClientError, match="not signed in"):
        credentials.load()


def test_login_at_another_kind_of_server_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda _: "anyone")
    monkeypatch.setattr("getpass.getpass", lambda _: "anything")
    monkeypatch.setattr(program, "connect", lambda _: httpx.Client(transport=page, base_url="http://site.example"))

    assert program.main(["login", "http://site.example"]) == 1

    assert "is not answered as Inkwell would" in capsys.readouterr().err


async def test_deployment_without_users_needs_no_token(
    shared_client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda _: "anyone")
    monkeypatch.setattr("getpass.getpass", lambda _: "anything")

    assert await asyncio.to_thread(program.main, ["login", str(shared_client.base_url)]) == 0

    assert (await Program(tmp_path)("export", "-")).code == 0


class Breaking:
    """A front before a gateway that breaks the first responses of each kind in the middle."""

    def __init__(self, client: httpx.AsyncClient, breaks: int) -> None:
        self.app = FastAPI(openapi_url=None)
        self.app.api_route("/{path:path}", methods=["GET", "POST"])(self.answer)
        self._client = client
        self._breaks = breaks

    async def answer(self, request: Request) -> Response:
        url = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        passed = {
            name: request.headers[name]
            for name in ("authorization", "content-type", "idempotency-key")
            if name in request.headers
        }
        response = await self._client.request(request.method, url, content=await request.body(), headers=passed)
        if self._breaks <= 0:
            return Response(response.content, response.status_code, media_type=response.headers["content-type"])
        self._breaks -= 1
        cut = response.content[: len(response.content) * 2 // 3]
        return Response(cut, response.status_code, media_type=response.headers["content-type"])


async def test_broken_responses_are_asked_for_again_and_nothing_is_doubled(
    inkwell: Program, tmp_path: Path, shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    notes = write_notes(tmp_path / "notes", *numbered(PART_LINES + 500))
    async with harness.serving(Breaking(shared_users_client, 2).app) as url:
        ended = await Program(tmp_path, inkwell.environment | {"INKWELL_URL": url})("import", notes)
        assert ended.code == 0, ended.errors
        assert ended.errors.count("trying again") == 2
    async with harness.serving(Breaking(shared_users_client, 3).app) as url:
        ended = await Program(tmp_path, inkwell.environment | {"INKWELL_URL": url})("export", "out")

    assert (ended.code, ended.errors.count("trying again")) == (0, 3)
    assert titles((tmp_path / "out").read_text()) == titles(notes.read_text())
    assert await count(shared_users_client, person) == PART_LINES + 500


async def test_watch_prints_what_changes(
    inkwell: Program, shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    before = await shared_users_client.post("/notes", json=NOTE | {"title": "before"}, headers=person.headers)
    process = await inkwell.start("watch")
    assert process.stdout
    changes = [json.loads(await process.stdout.readline())]
    await shared_users_client.post("/notes", json=NOTE | {"title": "after"}, headers=person.headers)
    changes.append(json.loads(await process.stdout.readline()))
    await shared_users_client.delete(before.headers["location"], headers=person.headers)
    changes.append(json.loads(await process.stdout.readline()))
    process.kill()
    await process.communicate()

    assert [(each["deleted"], each.get("note", {}).get("title")) for each in changes] == [
        (False, "before"),
        (False, "after"),
        (True, None),
    ]


async def test_separators_of_unicode_do_not_divide_lines(
    inkwell: Program, tmp_path: Path, shared_users_client: httpx.AsyncClient, person: Person
) -> None:
    separators = "\u2028 \u2029 \x85"
    note = NOTE | {"title": separators}
    notes = write_notes(tmp_path / "notes", json.dumps(note), json.dumps(NOTE | {f"a{separators}b": 1}))

    ended = await inkwell("import", notes)
    process = await inkwell.start("watch")
    assert process.stdout
    change = json.loads(await process.stdout.readline())
    process.kill()
    await process.communicate()

    assert (ended.code, ended.errors.count("line 2: validation_failed")) == (3, 1), ended.errors
    assert change["note"]["title"] == separators
    assert await count(shared_users_client, person) == 1


def test_watch_outlives_the_end_of_a_stream_that_had_only_heartbeats_for_long() -> None:
    def beat() -> Iterator[bytes]:
        for _ in range(6):
            time.sleep(0.1)
            yield b":\n\n"

    streams = iter([beat(), iter([b'event: change\nid: 1\ndata: {"id": 1}\n\n'])])
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=next(streams)))
    with httpx.Client(transport=transport, base_url="http://notes.example") as client:
        assert next(iter_changes(client, RetryPolicy(seconds=0.3))) == '{"id": 1}'


async def test_watch_prints_each_change_once_though_its_stream_breaks(tmp_path: Path) -> None:
    """Against a stand-in for the server's side that ends each stream early, and forgets its cursors once."""
    asked: list[str] = []
    app = FastAPI(openapi_url=None)

    @app.get("/notes/changes")
    async def get_changes(request: Request) -> Response:
        cursor = request.headers.get("last-event-id", "")
        asked.append(cursor)
        if cursor == "2" and asked.count("2") == 1:
            return Response(json.dumps({"code": "changes_gone", "detail": "gone", "status": 410}), 410)

        async def events() -> AsyncIterator[str]:
            yield "retry: 1000\n\n: alive\n\n"
            start = int(cursor or 0)
            for number in range(start + 1, start + 3):
                yield f'id: {number}\nevent: change\ndata: {{"id":{number}}}\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")

    async with harness.serving(app) as url:
        process = await Program(tmp_path, {"INKWELL_URL": url}).start("watch")
        assert process.stdout
        printed = [json.loads(await process.stdout.readline())["id"] for _ in range(6)]
        process.kill()
        await process.communicate()

    assert printed == [1, 2, 1, 2, 3, 4]
    assert asked[:4] == ["", "2", "", "2"]


@pytest.mark.parametrize(
    ("lines", "events"),
    [
        (["data: a", ""], [Event("", "message", "a")]),
        (
            ["id: 1", "event: change", "data:a", "data: b", "", ": beat", "", "data: c", ""],
            [Event("1", "change", "a\nb"), Event("1", "message", "c")],
        ),
        (["event: change", "", "data: unfinished"], []),
    ],
)
def test_events_are_read_as_the_standard_has_them(lines: list[str], events: list[Event]) -> None:
    assert list(iter_events(lines)) == events


def test_unfinished_line_is_cut_off_before_an_export_continues(tmp_path: Path) -> None:
    for text, last_id, kept in [
        (b"", 0, b""),
        (b'{"export":{}}\n{"id":7}\n{"id":8', 7, b'{"export":{}}\n{"id":7}\n'),
        (b'{"export":{}}\n{"id":7}\n{"end":{"complete":false}}\n', 7, None),
    ]:
        path = tmp_path / "part"
        path.write_bytes(text)
        with path.open("a+b") as file:
            assert find_end(file) == last_id
            file.write(b"next")
        assert path.read_bytes() == (text if kept is None else kept) + b"next"


def test_parts_and_key_depend_on_the_content_alone(tmp_path: Path) -> None:
    path = write_notes(tmp_path / "notes", *numbered(PART_LINES * 2 + 1), NOTE | {"description": "a" * 600_000})

    with path.open("rb") as file:
        assert [len(part) for part in iter_parts(file)] == [PART_LINES, PART_LINES, 1, 1]
        file.seek(0)
        key = derive_key(file)
    with write_notes(tmp_path / "copy", path.read_text().rstrip("\n")).open("rb") as copy:
        assert derive_key(copy) == key


def test_blocks_end_with_lines() -> None:
    assert list(iter_whole_lines([b"a", b"b\nc", b"\nd\n", b"e"])) == [b"ab\n", b"c\nd\n"]


def test_retries_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    policy = RetryPolicy(seconds=-1)

    with pytest.raises(ClientError, match="broke; gave up after"):
        policy.pause(ConnectionError("broke"))
