"""Clients that write, poll and read all the time, repeat unknown writes with their keys, and record everything."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from uuid import UUID

import aiohttp

from tests.faults.history import PATCHED, Answer, History, Read, Write, text_of_item
from tests.support.canaries import PASSWORD
from tests.support.harness import eventually

PUBLISH_SECONDS, READ_SECONDS, WAIT_SECONDS = 3.0, 3.0, 1.0
"""The settings of the gateways."""
PATIENCE_SECONDS = 10.0
"""How much longer than promised a client waits, to measure how late an answer is."""
TRIES, NO_VERSION = 6, 999_999
ASKS_AT_ONCE, OPEN_WRITES = 0.2, 4
LOOKS, REPEATS, CONDITIONS = 0.3, 0.05, 0.15
"""A client reads the note, repeats the write, or sets a condition once in this many writes."""
GIVEN_UP_SECONDS = 3.0
"""How long a client polls a write without a key that the broker has never confirmed and may not have."""
KEPT_SECONDS = 2.0
"""Shorter than uvicorn's limit of 5 s, or a request could be sent on a closing connection."""
POISON = "poison"
"""A trigger in Postgres refuses such a description."""
PREFERENCES = ("", "", "wait=1", "wait=2", "respond-async", "respond-async", "return=minimal")
Gateways = Sequence[aiohttp.ClientSession]
CHANGES = ("replace", "patch", "touch", "delete")


def several(write: Write) -> dict[str, Any]:
    """Two new notes and a patch of another, all or none."""
    texts = [text_of_item(write.marker, index) for index in range(PATCHED + 1)]
    created = [{"op": "create", "title": "Ink", "description": text} for text in texts[:PATCHED]]
    condition = {"if_match": [write.condition]} if write.condition else {}
    return {"items": [*created, {"op": "patch", "id": write.note, "description": texts[PATCHED]} | condition]}


REQUESTS: dict[str, Callable[[Write], tuple[str, str, dict[str, Any] | None]]] = {
    "create": lambda write: ("POST", "/notes/", {"title": "Ink", "description": write.marker}),
    "replace": lambda write: ("PUT", f"/notes/{write.note}", {"title": "Ink", "description": write.marker}),
    "patch": lambda write: ("PATCH", f"/notes/{write.note}", {"description": write.marker}),
    "touch": lambda write: ("PATCH", f"/notes/{write.note}", {}),
    "delete": lambda write: ("DELETE", f"/notes/{write.note}", None),
    "batch": lambda write: ("POST", "/notes/batch", several(write)),
    "register": lambda write: ("POST", "/users/", {"name": write.marker, "password": PASSWORD}),
    "rename": lambda write: ("PATCH", "/users/me", {"name": write.marker}),
    "token": lambda write: ("POST", "/auth/tokens", {"name": write.marker, "scopes": ["notes:read"]}),
}
"""Method, path and body of each kind of write."""


@dataclass
class Owner:
    """A user and the notes that their clients know."""

    id: int
    headers: dict[str, str]
    notes: dict[int, int] = field(default_factory=dict)
    """The newest version of each note that an answer contained."""
    urls: list[str] = field(default_factory=list)
    """The URLs of commands."""


