"""What each command does to the notes: pure functions, no database, no broker, no clock.

`fold` runs a batch through them, so that a batch of commands does what the same commands do one by one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import assert_never
from uuid import UUID

from shared.contracts import (
    REJECTION_STATUS,
    BadCommand,
    Command,
    CreateNote,
    DeleteNote,
    Outcome,
    OutcomeStatus,
    PatchNote,
    Rejection,
    ReplaceNote,
)

NEVER = datetime(1970, 1, 1, tzinfo=UTC)
"""Before every command."""
Change = ReplaceNote | PatchNote | DeleteNote


@dataclass(frozen=True, slots=True)
class Note:
    """A note as its row holds it."""

    id: int
    owner_id: int
    title: str
    description: str
    created_date: datetime
    updated_date: datetime
    version: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one command."""

    status: OutcomeStatus
    http_status: int
    reason: str | None = None
    note_id: int | None = None
    note: Note | None = None
    """The note after the command, which is also the answer's body; None where there is none."""
    note_version: int | None = None
    """The version that the answer tells."""


def applied(status: HTTPStatus, note: Note) -> Decision:
    """The command has made the note what it is now."""
    return Decision(OutcomeStatus.APPLIED, status, note_id=note.id, note=note, note_version=note.version)


def rejected(reason: Rejection, note_id: int | None = None, note_version: int | None = None) -> Decision:
    """The command has no effect, and never will."""
    return Decision(OutcomeStatus.REJECTED, REJECTION_STATUS[reason], reason, note_id, note_version=note_version)


def create_note(command: CreateNote, note_id: int) -> Decision:
    """A new note, created when its command was issued."""
    note = Note(
        id=note_id,
        owner_id=command.owner,
        title=command.data.title,
        description=command.data.description,
        created_date=command.time,
        updated_date=command.time,
        version=1,
    )
    return applied(HTTPStatus.CREATED, note)


def replace_note(command: ReplaceNote, note: Note) -> Decision:
    """The note with a new text."""
    return applied(HTTPStatus.OK, changed(note, command, command.data.title, command.data.description))


def patch_note(command: PatchNote, note: Note) -> Decision:
    """The note with a new text where the command has one."""
    title, description = command.data.title, command.data.description
    title = note.title if title is None else title
    description = note.description if description is None else description
    return applied(HTTPStatus.OK, changed(note, command, title, description))


def delete_note(_: DeleteNote, note: Note) -> Decision:
    """No note any more."""
    return Decision(OutcomeStatus.APPLIED, HTTPStatus.NO_CONTENT, note_id=note.id)


def change_note(command: Change, note: Note) -> Decision:
    """What the command makes of a note that it may change."""
    match command:
        case ReplaceNote():
            return replace_note(command, note)
        case PatchNote():
            return patch_note(command, note)
        case DeleteNote():
            return delete_note(command, note)
        case _:
            assert_never(command)


def changed(note: Note, command: Command, title: str, description: str) -> Note:
    """The note's next version; its `updated_date` never goes back, whatever the gateways' clocks say."""
    updated_date = max(command.time, note.updated_date)
    return replace(note, title=title, description=description, updated_date=updated_date, version=note.version + 1)


def target_of(command: Change, note: Note | None) -> Note | Decision:
    """The note that the command may change, or why it must not; another owner's note does not exist."""
    if note is None or note.owner_id != command.owner:
        return rejected(Rejection.NOTE_NOT_FOUND, command.data.note_id)
    if not command.data.allow(note.version):
        return rejected(Rejection.PRECONDITION_FAILED, note.id, note.version)
    return note


@dataclass(slots=True)
class Fold:
    """The state that a batch is folded over, and what the batch did to it."""

    owners: Mapping[int, int]
    """The credentials version of each owner that exists."""
    before: Mapping[int, Note]
    failures: Mapping[UUID, Outcome] = field(default_factory=dict)
    """The failed outcomes of the commands that are replayed."""
    expired_before: datetime = NEVER
    """A command that was issued earlier is too old to be applied."""
    new_ids: Iterator[int] = field(default_factory=lambda: iter(()))
    after: dict[int, Note | None] = field(default_factory=dict)
    decided: dict[UUID, tuple[Command | BadCommand, Decision]] = field(default_factory=dict)
    """The commands that get their outcome in this batch."""

    def run(self, commands: Sequence[Command | BadCommand]) -> None:
        """Decides the commands, each of another id, in order."""
        for command in commands:
            decision = self.decide(command)
            self.decided[command.id] = command, decision
            if decision.status is OutcomeStatus.APPLIED and decision.note_id is not None:
                self.after[decision.note_id] = decision.note

    def decide(self, command: Command | BadCommand) -> Decision:
        """One command's decision on the state as the commands before it left it."""
        if isinstance(command, BadCommand):
            return self.failed(command, command.reason)
        if refused := self.refusal(command):
            return refused
        if isinstance(command, CreateNote):
            return create_note(command, next(self.new_ids))
        target = target_of(command, self._note(command.data.note_id))
        return target if isinstance(target, Decision) else change_note(command, target)

    def refusal(self, command: Command) -> Decision | None:
        """Why the command must not even look at a note, if so."""
        if (command.replayed_at or command.time) < self.expired_before:
            return self.failed(command, "expired")
        if self._is_superseded(command):
            return self.failed(command, "superseded")
        if self.owners.get(command.owner) != command.credentials_version:
            return rejected(Rejection.CREDENTIALS_OUTDATED)
        return None

    def creates(self, command: Command | BadCommand) -> bool:
        """Whether the command needs an id for a new note."""
        return isinstance(command, CreateNote) and self.refusal(command) is None

    def failed(self, command: Command | BadCommand, reason: str) -> Decision:
        """The command has no effect and is kept for an operator, with the version of its note when it first failed."""
        http_status = HTTPStatus.INTERNAL_SERVER_ERROR
        if isinstance(command, BadCommand | CreateNote):
            return Decision(OutcomeStatus.FAILED, http_status, reason)
        failure = self.failures.get(command.id)
        version = failure.note_version if failure else self._version_for(command)
        return Decision(OutcomeStatus.FAILED, http_status, reason, command.data.note_id, note_version=version)

    def _is_superseded(self, command: Command) -> bool:
        """Whether somebody has touched the note between the command's failure and its replay."""
        failure = self.failures.get(command.id)
        if failure is None or command.replay_forced or isinstance(command, CreateNote):
            return False
        return failure.note_version != self._version_for(command)

    def _version_for(self, command: Change) -> int | None:
        note = self._note(command.data.note_id)
        return note.version if note and note.owner_id == command.owner else None

    def _note(self, note_id: int) -> Note | None:
        return self.after[note_id] if note_id in self.after else self.before.get(note_id)

    @property
    def created(self) -> list[Note]:
        """Notes that are new and still there, in id order."""
        return [n for i, n in sorted(self.after.items()) if n and i not in self.before]

    @property
    def changed(self) -> list[Note]:
        """Notes that were there and have new content, in id order."""
        return [n for i, n in sorted(self.after.items()) if n and i in self.before]

    @property
    def deleted(self) -> list[int]:
        """Ids of notes that were there and are gone, in order."""
        return sorted(i for i, n in self.after.items() if n is None and i in self.before)
