"""What each command does to notes, users and personal tokens: pure functions, no database, no broker, no clock."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import assert_never
from uuid import UUID

from shared.contracts import (
    REJECTION_STATUS,
    BadCommand,
    ChangeNotes,
    ChangeUser,
    Command,
    CreateNote,
    CreateToken,
    DeleteNote,
    OutcomeStatus,
    PatchNote,
    PublicToken,
    PublicUser,
    RegisterUser,
    Rejection,
    RenewHash,
    ReplaceNote,
    Scope,
    SingleNoteCommand,
    WrittenItem,
    WrittenItems,
    fold_name,
)

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
    mod_revision: int = 0
    """Its owner's revision when it was last changed."""


@dataclass(frozen=True, slots=True)
class User:
    """A user as its row holds it; the implicit owner has no name."""

    id: int
    credentials_version: int
    name: str | None
    folded_name: str | None
    created_date: datetime
    updated_date: datetime
    revision: int = 0
    """How many of the user's commands were decided."""
    password_hash: str | None = None
    """The new one, where the batch gives it one."""

    def raised(self, to: int) -> "User":
        """With another revision."""
        return replace(self, revision=to)

    def renamed(self, name: str) -> "User":
        """With another name."""
        return replace(self, name=name, folded_name=fold_name(name))


@dataclass(frozen=True, slots=True)
class PersonalToken:
    """A personal token as its row holds it."""

    id: UUID
    owner_id: int
    name: str
    scopes: tuple[Scope, ...]
    secret_digest: str
    credentials_version: int
    created_date: datetime
    expires_date: datetime


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one command; the rows are as it leaves them, None where there is none any more."""

    status: OutcomeStatus
    http_status: int
    reason: str | None = None
    note_id: int | None = None
    note: Note | None = None
    """Also the answer's body."""
    note_version: int | None = None
    """The version that the answer tells."""
    user: User | None = None
    token: PersonalToken | None = None
    notes: Mapping[int, Note | None] = field(default_factory=dict)
    """What several writes at once have made of the notes."""
    text: str | None = None
    """What there is to tell of several writes at once, as JSON."""

    @property
    def body(self) -> str | None:
        """The answer, unless it is about one note, which is printed by Postgres."""
        if self.text:
            return self.text
        if self.user:
            return PublicUser.model_validate(self.user, from_attributes=True).model_dump_json()
        if self.token:
            return PublicToken.model_validate(self.token, from_attributes=True).model_dump_json()
        return None


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


def changed(note: Note, command: SingleNoteCommand, title: str, description: str) -> Note:
    """The note's next version, or the note itself if its text does not change.

    `updated_date` never goes back, whatever the gateways' clocks say.
    """
    if (title, description) == (note.title, note.description):
        return note
    updated_date = max(command.time, note.updated_date)
    return replace(note, title=title, description=description, updated_date=updated_date, version=note.version + 1)


def target_of(command: Change, note: Note | None) -> Note | Decision:
    """The note that the command may change, or why it must not; another owner's note does not exist."""
    if note is None or note.owner_id != command.owner:
        return rejected(Rejection.NOTE_NOT_FOUND, command.data.note_id)
    if not command.data.allow(note.version):
        return rejected(Rejection.PRECONDITION_FAILED, note.id, note.version)
    return note


def targets_of(command: Command | BadCommand) -> list[int]:
    """The notes that the command is about, if they are there."""
    match command:
        case ReplaceNote() | PatchNote() | DeleteNote():
            return [command.data.note_id]
        case ChangeNotes():
            return [single.data.note_id for single in command.split() if not isinstance(single, CreateNote)]
        case _:
            return []


def creations_in(command: Command | BadCommand) -> int:
    """How many notes the command adds, if it is applied."""
    match command:
        case CreateNote():
            return 1
        case ChangeNotes():
            return sum(item.op == "create" for item in command.data.items)
        case _:
            return 0


def change_notes(decisions: Iterable[Decision], notes: Mapping[int, Note | None]) -> Decision:
    """Several writes at once have happened, and have left the notes so."""
    items = [
        WrittenItem(status=each.http_status, id=each.note_id or 0, version=each.note_version) for each in decisions
    ]
    text = WrittenItems(items=tuple(items)).model_dump_json()
    return Decision(OutcomeStatus.APPLIED, HTTPStatus.OK, notes=notes, text=text)


def rejected_item(decision: Decision, index: int, version: int | None) -> Decision:
    """None of several writes happens, because this one must not; its note stays in this version."""
    return replace(decision, note_version=decision.note_version and version, text=json.dumps({"item": index}))


def register_user(command: RegisterUser, user_id: int) -> Decision:
    """A new user, whose credentials are the first."""
    user = User(
        id=user_id,
        credentials_version=1,
        name=command.data.name,
        folded_name=fold_name(command.data.name),
        created_date=command.time,
        updated_date=command.time,
        password_hash=command.data.password_hash,
    )
    return Decision(OutcomeStatus.APPLIED, HTTPStatus.CREATED, user=user)


def change_user(command: ChangeUser, user: User) -> Decision:
    """The user with another name or password; a new password outdates the credentials given out so far.

    The same name changes nothing. A password always does, since its hash does not show whether it is the same.
    """
    if command.data.password_hash is None and command.data.name in (None, user.name):
        return Decision(OutcomeStatus.APPLIED, HTTPStatus.OK, user=user)
    user = replace(user, updated_date=max(command.time, user.updated_date))
    if command.data.name is not None:
        user = user.renamed(command.data.name)
    if command.data.password_hash is not None:
        user = replace(user, password_hash=command.data.password_hash, credentials_version=user.credentials_version + 1)
    return Decision(OutcomeStatus.APPLIED, HTTPStatus.OK, user=user)


def renew_hash(command: RenewHash, user: User) -> Decision:
    """The user with another hash of the same password; nothing visible changes."""
    return Decision(OutcomeStatus.APPLIED, HTTPStatus.OK, user=replace(user, password_hash=command.data.password_hash))


def create_token(command: CreateToken, owner: User) -> Decision:
    """A new personal token, valid as long as its owner's credentials are, and no longer than asked for."""
    token = PersonalToken(
        id=command.id,
        owner_id=owner.id,
        name=command.data.name,
        scopes=command.data.scopes,
        secret_digest=command.data.secret_digest,
        credentials_version=owner.credentials_version,
        created_date=command.time,
        expires_date=command.time + timedelta(days=command.data.lifetime_days),
    )
    return Decision(OutcomeStatus.APPLIED, HTTPStatus.CREATED, token=token)


def gone() -> Decision:
    """What the command is about is no more."""
    return Decision(OutcomeStatus.APPLIED, HTTPStatus.NO_CONTENT)