class Client:
    """One client of an owner; does one thing at a time."""

    def __init__(self, owner: Owner, owners: Sequence[Owner], gateways: Gateways, history: History, seed: int) -> None:
        self.owner = owner
        self._owners = owners
        self._gateways = gateways
        self._history = history
        self._random = Random(seed)  # noqa: S311 - no secret
        self._open: deque[Write] = deque()

    async def run(self, stopping: asyncio.Event, pause_seconds: float) -> None:
        """Writes and reads until stopped."""
        while not stopping.is_set():
            await self._act()
            await asyncio.sleep(self._random.expovariate(1 / pause_seconds))

    async def _act(self) -> None:
        if not self.owner.notes:
            await self.write("create")
            return
        kinds = ("create", "replace", "patch", "touch", "delete", "batch", "read", "list", "trespass")
        [kind] = self._random.choices(kinds, (2, 6, 3, 0.6, 1.2, 0.6, 0.8, 0.2, 0.4))
        note = self._random.choice(list(self.owner.notes))
        if kind == "read":
            await self.read(note)
        elif kind == "list":
            await self._list()
        elif kind == "trespass":
            await self._trespass()
        else:
            await self.write(kind, None if kind == "create" else note)

    async def write(self, kind: str, note: int | None = None, *, marker: str = "", is_trespass: bool = False) -> Write:
        """A write, repeated as a careful client repeats it, and then a read of its note."""
        key = self._new_id() if marker or self._random.random() < 0.8 else None
        write = Write(self.owner.id, kind, note, marker or self._new_id(), key, is_trespass)
        write.conditions = self._conditions(kind, note)
        self._history.writes.append(write)
        for _ in range(TRIES):
            answer = await self._send(write, self._random.choice(PREFERENCES))
            if not (answer.is_refusal or key) or write.decided or answer.status == 202:
                break
            await asyncio.sleep(self._random.uniform(0.1, 1.0))
        if write.key and write.decided and self._random.random() < REPEATS:
            await self._send(write, self._random.choice(PREFERENCES))
        if write.url and write.status == "unknown":
            await self._ask_for_open(write)
        await self._look_at(write)
        return write

    async def _ask_for_open(self, write: Write) -> None:
        """Resolves this write or the oldest open ones, so that clients do not outrun the workers."""
        self._open.append(write)
        self.owner.urls.append(str(write.url))
        if self._random.random() < ASKS_AT_ONCE:
            await self._poll(write, self._random.choice((0, 1, 2)))
        while len(self._open) > OPEN_WRITES:
            if (oldest := self._open.popleft()).status == "unknown":
                await self._poll(oldest, 2)

    async def read(self, note: int, *, is_trespass: bool = False) -> None:
        """Reads a note."""
        answer = await self._ask("GET", f"/notes/{note}", READ_SECONDS)
        self._history.reads.append(Read(self.owner.id, note, answer, is_trespass))

    async def _list(self) -> None:
        """Reads the first page of the notes, which counts as a read of each note on it."""
        answer = await self._ask("GET", "/notes/?limit=20", READ_SECONDS)
        notes = answer.body if answer.status == 200 else []
        for note in notes:
            one = replace(answer, body=note, etag=f'"{note["version"]}"')
            self._history.reads.append(Read(self.owner.id, note["id"], one))
        if not notes:
            self._history.reads.append(Read(self.owner.id, 0, answer))

    async def ask_again(self, write: Write) -> bool:
        """Polls the write once more; returns whether its outcome is known now."""
        if write.status != "unknown":
            return True
        if write.key and write.accepted is None:
            await self._send(write, "wait=5")
        elif write.url:
            await self._poll(write, 2)
        return write.status != "unknown"

    async def settle(self, write: Write, deadline: float) -> None:
        """Resolves the write as a client does in the end; everything works again by now."""
        must_be_known = write.key or write.accepted is not None
        left = max(GIVEN_UP_SECONDS, deadline - asyncio.get_running_loop().time())
        with suppress(TimeoutError):
            if must_be_known or write.url:
                seconds = left if must_be_known else GIVEN_UP_SECONDS
                await eventually(lambda: self.ask_again(write), within_seconds=seconds)
        if must_be_known and write.status == "unknown":
            self._history.complaints.append(f"I1: the outcome of {write.kind} {write.marker} stays unknown")

    async def _trespass(self) -> None:
        stranger = self._random.choice([owner for owner in self._owners if owner is not self.owner])
        if not stranger.notes:
            return
        note = self._random.choice(list(stranger.notes))
        [kind] = self._random.choices(("read", "ask", "write"), (2, 1, 2))
        if kind == "read":
            await self.read(note, is_trespass=True)
        elif kind == "ask" and stranger.urls:
            answer = await self._ask("GET", self._random.choice(stranger.urls), READ_SECONDS)
            self._history.reads.append(Read(self.owner.id, 0, answer, is_trespass=True))
        else:
            await self.write(self._random.choice((*CHANGES, "batch")), note, is_trespass=True)

    async def _look_at(self, write: Write) -> None:
        if write.status != "applied" or write.is_trespass:
            return
        if write.kind == "batch":
            self.owner.notes |= dict(write.made)
            return
        note, version = write.subject, write.original[2]
        if note and write.kind == "delete":
            self.owner.notes.pop(note, None)
        elif note and version and (write.kind == "create" or note in self.owner.notes):
            self.owner.notes[note] = max(version, self.owner.notes.get(note, 0))
        if note and self._random.random() < LOOKS:
            await self.read(note)

    def _conditions(self, kind: str, note: int | None) -> dict[str, str]:
        """Sometimes a condition: one that never holds, or the newest known version of the note."""
        if kind not in (*CHANGES, "batch") or self._random.random() > CONDITIONS:
            return {}
        version = self.owner.notes.get(note or 0, NO_VERSION) if self._random.random() < 0.8 else NO_VERSION
        return {"If-Match": f'"{version}"'}

    async def _send(self, write: Write, preference: str) -> Answer:
        method, path, body = REQUESTS[write.kind](write)
        wait = float(preference.partition("wait=")[2] or (0 if preference == "respond-async" else WAIT_SECONDS))
        headers = write.conditions | ({"Idempotency-Key": write.key} if write.key else {})
        headers |= {"Prefer": preference} if preference else {}
        answer = await self._ask(method, path, PUBLISH_SECONDS + wait, json=body, headers=headers)
        write.attempts.append(answer)
        return answer

    async def _poll(self, write: Write, wait: int) -> None:
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        write.polls.append(await self._ask("GET", str(write.url), READ_SECONDS + wait, headers=headers))

    async def _ask(self, method: str, path: str, limit_seconds: float, **request: Any) -> Answer:
        gateway = self._random.randrange(len(self._gateways))
        headers = self.owner.headers | request.pop("headers", {})
        return await ask(self._gateways, gateway, method, path, limit_seconds, headers=headers, **request)

    def _new_id(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))


