"""Whether a dead letter's note was changed by anything but replays of earlier dead letters since the letter failed.

Letters about one note all failed in the same version of it, and can be replayed one after the other.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class ReplayedWrite:
    """What an applied replay has made of a note."""

    owner: int
    note_id: int
    version: int | None
    """None if it has deleted the note."""
    issued_at: datetime
    replayed_at: datetime


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter that is replayed, as far as its place among others of its owner is concerned."""

    owner: int
    issued_at: datetime
    replayed_at: datetime | None = None

    def is_superseded(self, note_id: int, then: int | None, now: int | None, replayed: Iterable[ReplayedWrite]) -> bool:
        """Whether somebody changed the note between these versions, other than replays that come before this one."""
        if then == now:
            return False
        versions = {
            each.version
            for each in replayed
            if (each.owner, each.note_id) == (self.owner, note_id) and self._follows(each)
        }
        if now is None:
            return None not in versions
        since = (then or 0) + 1
        return now < since or not versions.issuperset(range(since, now + 1))

    def _follows(self, replayed: ReplayedWrite) -> bool:
        """Whether the letter is later than the other, or both are replayed as one, in their order."""
        return replayed.issued_at <= self.issued_at or replayed.replayed_at == self.replayed_at


def replayed_writes(row: Mapping[str, Any]) -> list[ReplayedWrite]:
    """What the command of a row of `commands`, an applied replay, has made of notes."""
    when = row["issued_at"], row["replayed_at"]
    if row["type"] == "notes.change":
        items = json.loads(row["body"] or '{"items": []}')["items"]
        return [ReplayedWrite(row["owner_id"], item["id"], item["version"], *when) for item in items]
    return [ReplayedWrite(row["owner_id"], row["note_id"], row["note_version"], *when)] if row["note_id"] else []
