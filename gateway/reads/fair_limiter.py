"""A fair limiter for expensive requests, so that one owner's requests do not starve those of others.

An owner may hold at most a share of the permits. Free permits go to the owners in turn (round robin), not to the
oldest request, so the many requests of one owner wait for each other.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

from gateway.problems import OVERLOADED, ProblemError, build_retry_after

WAITING_LIMIT = 100
"""Limit on the waiting requests of one owner; others are rejected at once."""
Waiter: TypeAlias = "asyncio.Future[None]"


class ShareExhaustedError(ProblemError):
    """The owner's other requests left no permit for this one in time."""

    def __init__(self) -> None:
        super().__init__(OVERLOADED, headers=build_retry_after())


class FairLimiter:
    """A number of permits, of which each owner may hold at most a share."""

    def __init__(self, permits: int, share: int) -> None:
        self._free = permits
        self._share = share
        self._held: Counter[int] = Counter()
        self._waiting: OrderedDict[int, deque[Waiter]] = OrderedDict()
        """By owner, in the order of their turns."""

    @asynccontextmanager
    async def permit(self, owner: int, deadline: float) -> AsyncIterator[None]:
        """Hold a permit during the block; the deadline for getting it is in the event loop's time.

        Raises ShareExhaustedError if too many of the owner's requests are waiting, or if their others hold the whole
        share at the deadline; otherwise raises TimeoutError then.
        """
        if self._may_acquire(owner) and owner not in self._waiting:
            self._acquire(owner)
        else:
            await self._wait(owner, deadline)
        try:
            yield
        finally:
            self._release(owner)

    @contextmanager
    def permit_at_once(self, owner: int) -> Iterator[None]:
        """Hold a permit during the block; raises ShareExhaustedError if the owner cannot get one without waiting."""
        if not self._may_acquire(owner):
            raise ShareExhaustedError
        self._acquire(owner)
        try:
            yield
        finally:
            self._release(owner)

    async def _wait(self, owner: int, deadline: float) -> None:
        queue = self._waiting.setdefault(owner, deque())
        if len(queue) >= WAITING_LIMIT:
            raise ShareExhaustedError
        waiter: Waiter = asyncio.get_running_loop().create_future()
        queue.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as error:
            self._give_up(owner, waiter)
            if isinstance(error, TimeoutError) and self._held[owner] >= self._share:
                raise ShareExhaustedError from None
            raise

    def _give_up(self, owner: int, waiter: Waiter) -> None:
        """Leave the queue, or release a permit that was granted at the same moment."""
        if not waiter.cancelled():
            self._release(owner)
        elif waiter in self._waiting.get(owner, ()):
            self._waiting[owner].remove(waiter)
            self._forget_if_nothing_waits(owner)

    def _release(self, owner: int) -> None:
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._free += 1
        self._pass_on()

    def _pass_on(self) -> None:
        """Give a free permit to the next owner who may acquire one."""
        while (owner := next(filter(self._may_acquire, self._waiting), None)) is not None:
            waiter = self._waiting[owner].popleft()
            self._waiting.move_to_end(owner)
            self._forget_if_nothing_waits(owner)
            if not waiter.cancelled():  # by its deadline, or because its client has disconnected
                self._acquire(owner)
                waiter.set_result(None)

    def _forget_if_nothing_waits(self, owner: int) -> None:
        if not self._waiting[owner]:
            del self._waiting[owner]

    def _may_acquire(self, owner: int) -> bool:
        return self._free > 0 and self._held[owner] < self._share

    def _acquire(self, owner: int) -> None:
        self._free -= 1
        self._held[owner] += 1
