"""Caches the rows of a worker's owners, and ids for new notes.

The cache may be outdated, since others write too. Every store compares it with the database; a conflict clears it.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence

from shared.clock import Sample, elapsed_seconds
from shared.contracts import BadCommand, ChangeNotes, Command, CreateNote
from shared.database import Session
from worker.decisions import User
from worker.fold import Seen
from worker.handlers import creations_in, targets_of

IDS_AHEAD = 16
"""How many more batches like the current one to draw ids for; ids left over when the worker stops are gaps."""
MAX_IDS_AHEAD = 1000
MAX_OWNERS = 10_000


class Cache:
    """The cache of one connection; a new connection clears it, since its server may lack recent commits."""

    def __init__(self, ids_ahead: int = 0) -> None:
        self._ids_ahead = ids_ahead
        self._session: Session | None = None
        self._owners: dict[int, User] = {}
        self._clock: Sample | None = None
        self._note_ids: deque[int] = deque()
        self.user_ids: deque[int] = deque()

    def use(self, session: Session) -> None:
        """Forget everything if this is not the same connection as before."""
        if session is not self._session:
            self.forget()
        self._session = session

    def forget(self) -> None:
        """Forget everything."""
        self._owners.clear()
        self._note_ids.clear()
        self.user_ids.clear()

    def forget_note_ids(self) -> None:
        """Forget the ids that were drawn ahead."""
        self._note_ids.clear()

    def knows(self, owners: Collection[int]) -> bool:
        """Whether all of the owners are cached."""
        return all(owner in self._owners for owner in owners)

    def find(self, batch: Sequence[Command | BadCommand]) -> Seen | None:
        """Return what a batch that only creates notes needs; None if something has to be read."""
        if self._clock is None or self.missing_note_ids(batch):
            return None
        owners: dict[int, User] = {}
        for command in batch:
            if not isinstance(command, CreateNote | ChangeNotes) or targets_of(command):
                return None
            owner = self._owners.get(command.owner)
            if owner is None:
                return None
            owners[owner.id] = owner
        return Seen(self._clock.time_at(elapsed_seconds()), owners)

    def take(self, seen: Seen, note_ids: Iterable[int], asked_at: float) -> None:
        """Remember what was read at this time."""
        if len(self._owners) + len(seen.owners) > MAX_OWNERS:
            self._owners.clear()
        self._owners.update(seen.owners)
        self._note_ids.extend(sorted(note_ids))
        self._clock = Sample(seen.now, asked_at, 0)

    def keep(self, owners: Iterable[User]) -> None:
        """Remember the owners as a batch has left them."""
        self._owners.update((owner.id, owner) for owner in owners)

    def drop(self, owners: Iterable[int]) -> None:
        """Forget the owners."""
        for owner in owners:
            self._owners.pop(owner, None)

    def missing_note_ids(self, batch: Sequence[Command | BadCommand]) -> int:
        """Return how many ids to draw for the notes that the batch may create, and ahead; 0 if there are enough."""
        needed = sum(map(creations_in, batch))
        missing = needed - len(self._note_ids)
        return missing + min(needed * self._ids_ahead, MAX_IDS_AHEAD) if missing > 0 else 0

    def take_note_ids(self) -> Iterator[int]:
        """Yield unused ids in ascending order; each is given out once."""
        while self._note_ids:
            yield self._note_ids.popleft()

    def take_user_ids(self) -> Iterator[int]:
        """Like `take_note_ids`, for users."""
        while self.user_ids:
            yield self.user_ids.popleft()