async def ask(gateways: Gateways, gateway: int, method: str, path: str, limit_seconds: float, **request: Any) -> Answer:
    """The answer of a gateway, or why there is none."""
    loop = asyncio.get_running_loop()
    answer = Answer(gateway, loop.time(), limit_seconds)
    timeout = aiohttp.ClientTimeout(limit_seconds + PATIENCE_SECONDS)
    try:
        async with gateways[gateway].request(method, path, timeout=timeout, **request) as response:
            await fill(answer, response)
    except (aiohttp.ClientError, OSError) as error:
        answer.error = type(error).__name__
    answer.answered = loop.time()
    return answer


async def fill(answer: Answer, response: aiohttp.ClientResponse) -> None:
    """Records what the checker needs of a response."""
    content = await response.read()
    answer.etag, answer.location = response.headers.get("etag"), response.headers.get("location")
    if content:
        answer.body = json.loads(content)
        answer.code = answer.body.get("code") if isinstance(answer.body, dict) and not response.ok else None
    answer.status = response.status


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Waits so long, or until stopped."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopping.wait()


async def end_soon(tasks: Collection[asyncio.Task[None]], seconds: float) -> int:
    """Waits so long for the tasks to end, and then cancels them; returns the number of those cancelled."""
    _, late = await asyncio.wait(tasks, timeout=seconds) if tasks else ((), ())
    for task in late:
        task.cancel()
    return len(late)


def session(base_url: str) -> aiohttp.ClientSession:
    """A session that sends a request once: aiohttp itself would silently repeat some when a connection ends."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_SECONDS)
    opened = aiohttp.ClientSession(base_url, connector=connector)
    opened._retry_connection = False
    return opened
