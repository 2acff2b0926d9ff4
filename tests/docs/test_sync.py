"""The programs in docs/sync.md keep a copy of the notes, and lose no edit, on real servers."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from dev.backend import ROOT
from gateway.settings import GatewaySettings
from shared.primary import Session
from tests.support import harness
from tests.support.accounts import Person, sign_up
from tests.support.canaries import NOTE
from worker.settings import WorkerSettings

PROGRAMS = dict(
    re.findall(r"^```(python|typescript)\n(.*?)^```", (ROOT / "docs/sync.md").read_text(), re.DOTALL | re.MULTILINE)
)
TYPES = ["--strict", "--noUncheckedIndexedAccess", "--target", "es2022", "--module", "nodenext", "--types", "node"]
PURGE = """
with purged as (delete from tombstones returning owner_id, mod_revision)
update users set purged_revision = greatest(purged_revision, mod_revision) from purged where users.id = owner_id
"""
Note = dict[str, Any]


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs a program of the page."""
    if request.param == "python":
        file = tmp_path_factory.mktemp("sync") / "sync.py"
        file.write_text(PROGRAMS["python"])
        return [sys.executable, str(file)]
    folder: Path = request.getfixturevalue("node_folder")
    (folder / "sync.ts").write_text(PROGRAMS["typescript"])
    compiled = subprocess.run(
        [folder / "node_modules/.bin/tsc", *TYPES, "sync.ts"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stdout
    return ["node", str(folder / "sync.js")]


@dataclass
class Device:
    """A device with a copy of a user's notes, in a file."""

    program: list[str]
    folder: Path
    client: httpx.AsyncClient
    person: Person

    @property
    def copy(self) -> dict[str, Any]:
        copy: dict[str, Any] = json.loads((self.folder / "notes.json").read_text())
        return copy

    @property
    def notes(self) -> list[Note]:
        return sorted(self.copy["notes"].values(), key=lambda note: note["id"])

    @property
    def edits(self) -> list[dict[str, Any]]:
        edits: list[dict[str, Any]] = self.copy["edits"]
        return edits

    def store(self, **members: object) -> None:
        (self.folder / "notes.json").write_text(json.dumps(self.copy | members))

    def edit(self, seen: Note | None, fields: dict[str, str] | None) -> str:
        """Stores what the user did without a connection; returns the edit's key."""
        edit = {"key": str(uuid4()), "seen": seen, "fields": fields}
        self.store(edits=[*self.edits, edit])
        return edit["key"]  # type: ignore[return-value]

    async def synchronize(self, wait_seconds: int = 0) -> None:
        process = await asyncio.create_subprocess_exec(
            *(*self.program, str(wait_seconds)),
            env=os.environ | {"INKWELL_URL": str(self.client.base_url), "INKWELL_TOKEN": self.person.token},
            cwd=self.folder,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            _, errors = await process.communicate()
        assert (process.returncode, errors.decode()) == (0, "")

    async def listed(self) -> list[Note]:
        """The user's notes, as the server has them."""
        notes: list[Note] = (await self.client.get("/notes?limit=1000", headers=self.person.headers)).json()
        return notes

    async def write(self, method: str, path: str, **request: Any) -> Note:
        """What another device of the user writes."""
        response = await self.client.request(method, path, headers=self.person.headers, **request)
        assert response.is_success, response.text
        return response.json() if response.content else {}


def new_device(program: list[str], folder: Path, client: httpx.AsyncClient, person: Person) -> Device:
    (folder / "notes.json").write_text('{"cursor": null, "notes": {}, "edits": []}')
    return Device(program, folder, client, person)


@pytest.fixture
async def device(program: list[str], tmp_path: Path, shared_users_client: httpx.AsyncClient) -> Device:
    return new_device(program, tmp_path, shared_users_client, await sign_up(shared_users_client))


async def test_first_and_later_synchronizations_copy_the_notes(device: Device) -> None:
    items = [{"op": "create", **NOTE}] * 150  # more than a page
    await device.write("POST", "/notes/batch", json={"items": items})
    await device.synchronize()
    assert device.notes == await device.listed()
    first, second, *_ = device.notes

    await device.write("PATCH", f"/notes/{first['id']}", json={"title": "Changed"})
    await device.write("DELETE", f"/notes/{second['id']}")
    await device.synchronize()

    assert device.notes == await device.listed()
    assert [device.notes[0]["title"], len(device.notes)] == ["Changed", 149]


async def test_edits_made_without_a_connection_are_sent(device: Device) -> None:
    changed, deleted = await device.write("POST", "/notes", json=NOTE), await device.write("POST", "/notes", json=NOTE)
    await device.synchronize()
    device.edit(None, NOTE | {"title": "New"})
    device.edit(changed, {"title": "Changed"})
    device.edit(deleted, None)

    await device.synchronize()

    assert [note["title"] for note in device.notes] == ["Changed", "New"]
    assert (device.notes, device.edits) == (await device.listed(), [])


async def test_lost_responses_cause_neither_a_second_note_nor_a_conflict(device: Device) -> None:
    note = await device.write("POST", "/notes", json=NOTE)
    await device.synchronize()
    keys = [device.edit(None, NOTE), device.edit(note, {"title": "Changed"})]
    for (method, path, body), key in zip(
        [("POST", "/notes", NOTE), ("PATCH", f"/notes/{note['id']}", {"title": "Changed"})], keys, strict=True
    ):
        headers = device.person.headers | {"Idempotency-Key": key}
        headers |= {"If-Match": '"1"'} if method == "PATCH" else {}
        assert (await device.client.request(method, path, json=body, headers=headers)).is_success

    await device.synchronize()

    assert [note["title"] for note in device.notes] == ["Changed", NOTE["title"]]
    assert (device.notes, device.edits) == (await device.listed(), [])


async def test_edits_of_different_fields_are_both_kept(device: Device) -> None:
    note = await device.write("POST", "/notes", json=NOTE)
    await device.synchronize()
    await device.write("PATCH", f"/notes/{note['id']}", json={"description": "by another device"})
    device.edit(note, {"title": "by this one"})

    await device.synchronize()
    await device.synchronize()

    [merged] = await device.listed()
    assert (merged["title"], merged["description"]) == ("by this one", "by another device")
    assert (device.notes, device.edits) == ([merged], [])


async def test_edits_of_the_same_field_are_left_to_the_user(device: Device) -> None:
    note = await device.write("POST", "/notes", json=NOTE)
    await device.synchronize()
    theirs = await device.write("PATCH", f"/notes/{note['id']}", json={"title": "by another device"})
    device.edit(note, {"title": "by this one"})

    await device.synchronize()
    await device.synchronize()

    [edit] = device.edits
    assert (edit["conflict"], edit["fields"]) == (True, {"title": "by this one"})
    assert device.notes == [theirs] == await device.listed()

    device.store(edits=[])
    device.edit(theirs, {"title": "by both"})
    await device.synchronize()
    assert ([note["title"] for note in device.notes], device.edits) == (["by both"], [])


async def test_edit_of_a_deleted_note_is_kept_and_its_deletion_is_done(device: Device) -> None:
    edited, deleted = await device.write("POST", "/notes", json=NOTE), await device.write("POST", "/notes", json=NOTE)
    await device.synchronize()
    for note in (edited, deleted):
        await device.write("DELETE", f"/notes/{note['id']}")
    device.edit(edited, {"title": "late"})
    device.edit(deleted, None)

    await device.synchronize()

    [edit] = device.edits
    assert (edit["conflict"], edit["fields"], device.notes) == (True, {"title": "late"}, [])


async def test_copy_that_is_too_old_is_made_anew_and_its_edits_are_kept(
    program: list[str], tmp_path: Path, users_client: httpx.AsyncClient, database: Session
) -> None:
    device = new_device(program, tmp_path, users_client, await sign_up(users_client))
    kept, deleted = await device.write("POST", "/notes", json=NOTE), await device.write("POST", "/notes", json=NOTE)
    await device.synchronize()
    await device.write("DELETE", f"/notes/{deleted['id']}")
    await database.execute(PURGE)
    device.edit(kept, {"title": "Changed"})

    await device.synchronize()

    assert [note["title"] for note in device.notes] == ["Changed"]
    assert (device.notes, device.edits) == (await device.listed(), [])


async def test_waiting_program_ends_at_the_first_change(device: Device) -> None:
    await device.synchronize()
    begun = time.monotonic()
    running = asyncio.create_task(device.synchronize(wait_seconds=30))
    await asyncio.sleep(2)  # the program waits by then, or else finds the note at once

    await device.write("POST", "/notes", json=NOTE)
    await running

    assert time.monotonic() - begun < 20
    assert device.notes == await device.listed() != []


async def test_edit_that_is_answered_202_is_sent_until_it_has_an_outcome(
    program: list[str], tmp_path: Path, password_settings: GatewaySettings, worker_settings: WorkerSettings
) -> None:
    impatient = password_settings.model_copy(update={"wait_seconds": 0.1})
    async with harness.gateway(impatient) as client:
        async with harness.worker(worker_settings):
            device = new_device(program, tmp_path, client, await sign_up(client))
        device.edit(None, NOTE)
        await device.synchronize()
        assert (len(device.edits), device.notes) == (1, [])

        async with harness.worker(worker_settings):
            await harness.eventually(device.listed)
            await device.synchronize()

        assert (len(device.notes), device.edits) == (1, [])
        assert device.notes == await device.listed()
