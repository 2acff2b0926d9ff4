"""People who register, sign in, change their password, revoke tokens and delete their account, while they write.

Each of these ends credentials with which writes are queued, are under way, and are sent afterwards.
"""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from random import Random
from typing import Any
from uuid import UUID

import aiohttp

from shared.contracts import NO_OWNER
from tests.faults.clients import REQUESTS
from tests.faults.connection import (
    PUBLISH_SECONDS,
    READ_SECONDS,
    WAIT_SECONDS,
    Gateways,
    ask,
    end_soon,
    fill,
    pause,
)
from tests.faults.followers import ERRORS, PATH, SILENT_SECONDS, events
from tests.faults.history import Answer, History
from tests.faults.people import Credentials, Person, PersonalWrite, SignIn, Stream, Use
from tests.support.accounts import bearer
from tests.support.canaries import PASSWORD

PEOPLE, PAUSE_SECONDS = 10, 4.5
"""At most so many live at once, and one begins after another: a life hashes about six passwords, a second of work."""
HASH_SECONDS = 6.0
"""How much longer an answer may take that needs a password's hash."""
RETRY_SECONDS = (0.1, 0.6)
GIVEN_UP_SECONDS, SETTLED_SECONDS = 120.0, 30.0
TRIES = 3
PATIENT, PATIENT_SECONDS, REVOKED_SECONDS = 0.2, 40.0, 5.0
"""One in five waits until every gateway must know of a revocation, and tries the token so often."""
STREAMS, RENAMES, RETURNS = 0.4, 0.4, 0.3
"""How often a person follows changes, takes another name, or registers under the name of a deleted account."""
LIST = "/notes/?limit=20"
NOTES = ("create", "create", "replace", "delete", "batch")
"""The writes of notes, as often as each is sent."""


async def people(gateways: Gateways, history: History, seed: int, stopping: asyncio.Event) -> None:
    """One person after another, and several at once, until stopped."""
    random, free = Random(seed), list[str]()  # noqa: S311 - no secret
    lives, number = set[asyncio.Task[None]](), 0
    async with asyncio.TaskGroup() as tasks:
        linger = Lingering(tasks, stopping)
        while not stopping.is_set():
            number += 1
            if len(lives) < PEOPLE:
                name = free.pop() if free and random.random() < RETURNS else f"person-{number}"
                life = tasks.create_task(Life(gateways, history, random.getrandbits(64), linger).live(name, free))
                lives.add(life)
                life.add_done_callback(lives.discard)
            await pause(stopping, PAUSE_SECONDS)
        linger.end()
        if late := await end_soon(lives, SETTLED_SECONDS):
            history.complaints.append(
                f"I8: {late} people have not got all answers {SETTLED_SECONDS:.0f} s after the end"
            )


