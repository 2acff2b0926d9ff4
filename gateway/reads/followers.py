"""Followers of changes: requests that wait for an owner's next change, or stream all of them.

Hints wake followers; since hints may be lost, followers also poll from time to time. Only Postgres says whether there
is a change. An owner's followers are woken together, and those at the same position share a read.
"""

import asyncio
import math
import random
from collections import Counter
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

POLL_SECONDS = (5.0, 10.0)
"""Followers that get no hint poll after a random time between these."""
PAUSE_SECONDS = 0.1
"""Between two reads of an owner's followers, so that the changes of a busy owner gather."""
PROBE_SECONDS = 1.0
"""How often Postgres is probed after a read of a follower has failed."""
ReadKey: TypeAlias = tuple[int, int, ChangesCursor, int]

log = structlog.get_logger()


class Follower:
    """A request that waits for changes of an owner's notes."""

    __slots__ = ("_group", "_woken", "revision")

    def __init__(self, group: "Group") -> None:
        self._group = group
        self.revision = -1
        """The owner's revision as far as the follower has seen it."""
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """End the wait."""
        self._woken.set()

    async def wait(self, deadline: float) -> None:
        """Wait until there may be a change, or until the deadline in the event loop's time."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._woken.wait()

    def start_read(self) -> None:
        """Record that a read begins; what wakes the follower from now on may not be in it."""
        self._woken.clear()
        self._group.read_at = asyncio.get_running_loop().time()


class Group:
    """The followers of one owner, which are woken at the same moment, so that they share a read."""

    def __init__(self) -> None:
        self.followers: set[Follower] = set()
        self.read_at = 0.0
        """When one of them last began to read."""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self._wakes_at = math.inf
        """When the timer ends; uvloop's handles do not know it if that is at once."""
        self._poll_later()

    def wake_soon(self) -> None:
        """Wake the followers at once, or PAUSE_SECONDS after their last read."""
        self._wake_at(max(self._loop.time(), self.read_at + PAUSE_SECONDS))

    def wake(self) -> None:
        """Wake the followers."""
        for follower in self.followers:
            follower.wake()
        self.close()
        self._poll_later()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer:
            self._timer.cancel()
        self._timer = None
        self._wakes_at = math.inf

    def _poll_later(self) -> None:
        self._wake_at(self._loop.time() + random.uniform(*POLL_SECONDS))  # noqa: S311 - spreads load

    def _wake_at(self, at: float) -> None:
        """Set the timer, unless it is already set to an earlier time."""
        if at < self._wakes_at:
            self.close()
            self._timer = self._loop.call_at(at, self.wake)
            self._wakes_at = at


class Followers:
    """All followers of a gateway, and their reads."""

    def __init__(self, settings: GatewaySettings, queries: Queries) -> None:
        self._queries = queries
        self._limit = settings.streams
        self._owner_limit = settings.streams_per_user if settings.auth == "password" else math.inf
        self._streams: Counter[int] = Counter()
        """The open streams of each owner."""
        self._groups: dict[int, Group] = {}
        """By owner."""
        self._hints = Hints(settings, self._on_hints, self._wake_all)
        self._joinable: dict[ReadKey, asyncio.Task[ChangesPage]] = {}
        """The reads whose statements have not been sent yet."""
        self._failed: set[Follower] = set()
        """The followers whose reads failed because Postgres was unavailable."""
        self._probing: asyncio.Task[None] | None = None
        self.draining = False
        """Set on shutdown, when every wait and every stream ends."""
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

    def _check_room(self, owner: int) -> None:
        """Raise ProblemError 429 or 503 if the owner or the gateway has reached its limit of streams."""
        if self._streams[owner] >= self._owner_limit:
            raise ProblemError(TOO_MANY_STREAMS, headers=build_retry_after())
        if self._streams.total() >= self._limit:
            raise ProblemError(OVERLOADED, "The gateway has too many open streams", headers=build_retry_after())

    @contextmanager
    def stream(self, owner: int) -> Iterator[Follower]:
        """Count a stream, and have it follow the owner's changes, during the block; raises ProblemError 429 or 503."""
        self._check_room(owner)
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
        group = self._groups[owner] = self._groups.get(owner) or Group()
        follower = Follower(group)
        group.followers.add(follower)
        self._hints.set_wanted(wanted=True)
        try:
            yield follower
        finally:
            self._failed.discard(follower)
            group.followers.remove(follower)
            if not group.followers:
                group.close()
                del self._groups[owner]
            if not self._groups:
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
            self.wake_once_answered(follower)
            return None
        follower.revision = page.state.revision
        return page

    def wake_once_answered(self, follower: Follower) -> None:
        """Probe Postgres, and wake the follower when it answers."""
        self._failed.add(follower)
        self._probing = self._probing or asyncio.create_task(self._probe())

    def _join(self, caller: Caller, since: ChangesCursor, limit: int) -> "asyncio.Task[ChangesPage]":
        """Return the read that is shared by all that ask for the same before its statement is sent."""
        key = (caller.owner, caller.credentials_version, since, limit)
        if key not in self._joinable:
            task = self._joinable[key] = asyncio.create_task(self._read(key, caller, since, limit))
            task.add_done_callback(_retrieve_error)  # its followers may be gone
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
        """Wait until Postgres answers again, then wake the followers whose reads failed."""
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
        for owner in revisions.keys() & self._groups.keys():
            group = self._groups[owner]
            if any(follower.revision < revisions[owner] for follower in group.followers):
                group.wake_soon()

    def _wake_all(self) -> None:
        for group in self._groups.values():
            group.wake()


def _retrieve_error(task: "asyncio.Task[ChangesPage]") -> None:
    if not task.cancelled():
        task.exception()
