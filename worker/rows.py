"""The rows that a batch needs, as they were read, and the changes to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from shared.contracts import Outcome
from worker.decisions import Note, Tombstone, User

KeyT = TypeVar("KeyT", int, str, UUID)
RowT = TypeVar("RowT")


class Rows(Generic[KeyT, RowT]):
    """Rows as they were read, and the changes to them."""

    def __init__(self, before: Mapping[KeyT, RowT] | None = None) -> None:
        self.before: Mapping[KeyT, RowT] = before or {}
        self._after: dict[KeyT, RowT | None] = {}

    @property
    def after(self) -> Mapping[KeyT, RowT | None]:
        """The rows that were put, in their current state; None for a deleted one."""
        return self._after

    @property
    def now(self) -> Mapping[KeyT, RowT]:
        """All current rows."""
        return {key: row for key, row in {**self.before, **self._after}.items() if row}

    def get(self, key: KeyT) -> RowT | None:
        """Return the current row, or None."""
        return self._after[key] if key in self._after else self.before.get(key)

    def put(self, key: KeyT, row: RowT | None) -> None:
        """Set the row; None deletes it."""
        self._after[key] = row

    @property
    def created(self) -> list[RowT]:
        """New rows that still exist, ordered by key."""
        return [row for key, row in sorted(self._after.items(), key=_key) if row and key not in self.before]

    @property
    def changed(self) -> list[RowT]:
        """Rows that existed before and differ now, ordered by key."""
        rows = [(self.before.get(key), row) for key, row in sorted(self._after.items(), key=_key)]
        return [row for before, row in rows if before and row and row != before]

    @property
    def deleted(self) -> list[KeyT]:
        """Sorted keys of the rows that existed before and are deleted."""
        return sorted(key for key, row in self._after.items() if row is None and key in self.before)


def _key(item: tuple[KeyT, Any]) -> KeyT:
    return item[0]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The rows that a batch needs, all read by one statement."""

    now: datetime
    """By Postgres' clock."""
    owners: Mapping[int, User]
    """The owners of the batch, without deleted ones."""
    outcomes: Mapping[UUID, Outcome] = field(default_factory=dict)
    """The outcomes that commands of the batch already have."""
    notes: Mapping[int, Note] = field(default_factory=dict)
    tombstones: Mapping[int, Tombstone] = field(default_factory=dict)
    """Of the notes that commands restore or purge."""
