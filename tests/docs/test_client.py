"""The commands of docs/client.md do what the page says, and every command of the program is on it."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import httpx

from dev.backend import ROOT
from tests.support.accounts import personal_token, sign_up
from tests.support.canaries import NOTE

PAGE = (ROOT / "docs/client.md").read_text()
COMMANDS = ("login", "export", "import", "watch")


async def test_commands_take_the_notes_of_a_user_along(shared_users_client: httpx.AsyncClient, tmp_path: Path) -> None:
    [commands] = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    person = await sign_up(shared_users_client)
    await shared_users_client.post("/notes", json=NOTE, headers=person.headers)
    program = tmp_path / "bin/inkwell"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT / "client"} exec {sys.executable} -m inkwell_client "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "INKWELL_URL": str(shared_users_client.base_url),
        "INKWELL_TOKEN": (await personal_token(shared_users_client, person))["token"],
    }

    process = await asyncio.create_subprocess_exec("bash", "-euc", commands, cwd=tmp_path, env=environment)
    assert await process.wait() == 0

    first, note, last = map(json.loads, (tmp_path / "notes.ndjson").read_text().splitlines())
    assert (first.keys(), note["title"], last.keys()) == ({"export"}, NOTE["title"], {"end"})
    notes = (await shared_users_client.get("/notes", headers=person.headers)).json()
    assert [each["created_date"] for each in notes] == [note["created_date"]] * 2


def test_every_command_is_on_the_page() -> None:
    assert set(re.findall(r"\binkwell (\w+)", PAGE)) == set(COMMANDS)
