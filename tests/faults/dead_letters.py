"""A client whose writes become dead letters, and an operator who replays or discards them while everything fails.

Postgres refuses a text until it is cured. The operator runs the real commands as processes, kills some of them, and
repeats them.
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from random import Random
from tempfile import TemporaryFile
from typing import Any
from uuid import UUID

import asyncpg

from tests.faults.clients import POISON, REQUESTS
from tests.faults.cluster import Cluster
from tests.faults.connection import PUBLISH_SECONDS, READ_SECONDS, Owner, ask, end_soon, pause
from tests.faults.history import Answer, History
from tests.faults.keyed_writes import KeyedWrite
from tests.faults.letters import Letters, Operation, texts_of

LETTER_SECONDS, OPERATION_SECONDS = 4.0, 15.0
"""The pauses between two letters, since two equal failures in a row count as a bug, and between two operations."""
LOST_SECONDS, PROCESS_SECONDS, SETTLED_SECONDS = 120.0, 90.0, 45.0
"""After this time an outcome is missing, a process hangs, and either goes on after the end."""
RETRY_SECONDS = (0.1, 0.6)
AFTERWARDS, FORCED, CURED, KILLED, AGAIN = 0.4, 0.25, 0.85, 0.3, 0.7
"""How often another write follows a letter, a replay is forced or cured, and a process is killed, and repeated."""
KILL_SECONDS = (0.3, 3.0)
OUTCOMES = {2: "applied", 4: "rejected", 5: "failed"}


async def letters(owner: Owner, cluster: Cluster[Any], history: History, seed: int, stopping: asyncio.Event) -> None:
    """A correspondent and an operator, until stopped."""
    correspondent = Correspondent(owner, cluster, history, seed)
    operator = Operator(correspondent, cluster, history, seed)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(correspondent.run(stopping)), group.create_task(operator.run(stopping))]
        await stopping.wait()
        if await end_soon(tasks, SETTLED_SECONDS):
            history.complaints.append(f"I8: letters have not got all answers {SETTLED_SECONDS:.0f} s after the end")
    await operator.finish()


class Correspondent:
    """A client whose writes Postgres refuses, and who asks for their outcomes again and again."""

    def __init__(self, owner: Owner, cluster: Cluster[Any], history: History, seed: int) -> None:
        self._owner = owner
        self._gateways = cluster.clients
        self._history = history
        self._letters = Letters(history.letters, history.operations)
        self._random = Random(seed)  # noqa: S311 - no secret
        self._notes: list[int] = []

    async def run(self, stopping: asyncio.Event) -> None:
        """Writes letters until stopped."""
        while not stopping.is_set():
            if len(self._notes) < 3 or self._random.random() < 0.3:
                await self._write_note()
            note = self._random.choice(self._notes) if self._notes else None
            kind = self._random.choice(("create", "replace", "patch", "batch")) if note else "create"
            letter = await self.write(kind, f"{POISON} {self.new_key()}", None if kind == "create" else note)
            await self.settle(letter)
            if note and self._random.random() < AFTERWARDS:
                await self.settle(await self.write("replace", self.new_key(), note))
            for each in self._random.sample(self._letters.dead, min(3, len(self._letters.dead))):
                await self.ask_again(each)
            await pause(stopping, LETTER_SECONDS)

    async def write(self, kind: str, marker: str, note: int | None = None) -> KeyedWrite:
        """A write, repeated until the broker has it."""
        write = KeyedWrite(self._owner.id, kind, note, marker, self.new_key())
        self._letters.writes.append(write)
        while write.accepted is None and write.status in ("unknown", "refused"):
            if write.attempts:
                await asyncio.sleep(self._random.uniform(*RETRY_SECONDS))
            await self._send(write)
        return write

    async def settle(self, write: KeyedWrite) -> None:
        """Polls the write until it has an outcome."""
        deadline = asyncio.get_running_loop().time() + LOST_SECONDS
        while write.status == "unknown" and asyncio.get_running_loop().time() < deadline:
            await self._poll(write)
        if write.status == "unknown":
            self._history.complaints.append(f"I8: the outcome of {write.kind} {write.marker} stays unknown")

    async def ask_again(self, letter: KeyedWrite) -> None:
        """Polls the letter again, or repeats it with its key."""
        await (self._poll(letter) if letter.url and self._random.random() < 0.7 else self._send(letter))

    async def _write_note(self) -> None:
        write = await self.write("create", self.new_key())
        await self.settle(write)
        if write.status == "applied" and write.subject:
            self._notes.append(write.subject)

    async def _send(self, write: KeyedWrite) -> None:
        method, path, body = REQUESTS[write.kind](write)
        headers = {"Idempotency-Key": str(write.key), "Prefer": "respond-async"}
        write.attempts.append(await self._ask(method, path, PUBLISH_SECONDS, json=body, headers=headers))

    async def _poll(self, write: KeyedWrite) -> None:
        headers = {"Prefer": "wait=2"}
        write.polls.append(await self._ask("GET", str(write.url), READ_SECONDS + 2, headers=headers))
        if write.polls[-1].status != 200:
            await asyncio.sleep(self._random.uniform(*RETRY_SECONDS))

    async def _ask(self, method: str, path: str, limit_seconds: float, **request: Any) -> Answer:
        gateway = self._random.randrange(len(self._gateways))
        headers = self._owner.headers | request.pop("headers")
        return await ask(self._gateways, gateway, method, path, limit_seconds, headers=headers, **request)

    def new_key(self) -> str:
        """A random UUID that occurs once in the run."""
        return str(UUID(int=self._random.getrandbits(128), version=4))


class Operator:
    """Replays or discards dead letters with the worker's own commands."""

    def __init__(self, correspondent: Correspondent, cluster: Cluster[Any], history: History, seed: int) -> None:
        self._correspondent = correspondent
        self._cluster = cluster
        self._history = history
        self._letters = Letters(history.letters, history.operations)
        self._random = Random(seed)  # noqa: S311 - no secret

    async def run(self, stopping: asyncio.Event) -> None:
        """Works until stopped."""
        while not stopping.is_set():
            await pause(stopping, OPERATION_SECONDS)
            letters = [each for each in self._letters.dead if last_status(each) == "failed"]
            if not letters:
                continue
            chosen = self._random.sample(letters, self._random.randint(1, min(5, len(letters))))
            verb = self._random.choice(("replay", "replay", "replay", "discard", "discard", "list"))
            if verb == "replay" and self._random.random() < CURED:
                await self._cure(chosen)
            await self._correspondent.write("create", self._correspondent.new_key())
            await self._operate(verb, chosen)
            for letter in chosen:
                await self._correspondent.ask_again(letter)

    async def finish(self) -> None:
        """Lists the letters once more, and asks for the outcome of each."""
        await self._run(Operation("list", [], self._now()), None)
        for letter in self._letters.dead:
            await self._correspondent.ask_again(letter)

    async def _operate(self, verb: str, letters: Sequence[KeyedWrite]) -> None:
        """Runs the command; one that was killed is repeated, perhaps."""
        ids = [] if verb == "list" else [letter.id for letter in letters]
        is_forced = verb == "replay" and self._random.random() < FORCED
        seconds = self._random.uniform(*KILL_SECONDS) if self._random.random() < KILLED else None
        await self._run(Operation(verb, ids, self._now(), is_forced), seconds)
        if self._letters.operations[-1].code is None and self._random.random() < AGAIN:
            await self._run(Operation(verb, ids, self._now(), is_forced), None)

    async def _run(self, operation: Operation, seconds: float | None) -> None:
        """Runs the command as a process, which is killed after some seconds, if any are given."""
        self._letters.operations.append(operation)
        worker = self._random.choice(self._cluster.workers).process
        force = ["--force"] if operation.is_forced else []
        command = [sys.executable, "-m", "worker", "dead-letters", operation.verb, "--json", *force, *operation.ids]
        environment = os.environ | worker.environment
        with TemporaryFile() as out, TemporaryFile() as errors:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=self._cluster.tree, env=environment, stdout=out, stderr=errors
            )
            try:
                async with asyncio.timeout(seconds or PROCESS_SECONDS):
                    operation.code = await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
                if not seconds:
                    self._history.complaints.append(
                        f"I7: dead-letters {operation.verb} ran for {PROCESS_SECONDS:.0f} s"
                    )
            operation.ended = self._now()
            for file in (out, errors):
                file.seek(0)
            rows = [json.loads(line) for line in out.read().splitlines() if line.endswith(b"}")]
            operation.errors = errors.read().decode()
        operation.printed = {row["id"]: (row.get("result", "failed"), row["reason"]) for row in rows if "id" in row}

    async def _cure(self, letters: Sequence[KeyedWrite]) -> None:
        """Makes Postgres accept the letters' texts."""
        texts = ", ".join(f"('{text}')" for letter in letters for text in texts_of(letter))
        while True:
            try:
                await self._cluster.query(f"insert into cured values {texts} on conflict do nothing")  # noqa: S608
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(self._random.uniform(*RETRY_SECONDS))
            else:
                return

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def last_status(letter: KeyedWrite) -> str:
    """The status that was last reported."""
    told = [(poll.answered, str(poll.body["status"])) for poll in letter.polls if poll.status == 200]
    told += [(each.answered, OUTCOMES[each.status // 100]) for each in letter.attempts if each.is_outcome]
    return max(told, default=(0.0, "unknown"))[1]
