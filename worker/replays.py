"""Checks whether a dead letter's note has changed since the failure, other than by replays of earlier letters.

So letters that failed at the same version of a note can be replayed one after the other.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class ReplayedWrite:
    """A write to a note by an applied replay."""

    owner: int
    note_id: int
    version: int | None
    """None if it deleted the note."""
    issued_at: datetime
    replayed_at: datetime


@dataclass(frozen=True, slots=True)
class Letter:
    """The owner of a dead letter, and the times that order it among the owner's replays."""

    owner: int
    issued_at: datetime
    replayed_at: datetime | None = None

    def is_superseded(
        self, note_id: int, at_failure: int | None, now: int | None, replayed: Iterable[ReplayedWrite]
    ) -> bool:
        """Whether anything but replays of earlier letters has changed the note between these versions."""
        if at_failure == now:
            return False
        versions = {
            each.version
            for each in replayed
            if (each.owner, each.note_id) == (self.owner, note_id) and self._follows(each)
        }
        if now is None:
            return None not in versions
        # A note that was deleted then is live now: the first version since is that of a restore.
        restored = min((version for version in versions if version is not None), default=now + 1)
        since = restored if at_failure is None else at_failure + 1
        return now < since or not versions.issuperset(range(since, now + 1))

    def _follows(self, replayed: ReplayedWrite) -> bool:
        """Whether the letter is later than that write, or replayed together with it and so in order."""
        return replayed.issued_at <= self.issued_at or replayed.replayed_at == self.replayed_at


def parse_replayed_writes(row: Mapping[str, Any]) -> list[ReplayedWrite]:
    """Return the writes to notes of an applied replay, from its row of `commands`."""
    when = row["issued_at"], row["replayed_at"]
    if row["type"] == "notes.change":
        items = json.loads(row["body"] or '{"items": []}')["items"]
        return [ReplayedWrite(row["owner_id"], item["id"], item["version"], *when) for item in items]
    return [ReplayedWrite(row["owner_id"], row["note_id"], row["note_version"], *when)] if row["note_id"] else []
