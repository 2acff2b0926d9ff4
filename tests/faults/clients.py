"""Clients that write, poll and read all the time, repeat unknown writes with their keys, and record everything."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

from tests.faults.connection import PUBLISH_SECONDS, READ_SECONDS, WAIT_SECONDS, Connection, Gateways, Owner
from tests.faults.history import GONE, PATCHED, SEVERAL, TEXTLESS, Answer, History, Read, Write, text_of, text_of_item
from tests.faults.pages import Pages
from tests.faults.transfers import import_some, send_import
from tests.support.harness import eventually

TRIES, NO_VERSION, NOT_FOUND = 6, 999_999, 404
ASKS_AT_ONCE, OPEN_WRITES = 0.2, 4
LOOKS, LISTS, REPEATS, CONDITIONS = 0.3, 0.04, 0.05, 0.15
"""A client reads the note or a list, repeats the write, or sets a condition once in this many writes."""
CROWDS, CROWD, CROWD_READS, CROWD_SECONDS = 0.04, 3, 30, 0.02
"""Once in this many writes, so many readers read the note again and again until it is written, with such pauses."""
GIVEN_UP_SECONDS = 3.0
"""How long a client polls a write without a key that the broker has never confirmed and may not have."""
POISON = "poison"
"""A trigger in Postgres refuses such a description."""
PREFERENCES = ("", "", "wait=1", "wait=2", "respond-async", "respond-async", "return=minimal")
CHANGES = ("replace", "patch", "touch", "delete")
ON_TRASH = ("restore", "purge")
CONDITIONAL = (*CHANGES, *ON_TRASH, *SEVERAL)
WEIGHTS = {
    "replace": 6.0,
    "patch": 3.0,
    "create": 2.0,
    "delete": 1.2,
    "restore": 0.6,
    "touch": 0.6,
    "batch": 0.5,
    "swap": 0.2,
    "purge": 0.15,
    "import": 0.1,
    "reuse": 0.2,
    "read": 0.8,
    "look": 0.7,
    "trespass": 0.4,
}
"""How often a client does what, in relation to each other."""
ACTIONS, CUMULATIVE_WEIGHTS = tuple(WEIGHTS), tuple(accumulate(WEIGHTS.values()))
CONDITIONAL_READS, HEADS, TRASH_READS, STRANGERS_TRASH = 0.2, 0.1, 0.1, 0.3
"""A client reads a note if it has changed, reads its head alone, or reads a deleted note, its own or another owner's,
once in this many reads."""
REUSABLE = {"create", "replace", "patch", *SEVERAL}
"""The kinds of writes whose requests differ."""
TRASH_KNOWN, REUSED_KNOWN = 40, 10
"""How many of the last deleted notes, and of their own last writes with a key, clients remember."""


def several(write: Write) -> dict[str, Any]:
    """Two new notes and a patch of another, or one new note and the end of another; all or none."""
    condition = {"id": write.note} | ({"if_match": [write.condition]} if write.condition else {})
    if write.kind == "swap":
        created, change = [text_of(text_of_item(write.marker, 0))], {"op": "delete"}
    else:
        created = [text_of(text_of_item(write.marker, index)) for index in range(PATCHED)]
        change = {"op": "patch", "description": text_of_item(write.marker, PATCHED)}
    return {"items": [*({"op": "create"} | each for each in created), change | condition]}


REQUESTS: dict[str, Callable[[Write], tuple[str, str, dict[str, Any] | None]]] = {
    "create": lambda write: ("POST", "/notes/", text_of(write.marker)),
    "replace": lambda write: ("PUT", f"/notes/{write.note}", text_of(write.marker)),
    "patch": lambda write: ("PATCH", f"/notes/{write.note}", {"description": write.marker}),
    "touch": lambda write: ("PATCH", f"/notes/{write.note}", {}),
    "delete": lambda write: ("DELETE", f"/notes/{write.note}", None),
    "restore": lambda write: ("POST", f"/notes/{write.note}/restore", None),
    "purge": lambda write: ("DELETE", f"/notes/trash/{write.note}", None),
    "batch": lambda write: ("POST", "/notes/batch", several(write)),
    "swap": lambda write: ("POST", "/notes/batch", several(write)),
}
"""Method, path and body of each kind of write."""


class Client(Connection):
    """One client of an owner; does one thing at a time."""

    def __init__(self, owner: Owner, owners: Sequence[Owner], gateways: Gateways, history: History, seed: int) -> None:
        super().__init__(owner, gateways, history, seed)
        self._owners = owners
        self._open: deque[Write] = deque()
        self._reusable: deque[Write] = deque(maxlen=REUSED_KNOWN)
        self._pages = Pages(self)

    async def run(self, stopping: asyncio.Event, pause_seconds: float) -> None:
        """Writes and reads until stopped."""
        while not stopping.is_set():
            await self._act()
            await asyncio.sleep(self.random.expovariate(1 / pause_seconds))

    async def _act(self) -> None:
        if not self.owner.notes:
            await self.write("create")
            return
        [action] = self.random.choices(ACTIONS, cum_weights=CUMULATIVE_WEIGHTS)
        if action == "read":
            await self._read_some()
        elif action == "look":
            await self.look()
        elif action == "trespass":
            await self._trespass()
        elif action == "reuse":
            await self._reuse_a_key()
        elif action == "import":
            await import_some(self)
        else:
            await self.write(action, self._some_note(action))

    def _some_note(self, kind: str) -> int | None:
        """A note for a write of this kind, which may have been deleted or restored meanwhile."""
        if kind == "create":
            return None
        while len(self.owner.trash) > TRASH_KNOWN:
            del self.owner.trash[next(iter(self.owner.trash))]
        notes = self.owner.trash if kind in ON_TRASH and self.owner.trash else self.owner.notes
        return self.random.choice(list(notes))

    async def look(self) -> None:
        """Reads a page of some kind."""
        await self._pages.look()

    async def write(
        self, kind: str, note: int | None = None, *, marker: str = "", is_trespass: bool = False, key: str = ""
    ) -> Write:
        """A write, repeated as a careful client repeats it, and then a read of its note.

        With a `key` it is a write for which a client uses a key again by mistake.
        """
        new_key = self.new_id() if marker or kind in ON_TRASH or self.random.random() < 0.8 else None
        write = Write(self.owner.id, kind, note, marker or self.new_id(), key or new_key, is_trespass)
        write.is_reuse = bool(key)
        write.conditions = self._conditions(kind, note)
        self.history.writes.append(write)
        if note and kind in CHANGES and not is_trespass and self.random.random() < CROWDS:
            await self._send_before_a_crowd(write, note)
        else:
            await self._send_until_accepted(write)
        if write.key and write.decided and self.random.random() < REPEATS:
            await self._send(write, self.random.choice(PREFERENCES))
        if write.url and write.status == "unknown":
            await self._ask_for_open(write)
        await self._look_at(write)
        return write

    async def _send_until_accepted(self, write: Write) -> None:
        for _ in range(TRIES):
            answer = await self._send(write, self.random.choice(PREFERENCES))
            if not (answer.is_refusal or write.key) or write.decided or answer.status == 202:
                break
            await asyncio.sleep(self.random.uniform(0.1, 1.0))

    async def _send_before_a_crowd(self, write: Write, note: int) -> None:
        """Sends the write while others read its note again and again; each reads it once more after the response."""
        sent = asyncio.Event()

        async def read_until_sent() -> None:
            for _ in range(CROWD_READS):
                is_last = sent.is_set()
                await self.read(note)
                if is_last:
                    break
                await asyncio.sleep(self.random.uniform(0, CROWD_SECONDS))

        async with asyncio.TaskGroup() as readers:
            for _ in range(CROWD):
                readers.create_task(read_until_sent())
            await self._send_until_accepted(write)
            sent.set()

    async def _reuse_a_key(self) -> None:
        """Sends another request with the key of an earlier one that is decided."""
        if self._reusable:
            former = self.random.choice(self._reusable)
            await self.write(former.kind, former.note, key=former.key or "")

    async def _ask_for_open(self, write: Write) -> None:
        """Resolves this write or the oldest open ones, so that clients do not outrun the workers."""
        self._open.append(write)
        self.owner.urls.append(str(write.url))
        if self.random.random() < ASKS_AT_ONCE:
            await self._poll(write, self.random.choice((0, 1, 2)))
        while len(self._open) > OPEN_WRITES:
            if (oldest := self._open.popleft()).status == "unknown":
                await self._poll(oldest, 2)

    async def _read_some(self) -> None:
        is_in_trash = bool(self.owner.trash) and self.random.random() < TRASH_READS
        note = self.random.choice(list(self.owner.trash if is_in_trash else self.owner.notes))
        await self.read(note, is_in_trash=is_in_trash)

    async def read(self, note: int, *, is_trespass: bool = False, is_in_trash: bool = False) -> None:
        """Reads a note, sometimes only its head, or only if it has changed."""
        method, headers, chance = "GET", {}, self.random.random()
        if chance < HEADS and not is_in_trash:
            method = "HEAD"
        elif chance < HEADS + CONDITIONAL_READS:
            known = (self.owner.trash if is_in_trash else self.owner.notes).get(note, NO_VERSION)
            headers = {"If-None-Match": f'"{known}"'}
        path = f"/notes/trash/{note}" if is_in_trash else f"/notes/{note}"
        answer = await self.ask(method, path, READ_SECONDS, headers=headers)
        self.history.reads.append(Read(self.owner.id, note, answer, is_trespass, is_in_trash))
        if answer.status == NOT_FOUND and not is_trespass:
            self._forget(note, is_in_trash=is_in_trash)

    async def ask_again(self, write: Write) -> bool:
        """Polls the write once more; returns whether its outcome is known now."""
        if write.status != "unknown":
            return True
        if write.kind == "import" or (write.key and write.accepted is None):
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
            self.history.complaints.append(f"I1: the outcome of {write.kind} {write.marker} stays unknown")

    async def _trespass(self) -> None:
        stranger = self.random.choice([owner for owner in self._owners if owner is not self.owner])
        if not stranger.notes:
            return
        is_in_trash = bool(stranger.trash) and self.random.random() < STRANGERS_TRASH
        note = self.random.choice(list(stranger.trash if is_in_trash else stranger.notes))
        [kind] = self.random.choices(("read", "ask", "write"), (2, 1, 2))
        if kind == "read":
            await self.read(note, is_trespass=True, is_in_trash=is_in_trash)
        elif kind == "ask" and stranger.urls:
            answer = await self.ask("GET", self.random.choice(stranger.urls), READ_SECONDS)
            self.history.reads.append(Read(self.owner.id, 0, answer, is_trespass=True))
        else:
            kinds = ON_TRASH if is_in_trash else (*CHANGES, *SEVERAL)
            await self.write(self.random.choice(kinds), note, is_trespass=True)

    async def _look_at(self, write: Write) -> None:
        if write.status == "rejected" and write.note and not write.is_trespass and write.original[0] == NOT_FOUND:
            self._forget(write.note, is_in_trash=write.kind in ON_TRASH)
        if write.status != "applied" or write.is_trespass:
            return
        if write.key and write.kind in REUSABLE and not write.is_reuse:
            self._reusable.append(write)
        if write.kind not in TEXTLESS:
            self.owner.texts.append(write.marker)
        for note, version in write.made:
            self._remember(note, version, write)
        if write.subject and write.kind not in SEVERAL and self.random.random() < LOOKS:
            await self.read(write.subject)
        if self.random.random() < LISTS:
            await self._pages.look_at_newest()

    def _forget(self, note: int, *, is_in_trash: bool) -> None:
        """Updates what the owner's clients know of a note that was not found; a deleted one may be in the trash."""
        notes, trash = self.owner.notes, self.owner.trash
        if is_in_trash:
            trash.pop(note, None)
        elif note in notes:
            trash[note] = notes.pop(note)

    def _remember(self, note: int, version: int, write: Write) -> None:
        """Updates what the owner's clients know of a note."""
        notes, trash = self.owner.notes, self.owner.trash
        if write.kind == "purge":
            trash.pop(note, None)
        elif version == GONE:
            trash[note] = notes.pop(note, NO_VERSION)
        elif note in notes or note != write.note or write.kind == "restore":
            notes[note] = max(version, notes.get(note, 0))
            trash.pop(note, None)

    def _conditions(self, kind: str, note: int | None) -> dict[str, str]:
        """Sometimes a condition: one that never holds, or the newest known version of the note."""
        if kind not in CONDITIONAL or self.random.random() > CONDITIONS:
            return {}
        known = self.owner.trash if kind in ON_TRASH else self.owner.notes
        version = known.get(note or 0, NO_VERSION) if self.random.random() < 0.8 else NO_VERSION
        return {"If-Match": f'"{version}"'}

    async def _send(self, write: Write, preference: str) -> Answer:
        if write.kind == "import":
            return await send_import(self, write)
        method, path, body = REQUESTS[write.kind](write)
        wait = float(preference.partition("wait=")[2] or (0 if preference == "respond-async" else WAIT_SECONDS))
        headers = write.conditions | ({"Idempotency-Key": write.key} if write.key else {})
        headers |= {"Prefer": preference} if preference else {}
        answer = await self.ask(method, path, PUBLISH_SECONDS + wait, json=body, headers=headers)
        write.attempts.append(answer)
        return answer

    async def _poll(self, write: Write, wait: int) -> None:
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        write.polls.append(await self.ask("GET", str(write.url), READ_SECONDS + wait, headers=headers))
