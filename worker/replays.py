"""Checks whether a dead letter's note has changed since the failure, other than by replays of earlier letters.

So letters that failed at the same version of a note can be replayed one after the other.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shared.contracts import BadCommand, Command, find_envelope
from worker.decisions import Applied, NoteDeleted, NotePurged, NotesWritten, NoteWritten


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
class TrashState:
    """Where a note is, by its version: live, in the trash, or nowhere."""

    live: int | None
    trashed: int | None

    @property
    def version(self) -> int | None:
        """The note's version, wherever it is."""
        return self.trashed if self.live is None else self.live


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
        versions = self._list_versions(note_id, replayed)
        if now is None:
            return None not in versions
        # A note that was deleted then is live now: the first version since is that of a restore.
        restored = min((version for version in versions if version is not None), default=now + 1)
        since = restored if at_failure is None else at_failure + 1
        return now < since or not versions.issuperset(range(since, now + 1))

    def is_superseded_in_trash(
        self, note_id: int, at_failure: TrashState, now: TrashState, replayed: Iterable[ReplayedWrite]
    ) -> bool:
        """Like `is_superseded`, for a restore or a purge, which a deletion of the note precedes."""
        if at_failure == now:
            return False
        versions = self._list_versions(note_id, replayed)
        then = at_failure.version
        since = now.version
        if since is None:
            return None not in versions
        if then is None or since < then or not versions.issuperset(range(then + 1, since + 1)):
            return True
        return now.live is None and None not in versions

    def _list_versions(self, note_id: int, replayed: Iterable[ReplayedWrite]) -> set[int | None]:
        """Return the versions that replays of earlier letters gave to the note; None if one deleted it."""
        return {
            each.version
            for each in replayed
            if (each.owner, each.note_id) == (self.owner, note_id) and self._follows(each)
        }

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


def list_replayed_writes(command: Command, decision: Applied) -> list[ReplayedWrite]:
    """Return the writes to notes of a replay that is applied, as its row will list them; [] for other commands."""
    if not command.replayed_at:
        return []
    writes: list[tuple[int, int | None]] = []
    match decision:
        case NoteWritten(note=note):
            writes = [(note.id, note.version)]
        case NoteDeleted(note_id=note_id) | NotePurged(note_id=note_id):
            writes = [(note_id, None)]
        case NotesWritten(items=written):
            writes = [(item.id, item.version) for item in written.items]
        case _:
            return []
    return [ReplayedWrite(command.owner, *write, command.time, command.replayed_at) for write in writes]


def replayed_at(command: Command | BadCommand) -> datetime | None:
    """Return when an operator replayed the command, or None."""
    envelope = find_envelope(command)
    return envelope.replayed_at if envelope else None
