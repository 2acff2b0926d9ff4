"""Those who wait for an owner's next change: clients that wait or stream.

A follower is woken by hints, and now and then looks by itself, since hints may be lost. Whether there is a change only
Postgres says. Followers who are woken together at the same position share a read.
"""

import asyncio
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeAlias

import structlog

from gateway.caller import Caller
from gateway.problems import OVERLOADED, TOO_MANY_STREAMS, ProblemError, build_retry_after
from gateway.reads.changes import ChangesCursor, ChangesPage
from gateway.reads.errors import DatabaseUnavailableError
from gateway.reads.fair_limiter import ShareExhaustedError
from gateway.reads.hints import Hints
from gateway.reads.queries import NO_LIMIT, Queries
from gateway.settings import GatewaySettings
from gateway.telemetry.metrics import STREAMS, STREAMS_LIMIT

LOOK_SECONDS = (5.0, 10.0)
"""A follower who hears nothing looks by itself after a random time between these."""
PAUSE_SECONDS = 0.1
"""Between two reads of a follower, so that the changes of a busy owner gather."""
PROBE_SECONDS = 1.0
"""How often Postgres is probed after a read of a follower has failed."""
ReadKey: TypeAlias = tuple[int, int, ChangesCursor, int]

log = structlog.get_logger()


class Follower:
    """One who waits for changes of an owner's notes."""

    __slots__ = ("_read_at", "_woken", "owner", "revision")

    def __init__(self, owner: int) -> None:
        self.owner = owner
        self.revision = -1
        """The owner's revision as far as the follower has seen it."""
        self._woken = asyncio.Event()
        self._read_at = 0.0

    def wake(self) -> None:
        """End the wait."""
        self._woken.set()

    async def wait(self, deadline: float) -> None:
        """Wait until there may be a change, or until the deadline in the event loop's time."""
        now = asyncio.get_running_loop().time
        look_at = now() + random.uniform(*LOOK_SECONDS)  # noqa: S311 - spreads load
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(deadline, look_at)):
                await self._woken.wait()
                await asyncio.sleep(self._read_at + PAUSE_SECONDS - now())

    def start_read(self) -> None:
        """Note that a read begins; what wakes the follower from now on is not in it for certain."""
        self._woken.clear()
        self._read_at = asyncio.get_running_loop().time()


class Followers:
    """All followers of a gateway, and their reads."""

    def __init__(self, settings: GatewaySettings, queries: Queries) -> None:
        self._queries = queries
        self._limit = settings.streams
        self._owner_limit = settings.streams_per_user if settings.auth == "password" else math.inf
        self._streams: Counter[int] = Counter()
        """The open streams of each owner."""
        self._followers: defaultdict[int, set[Follower]] = defaultdict(set)
        self._hints = Hints(settings, self._on_hints, self._wake_all)
        self._joinable: dict[ReadKey, asyncio.Task[ChangesPage]] = {}
        """The reads whose statements are not sent yet."""
        self._failed: set[Follower] = set()
        """Those whose read has failed because Postgres was unavailable."""
        self._probing: asyncio.Task[None] | None = None
        self.draining = False
        """Set on shutdown: nobody waits for changes any more, and every stream ends."""
        STREAMS.set_function(self._streams.total)
        STREAMS_LIMIT.set(self._limit)

    async def run(self) -> None:
        """Receive hints until cancelled."""
        try:
            await self._hints.run()
        finally:
            for task in filter(None, (self._probing, *self._joinable.values())):
                task.cancel()

    def drain(self) -> None:
        """End every wait and every stream."""
        self.draining = True
        self._wake_all()

    def check_room(self, owner: int) -> None:
        """Raise ProblemError 429 or 503 if the owner, or everybody together, has as many streams as allowed."""
        if self._streams[owner] >= self._owner_limit:
            raise ProblemError(TOO_MANY_STREAMS, headers=build_retry_after())
        if self._streams.total() >= self._limit:
            raise ProblemError(OVERLOADED, "The gateway has too many open streams", headers=build_retry_after())

    @contextmanager
    def stream(self, owner: int) -> Iterator[Follower]:
        """Count a stream, and have it follow the owner's changes, during the block."""
        self._streams[owner] += 1
        try:
            with self.follow(owner) as follower:
                yield follower
        finally:
            self._streams[owner] -= 1
            if not self._streams[owner]:
                del self._streams[owner]

    @contextmanager
    def follow(self, owner: int) -> Iterator[Follower]:
        """Follow an owner's changes during the block."""
        follower = Follower(owner)
        self._followers[owner].add(follower)
        self._hints.set_wanted(wanted=True)
        try:
            yield follower
        finally:
            self._failed.discard(follower)
            self._followers[owner].remove(follower)
            if not self._followers[owner]:
                del self._followers[owner]
            if not self._followers:
                self._hints.set_wanted(wanted=False)

    async def read(self, follower: Follower, caller: Caller, since: ChangesCursor, limit: int) -> ChangesPage | None:
        """Return the first changes after a position; None while Postgres is unavailable, and then wakes the follower.

        Raises ChangesGoneError and CredentialsOutdatedError.
        """
        follower.start_read()
        if self._probing:
            self._failed.add(follower)
            return None
        try:
            page = await asyncio.shield(self._join(caller, since, limit))
        except ShareExhaustedError:
            return None
        except DatabaseUnavailableError:
            self._failed.add(follower)
            self._probing = self._probing or asyncio.create_task(self._probe())
            return None
        follower.revision = page.state.revision
        return page

    def _join(self, caller: Caller, since: ChangesCursor, limit: int) -> "asyncio.Task[ChangesPage]":
        """Return the read of all who ask for the same before its statement is sent."""
        key = (caller.owner, caller.credentials_version, since, limit)
        if key not in self._joinable:
            task = self._joinable[key] = asyncio.create_task(self._read(key, caller, since, limit))
            task.add_done_callback(_retrieve_error)  # those who wanted it may be gone
        return self._joinable[key]

    async def _read(self, key: ReadKey, caller: Caller, since: ChangesCursor, limit: int) -> ChangesPage:
        try:
            async with self._queries.limit_followers(caller):
                del self._joinable[key]
                return await self._queries.list_changes(caller, since, limit, NO_LIMIT)
        finally:
            if self._joinable.get(key) is asyncio.current_task():
                del self._joinable[key]

    async def _probe(self) -> None:
        """Wait until Postgres answers again, then wake those whose reads have failed."""
        try:
            is_answered = False
            while not is_answered:
                await asyncio.sleep(PROBE_SECONDS)
                with suppress(DatabaseUnavailableError):
                    await self._queries.ping()
                    is_answered = True
        finally:
            self._probing = None
        failed = self._failed
        self._failed = set()
        log.info("Postgres answers again; followers of changes read what they missed", followers=len(failed))
        for follower in failed:
            follower.wake()

    def _on_hints(self, revisions: Mapping[int, int]) -> None:
        for owner in revisions.keys() & self._followers.keys():
            for follower in self._followers[owner]:
                if follower.revision < revisions[owner]:
                    follower.wake()

    def _wake_all(self) -> None:
        for followers in self._followers.values():
            for follower in followers:
                follower.wake()


def _retrieve_error(task: "asyncio.Task[ChangesPage]") -> None:
    if not task.cancelled():
        task.exception()
