"""I1: every accepted write reaches an outcome, and what is reported as applied is there."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.faults.checks.case import Case, describe
from tests.faults.clients import POISON
from tests.faults.history import TEXTLESS, text_of_item
from tests.faults.keyed_writes import TYPES


def accepted(case: Case) -> Iterator[str]:
    """I1: every accepted write has an outcome, and every applied one has its effect."""
    by_marker = case.facts.by_marker
    for each in case.writes:
        write = each.write
        if write.accepted is not None and each.status in ("unknown", "refused"):
            yield f"I1: {describe(write)} was accepted but has no outcome"
        if each.status == "failed" and not write.marker.startswith(POISON):
            yield f"I1: {describe(write)} has failed although nothing is wrong with it"
        if each.status != "applied" or write.kind in TEXTLESS:
            continue
        parts = {"batch": 3, "swap": 1, "import": write.lines}.get(write.kind)
        texts = [write.marker] if parts is None else [text_of_item(write.marker, part) for part in range(parts)]
        missing = [text for text in texts if text not in by_marker]
        if missing:
            yield f"I1: {describe(write)} was reported as applied, but no command has written {missing[0]}"


def counted(case: Case) -> Iterator[str]:
    """I1, I3, I4: as many deletions, restores and so on of a note as were reported, and no more than may have been."""
    committed: Counter[tuple[int, str, int | None]] = Counter()
    for row in case.facts.applied():
        committed[row["owner_id"], row["type"], row["note_id"]] += 1
    reported, possible = Counter[tuple[int, str, int | None]](), Counter[tuple[int, str, int | None]]()
    for each in case.writes:
        write = each.write
        kind = "note.delete" if write.kind == "swap" else TYPES.get(write.kind, "")
        if write.kind in TEXTLESS or write.kind == "swap":
            reported[write.owner, kind, write.note] += each.status == "applied"
            possible[write.owner, kind, write.note] += each.status in ("applied", "unknown")
    for what, count in reported.items():
        if count > committed[what]:
            yield f"I1: {count} times {what[1]} of note {what[2]} was reported, and {committed[what]} are committed"
    owners = {each.write.owner for each in case.writes}
    for (owner, kind, note), count in committed.items():
        is_textless = kind in ("note.delete", "note.restore", "note.purge")
        if is_textless and owner in owners and count > possible[owner, kind, note]:
            yield f"I3: {count} times {kind} of note {note} is committed, {possible[owner, kind, note]} can have been"


def present(case: Case) -> Iterator[str]:
    """I1, I2: the notes and the trash are what the audit's last transactions left."""
    notes = {row["id"]: row for row in case.facts.notes}
    trash = {row["id"]: row for row in case.facts.tombstones if row["title"] is not None}
    for owner in case.facts.states.values():
        if owner.is_deleted:
            continue
        for note, timeline in owner.notes.items():
            yield from differences(f"note {note}", notes.pop(note, None), timeline.versions[-1], owner.texts, note)
        for note, timeline in owner.trash.items():
            if (trash.pop(note, None) is not None) != bool(timeline.versions[-1]):
                yield f"I1: deleted note {note} is {'not' if timeline.versions[-1] else 'still'} in the trash"
    gone = {owner.owner for owner in case.facts.states.values() if owner.is_deleted}
    yield from (f"I2: nothing has made note {note}" for note, row in notes.items() if row["owner_id"] not in gone)


def differences(what: str, stored: Any, version: int, texts: dict[tuple[int, int], str], note: int) -> Iterator[str]:
    """How a stored note differs from what its last transaction left."""
    if stored is None or not version:
        if (stored is None) == bool(version):
            yield f"I1: {what} is {'not' if version else 'still'} there"
        return
    if stored["version"] != version:
        yield f"I2: {what} is in version {stored['version']}, and its last transaction left {version}"
    elif f'"description":"{stored["description"]}"' not in texts[note, version]:
        yield f"I1: {what} holds another text than its last transaction has written"
