"""A position in an owner's changes, and when a follower may continue from it.

A follower has seen everything up to its position. Deletions whose tombstones were purged can no longer be reported, so
a position is unusable if such a deletion may come after it.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from gateway.http.event_streams import format_event
from gateway.problems import CHANGES_GONE, ProblemError
from shared.primary import Timeline

CURSOR_MAX_LENGTH = 120
_CURSOR = re.compile(r"([0-9]{1,19})\.([0-9]{1,19})\.([0-9]{1,19}|end)\.([0-9]{1,19})\.([0-9a-f]{12}|-)")
_LARGEST = 2**63 - 1
BEFORE_ALL = -1
"""Notes that are older than revisions have revision 0."""


class ChangesGoneError(ProblemError):
    """Changes after the position may be missing: the follower has to start over."""

    def __init__(self) -> None:
        super().__init__(CHANGES_GONE)


@dataclass(frozen=True, slots=True)
class ChangesCursor:
    """A position in an owner's changes, by revision and note id."""

    owner: int
    revision: int = BEFORE_ALL
    after_id: int = _LARGEST
    """The last note seen with that revision; the largest number if all were seen."""
    purged_revision: int = 0
    """The owner's purged revision when the cursor was issued."""
    timeline: str | None = None
    """A digest of Postgres' timeline, since on another the same revision may have other changes; None if unknown."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Return the decoded cursor; raises ValueError unless it is encoded exactly as in a response."""
        match = _CURSOR.fullmatch(text) if isinstance(text, str) else None
        if match:
            owner, revision, after_id, purged, timeline = match.groups()
            cursor = cls(
                int(owner),
                int(revision),
                _LARGEST if after_id == "end" else int(after_id),
                int(purged),
                None if timeline == "-" else timeline,
            )
            numbers = (cursor.owner, cursor.revision, cursor.after_id, cursor.purged_revision)
            if cursor.encoded == text and max(numbers) <= _LARGEST:
                return cursor
        raise ValueError("is not a cursor of GET /notes/changes")

    @property
    def encoded(self) -> str:
        """The cursor as clients get it; every character is allowed in URLs and headers."""
        after_id = "end" if self.after_id == _LARGEST else self.after_id
        return f"{self.owner}.{self.revision}.{after_id}.{self.purged_revision}.{self.timeline or '-'}"

    def check(self, owner: int, state: "OwnerState") -> None:
        """Raise ChangesGoneError if the owner's changes cannot be continued from here."""
        if self.revision == BEFORE_ALL:
            return
        is_other = self.owner != owner or (self.timeline and state.timeline and self.timeline != state.timeline)
        has_seen_end = self.after_id == _LARGEST
        has_seen_purged = state.purged_revision < self.revision + has_seen_end
        is_complete = state.purged_revision <= self.purged_revision or has_seen_purged
        if is_other or self.revision > state.revision or not is_complete:
            raise ChangesGoneError


@dataclass(frozen=True, slots=True)
class OwnerState:
    """An owner's revisions at the moment of a read."""

    revision: int
    purged_revision: int
    timeline: str | None


def digest_timeline(timeline: Timeline | None) -> str | None:
    """Return a short digest that no other timeline is likely to have."""
    return hashlib.sha256(str(timeline).encode()).hexdigest()[:12] if timeline else None


@dataclass(frozen=True, slots=True)
class ChangedNote:
    """A note's last change."""

    id: int
    revision: int
    note: str | None
    """The note as JSON; None if it is deleted."""

    @property
    def json(self) -> str:
        """The change as clients get it."""
        note = f',"note":{self.note}' if self.note else ""
        return f'{{"id":{self.id},"revision":{self.revision},"deleted":{json.dumps(not self.note)}{note}}}'


@dataclass(frozen=True)
class ChangesPage:
    """Changes in the order of their revisions."""

    changes: list[ChangedNote]
    has_more: bool
    """Whether there were more than these at the moment of the read."""
    owner: int
    state: OwnerState

    @property
    def cursor(self) -> ChangesCursor:
        """The position after the page; that of the owner's revision if there were no more changes."""
        return self._build_cursor(self.changes[-1] if self.has_more else None)

    @cached_property
    def events(self) -> bytes:
        """The changes as events of a stream, each with the position after it; shared by all who read this page."""
        cursors = [self._build_cursor(change) for change in self.changes[:-1]] + [self.cursor]
        pairs = zip(self.changes, cursors, strict=False)  # an empty page has a cursor, too
        return b"".join(format_event("change", cursor.encoded, change.json) for change, cursor in pairs)

    @cached_property
    def json(self) -> str:
        """The page as clients get it."""
        changes = ",".join(change.json for change in self.changes)
        return f'{{"changes":[{changes}],"cursor":"{self.cursor.encoded}","more":{json.dumps(self.has_more)}}}'

    def _build_cursor(self, last: ChangedNote | None) -> ChangesCursor:
        state = self.state
        revision, after_id = (last.revision, last.id) if last else (state.revision, _LARGEST)
        return ChangesCursor(self.owner, revision, after_id, state.purged_revision, state.timeline)
