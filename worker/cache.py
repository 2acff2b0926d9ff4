"""Caches the owners of earlier batches, and ids for new notes and users.

Others write too, so an owner may be outdated. Every store compares revisions with the database; a conflict clears the
cache.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence

from shared.clock import Sample, elapsed_seconds
from shared.contracts import BadCommand, ChangeNotes, Command, CreateNote
from shared.database import Session
from worker.decisions import User
from worker.handlers import count_creations, target_ids
from worker.rows import Snapshot

IDS_AHEAD = 16
"""How many more batches like the current one to draw ids for; unused ones become gaps when the worker stops."""
MAX_IDS_AHEAD = 1000
MAX_OWNERS = 10_000


class Cache:
    """The cache of one connection; a new one clears it, because its server may lack recent commits."""

    def __init__(self, ids_ahead: int = 0) -> None:
        self._ids_ahead = ids_ahead
        self._session: Session | None = None
        self._owners: dict[int, User] = {}
        self._clock: Sample | None = None
        self._note_ids: deque[int] = deque()
        self.user_ids: deque[int] = deque()

    def use(self, session: Session) -> None:
        """Clear the cache if this is another connection than before."""
        if session is not self._session:
            self.clear()
        self._session = session

    def clear(self) -> None:
        """Remove everything."""
        self._owners.clear()
        self._note_ids.clear()
        self.user_ids.clear()

    def clear_note_ids(self) -> None:
        """Remove the ids for notes that were drawn ahead."""
        self._note_ids.clear()

    def knows(self, owners: Collection[int]) -> bool:
        """Whether all of the owners are cached."""
        return all(owner in self._owners for owner in owners)

    def find(self, batch: Sequence[Command | BadCommand]) -> Snapshot | None:
        """Return what a batch that only creates notes needs, or None if something has to be read."""
        if self._clock is None or self.missing_note_ids(batch):
            return None
        owners: dict[int, User] = {}
        for command in batch:
            if not isinstance(command, CreateNote | ChangeNotes) or target_ids(command):
                return None
            owner = self._owners.get(command.owner)
            if owner is None:
                return None
            owners[owner.id] = owner
        return Snapshot(self._clock.time_at(elapsed_seconds()), owners)

    def refill(self, snapshot: Snapshot, note_ids: Iterable[int], asked_at: float) -> None:
        """Add the owners and ids that were read; `asked_at` is when, in `elapsed_seconds`."""
        if len(self._owners) + len(snapshot.owners) > MAX_OWNERS:
            self._owners.clear()
        self._owners.update(snapshot.owners)
        self._note_ids.extend(sorted(note_ids))
        self._clock = Sample(snapshot.now, asked_at, 0)

    def keep(self, owners: Iterable[User]) -> None:
        """Add the owners in the state in which a batch has left them."""
        self._owners.update((owner.id, owner) for owner in owners)

    def drop(self, owners: Iterable[int]) -> None:
        """Remove the owners."""
        for owner in owners:
            self._owners.pop(owner, None)

    def missing_note_ids(self, batch: Sequence[Command | BadCommand]) -> int:
        """Return how many ids to draw for the batch's new notes and for later batches; 0 if there are enough."""
        needed = sum(map(count_creations, batch))
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