class Lingering:
    """What goes on after a person's life, until the run ends."""

    def __init__(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        self.stopping = stopping
        self._group = tasks
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Goes on with the work beside everything else."""
        self._tasks.append(self._group.create_task(work))
        if self.stopping.is_set():
            self._tasks[-1].cancel()

    def end(self) -> None:
        """Ends all that goes on."""
        for task in self._tasks:
            task.cancel()

    async def pause(self, seconds: float) -> None:
        """Waits so long, or until the run ends."""
        await pause(self.stopping, seconds)


class DoneError(Exception):
    """The person does nothing more: an outcome stays unknown, an answer was wrong, or the run ends."""


class Life:
    """The account of one person, from the registration until it is deleted."""

    def __init__(self, gateways: Gateways, history: History, seed: int, linger: "Lingering") -> None:
        self._gateways = gateways
        self._history = history
        self._random = Random(seed)  # noqa: S311 - no secret
        self._linger = linger
        self._person = Person()
        self._notes: list[int] = []
        self._credentials: list[Credentials] = []
        """Those of the present password."""

    async def live(self, name: str, free: list[str]) -> None:
        """Everything that the person does; adds the name that is free again."""
        self._history.people.append(self._person)
        with suppress(DoneError):
            free.append(await self._live(name))

    async def _live(self, name: str) -> str:
        self._name = self._password = register = self._new("register", name)
        await self._settle(register)
        if register.status != "applied":  # as the checker complains
            raise DoneError
        access = await self._sign_in()
        self._person.id = await self._own_id(access)
        if self._random.random() < STREAMS:
            self._linger.start(self._watch(access))
        await self._write_some(access, 3)
        await self._revoke_a_token(access)
        self._go_on()
        if self._random.random() < RENAMES:
            self._name = self._new("rename", f"renamed-{self._new_key()}", access)
            await self._settle(self._name)
        access = await self._change_the_password(access)
        self._go_on()
        await self._write_some(access, 1)
        await self._leave(access)
        return self._name.marker

    def _go_on(self) -> None:
        if self._linger.stopping.is_set():
            raise DoneError

    async def _revoke_a_token(self, access: Credentials) -> None:
        token = await self._new_token(access)
        if self._random.random() < STREAMS:
            self._linger.start(self._watch(token))
        token.revocation = revoke = self._new("revoke", str(token.id), access)
        await self._end(revoke, [token])
        await self._resolve(access)
        self._linger.start(self._try_revoked(token))
        if self._random.random() < PATIENT:
            await self._linger.pause(PATIENT_SECONDS)

    async def _change_the_password(self, access: Credentials) -> Credentials:
        if self._random.random() < 0.5:
            await self._new_token(access)
        former, change = self._password, self._new("password", f"{PASSWORD} {self._new_key()}", access)
        await self._end(change, self._credentials)
        ended, self._credentials = self._credentials, []
        self._password = change
        access = await self._sign_in()
        if self._random.random() < 0.3:
            await self._try_password(former, self._name)
        await self._resolve(access)
        await self._try_again(ended, access)
        return access

    async def _leave(self, access: Credentials) -> None:
        await self._end(self._new("leave", "", access), self._credentials)
        if self._random.random() < 0.3:
            await self._try_password(self._password, self._name)

    async def _end(self, change: PersonalWrite, ended: Sequence[Credentials]) -> None:
        """Ends credentials while writes with them are queued, under way, and sent afterwards; reads with them, too."""
        if change.kind != "revoke":
            for each in ended:
                each.ends.append(change)
        used = [each for each in ended if each.revocation in (None, change)]
        for _ in range(2):
            await self._write(self._random.choice(used))
        await asyncio.gather(self._settle(change), *(self._write(self._random.choice(used)) for _ in range(2)))
        for each in used:
            await self._write(each)
            for gateway in range(len(self._gateways)):
                await self._read(each, gateway=gateway)

    async def _write_some(self, credentials: Credentials, count: int) -> None:
        for _ in range(count):
            await self._write(credentials)
        await self._resolve(credentials)

    async def _write(self, credentials: Credentials) -> None:
        """A write of a note, mostly one that waits in the queue."""
        kind = self._random.choice(NOTES) if self._notes else "create"
        note = None if kind == "create" else self._random.choice(self._notes)
        write = self._new(kind, self._new_key(), credentials, note)
        for _ in range(TRIES):
            answer = await self._send(write, self._random.choice(("respond-async", "respond-async", "wait=1")))
            if answer.status and answer.status < 500:
                break
            await self._retry()

    async def _resolve(self, credentials: Credentials) -> None:
        """Polls the URLs of all writes without an outcome."""
        for write in self._person.writes:
            if write.status == "unknown" and write.accepted is not None:
                await self._poll(write, credentials)
            if write.kind == "create" and write.status == "applied" and write.subject not in (None, *self._notes):
                self._notes.append(write.subject or 0)
            if write.kind == "delete" and write.note in self._notes:
                self._notes.remove(write.note)

    async def _poll(self, write: PersonalWrite, credentials: Credentials | None) -> None:
        """Polls a write until it has an outcome, or the credentials are rejected."""
        deadline = self._now() + GIVEN_UP_SECONDS
        headers = bearer(credentials.token) if credentials else {}
        while self._now() < deadline:
            answer = await self._ask("GET", str(write.url), READ_SECONDS + 2, headers=headers | {"Prefer": "wait=2"})
            write.polls.append(answer)
            write.polled_with += [credentials] if credentials else []
            if write.status != "unknown" or answer.status == 401:
                return
            await self._retry()
        self._history.complaints.append(f"I8: the outcome of {write.kind} {write.marker} stays unknown")

    async def _settle(self, write: PersonalWrite) -> None:
        """Repeats an account's write with its key until the outcome is known."""
        deadline = self._now() + GIVEN_UP_SECONDS
        while self._now() < deadline:
            answer = await self._send(write, self._random.choice(("", "respond-async", "wait=2")))
            if answer.status == 202:
                await self._poll(write, write.credentials)
            if write.status not in ("unknown", "refused") or await self._has_found_out(write):
                return
            await self._retry()
        self._history.complaints.append(f"I8: the outcome of {write.kind} {write.marker} stays unknown")
        raise DoneError

    async def _has_found_out(self, write: PersonalWrite) -> bool:
        """Whether the person has found out that the write is applied, although its answer was lost."""
        last = max((*write.attempts, *write.polls), key=lambda each: each.answered)
        if last.status != 401 or write.kind not in ("password", "leave"):
            return False
        password = write if write.kind == "password" else self._password
        answer = await self._try_password(password, self._name)
        if answer.status == (200 if write.kind == "password" else 400):
            write.learned = answer.answered
        return write.learned is not None

    async def _sign_in(self) -> Credentials:
        """New credentials."""
        deadline = self._now() + GIVEN_UP_SECONDS
        while self._now() < deadline:
            answer = await self._try_password(self._password, self._name)
            if answer.status == 200:
                return self._keep(Credentials(answer.body["access_token"]))
            if answer.status == 400:  # as the checker complains
                break
            await self._retry()
        raise DoneError

    async def _try_password(self, password: PersonalWrite, name: PersonalWrite) -> Answer:
        text = PASSWORD if password.kind == "register" else password.marker
        form = {"username": name.marker, "password": text}
        answer = await self._ask("POST", "/auth/token", READ_SECONDS + HASH_SECONDS, data=form)
        self._person.sign_ins.append(SignIn(password, name, answer))
        return answer

    async def _own_id(self, access: Credentials) -> int:
        deadline = self._now() + GIVEN_UP_SECONDS
        while self._now() < deadline:
            answer = await self._read(access, "/users/me")
            if answer.status == 200:
                return int(answer.body["id"])
            if answer.status == 401:  # as the checker complains
                break
            await self._retry()
        raise DoneError

    async def _new_token(self, access: Credentials) -> Credentials:
        """A personal token."""
        write = self._new("token", self._new_key(), access)
        await self._settle(write)
        if write.status != "applied":  # as the checker complains
            raise DoneError
        created = write.original[1]
        return self._keep(Credentials(created["token"], created["id"]))

    def _keep(self, credentials: Credentials) -> Credentials:
        self._credentials.append(credentials)
        return credentials

    async def _try_again(self, ended: Sequence[Credentials], access: Credentials) -> None:
        """Repeats a write that was sent with ended credentials, which has its outcome, with new ones."""
        decided = [
            each
            for each in self._person.writes
            if each.credentials in ended and each.kind in NOTES and each.status in ("applied", "rejected")
        ]
        if decided:
            write = self._random.choice(decided)
            write.repetitions.append(await self._request(write, access, ""))

    async def _try_revoked(self, token: Credentials) -> None:
        """Reads and writes with a revoked token until every gateway rejects it."""
        gateways = set(range(len(self._gateways)))
        for _ in range(int(2 * PATIENT_SECONDS / REVOKED_SECONDS)):
            await asyncio.sleep(REVOKED_SECONDS)
            for gateway in sorted(gateways):
                if (await self._read(token, gateway=gateway)).status == 401:
                    gateways.remove(gateway)
            if not gateways:
                return

    async def _watch(self, credentials: Credentials) -> None:
        """Follows changes with the credentials, and reconnects until they are rejected."""
        stream = Stream(credentials)
        self._person.streams.append(stream)
        try:
            while stream.ended is None:
                with suppress(*ERRORS):
                    await self._follow(stream)
                await self._retry()
        finally:
            stream.watched = self._now()

    async def _follow(self, stream: Stream) -> None:
        gateway = self._random.randrange(len(self._gateways))
        asked = Answer(gateway, self._now(), READ_SECONDS)
        headers = bearer(stream.credentials.token) | {"Accept": "text/event-stream"}
        timeout = aiohttp.ClientTimeout(None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
        async with self._gateways[gateway].get(PATH, headers=headers, timeout=timeout) as response:
            asked.answered, asked.status = self._now(), response.status
            self._person.uses.append(Use(stream.credentials, asked))
            if response.status == 401:
                stream.ended = asked.answered
            if response.status != 200:
                await fill(asked, response)
            else:
                async for event in events(response.content):
                    if event.get("event") == "change":
                        stream.revisions.append(json.loads(event["data"])["revision"])

    async def _read(self, credentials: Credentials, path: str = LIST, gateway: int | None = None) -> Answer:
        answer = await self._ask("GET", path, READ_SECONDS, gateway, headers=bearer(credentials.token))
        self._person.uses.append(Use(credentials, answer))
        return answer

    def _new(
        self, kind: str, marker: str, credentials: Credentials | None = None, note: int | None = None
    ) -> PersonalWrite:
        owner = self._person.id if credentials else NO_OWNER
        write = PersonalWrite(owner, kind, note, marker, self._new_key(), credentials=credentials)
        self._person.writes.append(write)
        return write

    async def _send(self, write: PersonalWrite, preference: str) -> Answer:
        answer = await self._request(write, write.credentials, preference)
        write.attempts.append(answer)
        return answer

    async def _request(self, write: PersonalWrite, credentials: Credentials | None, preference: str) -> Answer:
        method, path, body = self._request_of(write)
        wait = float(preference.partition("wait=")[2] or (0 if preference == "respond-async" else WAIT_SECONDS))
        headers = {"Idempotency-Key": str(write.key)} | (bearer(credentials.token) if credentials else {})
        headers |= {"Prefer": preference} if preference else {}
        limit_seconds = PUBLISH_SECONDS + wait + (HASH_SECONDS if write.kind in ("register", "password") else 0)
        return await self._ask(method, path, limit_seconds, json=body, headers=headers)

    def _request_of(self, write: PersonalWrite) -> tuple[str, str, dict[str, Any] | None]:
        """Method, path and body."""
        former = PASSWORD if self._password.kind == "register" else self._password.marker
        requests: dict[str, tuple[str, str, dict[str, Any] | None]] = {
            "register": ("POST", "/users/", {"name": write.marker, "password": PASSWORD}),
            "rename": ("PATCH", "/users/me", {"name": write.marker}),
            "password": ("PATCH", "/users/me", {"password": write.marker, "current_password": former}),
            "leave": ("DELETE", "/users/me", None),
            "token": ("POST", "/auth/tokens", {"name": write.marker, "scopes": ["notes:read", "notes:write"]}),
            "revoke": ("DELETE", f"/auth/tokens/{write.marker}", None),
        }
        return requests[write.kind] if write.kind in requests else REQUESTS[write.kind](write)

    async def _ask(
        self, method: str, path: str, limit_seconds: float, gateway: int | None = None, **request: Any
    ) -> Answer:
        chosen = self._random.randrange(len(self._gateways)) if gateway is None else gateway
        return await ask(self._gateways, chosen, method, path, limit_seconds, **request)

    async def _retry(self) -> None:
        await asyncio.sleep(self._random.uniform(*RETRY_SECONDS))

    def _new_key(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
