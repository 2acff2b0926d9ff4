"""What each command does to the notes: pure functions, no database, no broker, no clock.

`fold` runs a batch through them, so that a batch of commands does what the same commands do one by one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from http import HTTPStatus
from typing import assert_never
from uuid import UUID

from shared.contracts import (
    REJECTION_STATUS,
    BadCommand,
    Command,
    CreateNote,
    DeleteNote,
    OutcomeStatus,
    Rejection,
    ReplaceNote,
)


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


def rejected(reason: Rejection, note_id: int | None = None) -> Decision:
    """The command has no effect, and never will."""
    return Decision(OutcomeStatus.REJECTED, REJECTION_STATUS[reason], reason, note_id)


def failed(reason: str) -> Decision:
    """The command has no effect and is kept for an operator."""
    return Decision(OutcomeStatus.FAILED, HTTPStatus.INTERNAL_SERVER_ERROR, reason)


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
    return Decision(OutcomeStatus.APPLIED, HTTPStatus.CREATED, note_id=note_id, note=note)


def replace_note(command: ReplaceNote, note: Note | None) -> Decision:
    """The note with a new text; its `updated_date` never goes back, whatever the gateways' clocks say."""
    target = target_of(command, note)
    if isinstance(target, Rejection):
        return rejected(target, command.data.note_id)
    changed = replace(
        target,
        title=command.data.title,
        description=command.data.description,
        updated_date=max(command.time, target.updated_date),
        version=target.version + 1,
    )
    return Decision(OutcomeStatus.APPLIED, HTTPStatus.OK, note_id=target.id, note=changed)


def delete_note(command: DeleteNote, note: Note | None) -> Decision:
    """No note any more."""
    target = target_of(command, note)
    if isinstance(target, Rejection):
        return rejected(target, command.data.note_id)
    return Decision(OutcomeStatus.APPLIED, HTTPStatus.NO_CONTENT, note_id=target.id)


def may_act(command: Command, owners: Mapping[int, int]) -> bool:
    """Whether the command's owner exists and still has the credentials that it was authorised with."""
    return owners.get(command.owner) == command.credentials_version


def target_of(command: ReplaceNote | DeleteNote, note: Note | None) -> Note | Rejection:
    """The note that the command may change, or why it must not; another owner's note does not exist."""
    if note is None or note.owner_id != command.owner:
        return Rejection.NOTE_NOT_FOUND
    if command.data.if_match is not None and note.version not in command.data.if_match:
        return Rejection.PRECONDITION_FAILED
    return note


@dataclass(slots=True)
class Fold:
    """The state that a batch is folded over, and what the batch did to it."""

    owners: Mapping[int, int]
    """The credentials version of each owner that exists."""
    before: Mapping[int, Note]
    new_ids: Iterator[int]
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
            return failed(command.reason)
        if not may_act(command, self.owners):
            return rejected(Rejection.CREDENTIALS_OUTDATED)
        match command:
            case CreateNote():
                return create_note(command, next(self.new_ids))
            case ReplaceNote():
                return replace_note(command, self._note(command.data.note_id))
            case DeleteNote():
                return delete_note(command, self._note(command.data.note_id))
            case _:
                assert_never(command)

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
