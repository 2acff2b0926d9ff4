"""Places for reads that cost Postgres much, shared out so that no owner keeps the others waiting.

An owner has no more than a share of the places, and whoever waits gets one in turn: the next owner's oldest request,
not the oldest of all. So those who ask for much wait behind themselves.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

from gateway.problems import OVERLOADED, ProblemError, retry_after

WAITING_LIMIT = 100
"""Requests of one owner that wait; the ones above are refused at once."""
Turn: TypeAlias = "asyncio.Future[None]"


class ShareUsedUpError(ProblemError):
    """The owner has so much under way that this request gets no place, or got none in time."""

    def __init__(self) -> None:
        super().__init__(OVERLOADED, headers=retry_after())


class Shares:
    """So many places, of which an owner has at most a share at any time."""

    def __init__(self, places: int, share: int) -> None:
        self._free = places
        self._share = share
        self._held: Counter[int] = Counter()
        self._waiting: OrderedDict[int, deque[Turn]] = OrderedDict()
        """By owner, the one whose turn is next first."""

    @asynccontextmanager
    async def place(self, owner: int, deadline: float) -> AsyncIterator[None]:
        """A place for the block, which has come before the deadline, a time of the event loop's.

        Raises ShareUsedUpError where too many of the owner's requests wait, or where the deadline comes while others
        of theirs have all of their share; else TimeoutError.
        """
        if self._may_have_one(owner) and owner not in self._waiting:
            self._hold(owner)
        else:
            await self._wait_for_one(owner, deadline)
        try:
            yield
        finally:
            self._give_back(owner)

    async def _wait_for_one(self, owner: int, deadline: float) -> None:
        queue = self._waiting.setdefault(owner, deque())
        if len(queue) >= WAITING_LIMIT:
            raise ShareUsedUpError
        turn: Turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except BaseException as error:
            self._give_up(owner, turn)
            if isinstance(error, TimeoutError) and self._held[owner] >= self._share:
                raise ShareUsedUpError from None
            raise

    def _give_up(self, owner: int, turn: Turn) -> None:
        """Leaves the queue, or gives the place back that came at the same moment."""
        if not turn.cancelled():
            self._give_back(owner)
        elif turn in self._waiting.get(owner, ()):
            self._waiting[owner].remove(turn)
            self._forget_if_nothing_waits(owner)

    def _give_back(self, owner: int) -> None:
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._free += 1
        self._serve_next()

    def _serve_next(self) -> None:
        """Gives a free place to the next owner whose share is not used up."""
        while (owner := next(filter(self._may_have_one, self._waiting), None)) is not None:
            turn = self._waiting[owner].popleft()
            self._waiting.move_to_end(owner)
            self._forget_if_nothing_waits(owner)
            if not turn.cancelled():  # given up, and not gone yet
                self._hold(owner)
                turn.set_result(None)

    def _forget_if_nothing_waits(self, owner: int) -> None:
        if not self._waiting[owner]:
            del self._waiting[owner]

    def _may_have_one(self, owner: int) -> bool:
        return self._free > 0 and self._held[owner] < self._share

    def _hold(self, owner: int) -> None:
        self._free -= 1
        self._held[owner] += 1
