"""What a user's notes should be: a few dictionaries, and the rules by which writes change them."""

from dataclasses import dataclass, field, replace
from typing import Any

Note = dict[str, Any]
"""A note as the API prints it, without what only the server knows as long as no response has shown it."""
Notes = dict[int, Note]
OF_TRASH = ("restore", "purge")


@dataclass(frozen=True)
class Write:
    """A request; equal requests with the same key are one."""

    op: str
    note: int | None = None
    text: tuple[tuple[str, str], ...] = ()
    if_match: tuple[int, ...] | None = None
    if_none_match: tuple[int, ...] | str | None = None
    items: tuple["Write", ...] = ()
    """The writes of a `batch` or an `import`."""

    def allows(self, version: int) -> bool:
        """Whether its conditions allow it to change a note in this version."""
        if self.if_match is not None and version not in self.if_match:
            return False
        return self.if_none_match is None or (self.if_none_match != "*" and version not in self.if_none_match)


@dataclass
class Outcome:
    """The response that a write should have."""

    status: int
    code: str = ""
    """That of a problem."""
    note: Note | None = None
    """The note after the write, or as it was when it was deleted."""
    version: int | None = None
    """That of the `ETag`."""
    item: int | None = None
    """The item of a batch that has the problem."""
    items: list["Outcome"] = field(default_factory=list)


class Model:
    """A user's notes and trash, and the outcomes that are pinned to keys."""

    def __init__(self) -> None:
        self.notes: Notes = {}
        self.trash: Notes = {}
        """In the order of their deletion."""
        self.history: dict[int, Notes] = {}
        """The versions of each note."""
        self.outcomes: dict[tuple[str, int | None, str], tuple[Write, Outcome]] = {}
        """By operation, note and key."""

    def expect(self, write: Write, key: str | None) -> tuple[Outcome, bool]:
        """Return the outcome of a request, and whether it repeats an earlier one or has its key."""
        if key and (known := self.outcomes.get((write.op, write.note, key))):
            earlier, outcome = known
            return (outcome if earlier == write else Outcome(422, "idempotency_key_reused")), True
        return (decide_all(write.items, self.notes) if write.items else decide(write, self.notes, self.trash)), False

    def pin(self, write: Write, key: str | None, outcome: Outcome) -> None:
        """Keep the outcome for repetitions of the request."""
        if key:
            self.outcomes[write.op, write.note, key] = write, outcome

    def keep(self, op: str, note: Note) -> None:
        """Change the notes as an applied write does."""
        note_id = note["id"]
        self.trash.pop(note_id, None)
        if op == "purge":
            del self.history[note_id]
        elif op == "delete":
            self.trash[note_id] = note
            self.notes.pop(note_id, None)
        else:
            self.notes[note_id] = note
            self.history.setdefault(note_id, {})[note["version"]] = note


def decide(write: Write, notes: Notes, trash: Notes) -> Outcome:
    """Return the outcome of a write to these notes."""
    if write.op == "create":
        return Outcome(201, note={**dict(write.text), "version": 1}, version=1)
    note = (trash if write.op in OF_TRASH else notes).get(write.note or 0)
    if note is None:
        return Outcome(404, "note_not_found")
    if not write.allows(note["version"]):
        return Outcome(412, "precondition_failed", version=note["version"])
    if write.op in ("delete", "purge"):
        return Outcome(204, note=note)
    if write.op != "restore" and note.items() >= dict(write.text).items():
        return Outcome(200, note=note, version=note["version"])
    edited = {name: value for name, value in note.items() if name != "updated_date"} | dict(write.text)
    return Outcome(200, note=edited | {"version": note["version"] + 1}, version=note["version"] + 1)


def decide_all(writes: tuple[Write, ...], notes: Notes) -> Outcome:
    """Return the outcome of several writes, in order, of which all happen or none."""
    draft, outcomes = dict(notes), list[Outcome]()
    for index, write in enumerate(writes):
        outcome = decide(write, draft, {})
        if outcome.code:
            return replace(outcome, version=None, item=index)
        outcomes.append(outcome)
        if write.op == "delete":
            del draft[write.note or 0]
        elif write.note and outcome.note:
            draft[write.note] = outcome.note
    return Outcome(200, items=outcomes)
