"""Many notes are exported and imported into an empty deployment, each interrupted three times; nothing differs.

`make million` does it with a million notes, and draws the memory that the processes take meanwhile.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from dev.backend import ROOT
from tests.support.stack import Stack
from tests.system.servers import Servers

NOTES = int(os.environ.get("NOTES", "20000"))
RESULTS = os.environ.get("RESULTS")
"""Where to write the memory over time."""
PLOTTED_SAMPLES = 200
MEBIBYTE = 1024 * 1024
LIMITS_MIB = {"gateway": 200, "worker": 250, "client": 100}
"""Of resident memory, however many notes there are; Python and the libraries are most of it."""
SEED = """
insert into notes (owner_id, title, description, created_date, updated_date, version, mod_revision)
select id, 'Note ' || number, 'word' || number % 5000 || ' in a few more words, ' || number,
    '2020-01-01'::timestamptz + number * interval '1 minute', now(), 1 + number % 3, 1
from users, generate_series(1, {notes}) number where name is not null;
update users set revision = 1 where name is not null
"""
BYTES_OF_A_NOTE = 200
Interruption = Callable[[], Awaitable[object]]

pytestmark = [pytest.mark.needs_docker, pytest.mark.timeout(7200)]


@dataclass
class Memory:
    """The resident memory of processes, sampled all the time."""

    phases: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    """By phase and process: seconds since the phase began, and MiB."""

    @asynccontextmanager
    async def sampled(self, phase: str, find: Callable[[], dict[str, int | None]]) -> AsyncIterator[None]:
        """Sample the processes during the block; `find` returns their ids."""
        task = asyncio.create_task(self._sample(phase, find))
        try:
            yield
        finally:
            task.cancel()

    async def _sample(self, phase: str, find: Callable[[], dict[str, int | None]]) -> None:
        started = time.monotonic()
        samples = self.phases.setdefault(phase, {})
        while True:
            for name, pid in find().items():
                with suppress(psutil.NoSuchProcess):
                    if pid and (mebibytes := psutil.Process(pid).memory_info().rss / MEBIBYTE):
                        samples.setdefault(name, []).append((time.monotonic() - started, mebibytes))
            await asyncio.sleep(0.2)

    def thin(self) -> dict[str, dict[str, list[tuple[float, float]]]]:
        """At most about PLOTTED_SAMPLES of each process, rounded."""
        return {
            phase: {
                name: [
                    (round(at, 1), round(mebibytes, 1))
                    for at, mebibytes in values[:: 1 + len(values) // PLOTTED_SAMPLES]
                ]
                for name, values in samples.items()
            }
            for phase, samples in self.phases.items()
        }

    @property
    def largest(self) -> dict[str, float]:
        """The most that each process has taken."""
        found: dict[str, float] = {}
        for samples in self.phases.values():
            for name, values in samples.items():
                found[name] = max(found.get(name, 0.0), *(mebibytes for _, mebibytes in values))
        return found


@dataclass
class Client:
    """The client program, which is started again whenever it is killed."""

    stack: Stack
    folder: Path
    process: asyncio.subprocess.Process | None = None

    async def run(self, *arguments: object) -> int:
        """Returns the exit code; that of a killed program is negative."""
        environment = {
            "INKWELL_URL": str(self.stack.client.base_url),
            "INKWELL_TOKEN": self.stack.client.headers["authorization"].removeprefix("Bearer "),
            "PYTHONPATH": str(ROOT / "client"),
        }
        command = (sys.executable, "-m", "inkwell_client", *map(str, arguments))
        self.process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=self.folder)
        return await self.process.wait()

    async def run_through(
        self, interruptions: list[Interruption], progress: Callable[[], Awaitable[float]], *arguments: object
    ) -> None:
        """Run the program until it ends by itself; interrupt it on the way, evenly distributed over its progress."""
        interrupting = asyncio.create_task(self._interrupt(interruptions, progress))
        while (code := await self.run(*arguments)) < 0:
            pass
        assert code == 0
        assert interrupting.done(), "it ended before it was interrupted as often as it should be"
        await interrupting

    async def _interrupt(self, interruptions: list[Interruption], progress: Callable[[], Awaitable[float]]) -> None:
        for number, interrupt in enumerate(interruptions):
            while await progress() <= number / len(interruptions):
                await asyncio.sleep(0.005)
            await interrupt()

    async def kill(self) -> None:
        assert self.process
        self.process.kill()


def list_interruptions(servers: Servers, stack: Stack, client: Client) -> list[Interruption]:
    async def kill_gateway() -> None:
        await stack.gateway.kill()
        await stack.gateway.start()

    return [client.kill, kill_gateway, servers.restart_postgres]


def iter_notes(path: Path) -> Iterator[dict[str, Any]]:
    """The notes of an export, without what an import changes."""
    with path.open() as file:
        for line in file:
            note = json.loads(line)
            if "title" in note:
                yield {name: note[name] for name in ("title", "description", "created_date")}


async def test_notes_survive_an_export_and_an_import_that_are_interrupted(breakable: Servers, tmp_path: Path) -> None:
    memory = Memory()
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    async with breakable.stack(first, token_lifetime_seconds="86400") as stack:
        await stack.script(SEED.format(notes=NOTES))
        client = Client(stack, tmp_path)
        part = tmp_path / "notes.part"

        async def exported() -> float:
            return part.stat().st_size / NOTES / BYTES_OF_A_NOTE if part.exists() else 0.0

        async with memory.sampled("export", lambda: list_processes(stack, client)):
            await client.run_through(list_interruptions(breakable, stack, client), exported, "export", "notes")
    async with breakable.stack(second, token_lifetime_seconds="86400") as stack:
        client = Client(stack, tmp_path)

        async def imported() -> float:
            with suppress(OSError):
                return float(await stack.value("select revision from users where name is not null")) * 500 / NOTES
            return 0.0

        async with memory.sampled("import", lambda: list_processes(stack, client)):
            await client.run_through(list_interruptions(breakable, stack, client), imported, "import", "notes")
        assert await client.run("export", "again") == 0
        assert await stack.value("select count(*) from notes") == NOTES

    count = 0
    for before, after in zip(iter_notes(tmp_path / "notes"), iter_notes(tmp_path / "again"), strict=True):
        assert before == after
        count += 1
    assert count == NOTES
    if RESULTS:
        (ROOT / RESULTS).write_text(json.dumps({"notes": NOTES, "phases": memory.thin()}) + "\n")
    assert {name: largest for name, largest in memory.largest.items() if largest > LIMITS_MIB[name]} == {}


def list_processes(stack: Stack, client: Client) -> dict[str, int | None]:
    return {
        "gateway": stack.gateway.pid if stack.gateway.running else None,
        "worker": stack.worker.pid if stack.worker.running else None,
        "client": client.process.pid if client.process and client.process.returncode is None else None,
    }
