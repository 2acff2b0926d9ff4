"""Handles each command: pure functions from a command and a row to a decision; no database, no broker, no clock."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from http import HTTPStatus
from typing import assert_never

from shared.contracts import (
    BadCommand,
    ChangeNotes,
    ChangeUser,
    Command,
    CreateItem,
    CreateNote,
    CreateToken,
    DeleteNote,
    PatchNote,
    PurgeNote,
    RegisterUser,
    Rejection,
    RenewHash,
    ReplaceNote,
    RestoreNote,
    SingleNoteCommand,
    TrashCommand,
    WrittenItem,
    WrittenItems,
    fold_name,
)
from worker.decisions import (
    Note,
    NoteDeleted,
    NotePurged,
    NotesWritten,
    NoteWritten,
    PersonalToken,
    Rejected,
    TokenCreated,
    Tombstone,
    User,
    UserWritten,
)

Change = ReplaceNote | PatchNote | DeleteNote
"""A command that changes one existing note; `ChangeNotes` is several writes, creations among them."""


class HandlerError(Exception):
    """A handler raised; the cause is its exception."""


@contextmanager
def wrap_handler_errors() -> Iterator[None]:
    """Convert any exception of the block to HandlerError, which distinguishes it from errors of Postgres."""
    try:
        yield
    except Exception as error:
        raise HandlerError from error


def create_note(command: CreateNote, note_id: int) -> NoteWritten:
    """Return a new note, created when its command was issued or, if it is imported, at an earlier time."""
    given = command.data.created_date if isinstance(command.data, CreateItem) else None
    note = Note(
        id=note_id,
        owner_id=command.owner,
        title=command.data.title,
        description=command.data.description,
        created_date=min(given or command.time, command.time),
        updated_date=command.time,
        version=1,
    )
    return NoteWritten(HTTPStatus.CREATED, note)


def replace_note(command: ReplaceNote, note: Note) -> NoteWritten:
    """Return the note with a new text."""
    return NoteWritten(HTTPStatus.OK, edit(note, command, command.data.title, command.data.description))


def patch_note(command: PatchNote, note: Note) -> NoteWritten:
    """Return the note with those parts of its text replaced that the command sets."""
    title = command.data.title
    description = command.data.description
    title = note.title if title is None else title
    description = note.description if description is None else description
    return NoteWritten(HTTPStatus.OK, edit(note, command, title, description))


def delete_note(_: DeleteNote, note: Note) -> NoteDeleted:
    """Delete the note."""
    return NoteDeleted(note.id)


def change_note(command: Change, note: Note) -> NoteWritten | NoteDeleted:
    """Return the decision on a command that may change the note."""
    match command:
        case ReplaceNote():
            return replace_note(command, note)
        case PatchNote():
            return patch_note(command, note)
        case DeleteNote():
            return delete_note(command, note)
        case _:
            assert_never(command)


def restore_note(command: RestoreNote, note: Note) -> NoteWritten:
    """Return the deleted note in a new version with the same text; `updated_date` never goes back."""
    updated_date = max(command.time, note.updated_date)
    return NoteWritten(HTTPStatus.OK, replace(note, updated_date=updated_date, version=note.version + 1))


def purge_note(_: PurgeNote, note: Note) -> NotePurged:
    """Erase the deleted note's text."""
    return NotePurged(note.id)


def decide_on_trash(command: TrashCommand, tombstone: Tombstone | None) -> NoteWritten | NotePurged | Rejected:
    """Return the decision on a command about a deleted note."""
    target = check_trash(command, tombstone)
    if isinstance(target, Rejected):
        return target
    match command:
        case RestoreNote():
            return restore_note(command, target)
        case PurgeNote():
            return purge_note(command, target)
        case _:
            assert_never(command)


def edit(note: Note, command: SingleNoteCommand, title: str, description: str) -> Note:
    """Return the note's next version, or the note itself if its text does not change.

    `updated_date` never goes back, whatever the gateways' clocks say.
    """
    if (title, description) == (note.title, note.description):
        return note
    updated_date = max(command.time, note.updated_date)
    return replace(note, title=title, description=description, updated_date=updated_date, version=note.version + 1)


def check_target(command: Change, note: Note | None) -> Note | Rejected:
    """Return the note if the command may change it, or the rejection; a note of another owner does not exist."""
    if note is None or note.owner_id != command.owner:
        return Rejected(Rejection.NOTE_NOT_FOUND, command.data.note_id)
    if not command.data.allow(note.version):
        return Rejected(Rejection.PRECONDITION_FAILED, note.id, note.version)
    return note


def check_trash(command: TrashCommand, tombstone: Tombstone | None) -> Note | Rejected:
    """Return the deleted note if it is in the trash and the command may act on it, or the rejection."""
    note = tombstone.note if tombstone and tombstone.owner_id == command.owner else None
    if note is None:
        return Rejected(Rejection.NOTE_NOT_FOUND, command.data.note_id)
    if not command.data.allow(note.version):
        return Rejected(Rejection.PRECONDITION_FAILED, note.id, note.version)
    return note


def trash_ids(command: Command | BadCommand) -> list[int]:
    """Return the ids of the deleted notes that the command restores or purges; they need not exist."""
    return [command.data.note_id] if isinstance(command, TrashCommand) else []


def target_ids(command: Command | BadCommand) -> list[int]:
    """Return the ids of the notes that the command changes, deletes, restores or purges; they need not exist."""
    match command:
        case ReplaceNote() | PatchNote() | DeleteNote() | RestoreNote() | PurgeNote():
            return [command.data.note_id]
        case ChangeNotes():
            return [single.data.note_id for single in command.split() if not isinstance(single, CreateNote)]
        case _:
            return []


def count_creations(command: Command | BadCommand) -> int:
    """Return how many notes the command would create."""
    match command:
        case CreateNote():
            return 1
        case ChangeNotes():
            return sum(item.op == "create" for item in command.data.items)
        case _:
            return 0


def change_notes(
    decisions: Iterable[NoteWritten | NoteDeleted], notes: Mapping[int, Note | None], versions: Sequence[Note]
) -> NotesWritten:
    """Return the decision on several writes, with the notes as these have left them and each version in between."""
    return NotesWritten(WrittenItems(items=tuple(map(_written_item, decisions))), notes, versions)


def _written_item(decision: NoteWritten | NoteDeleted) -> WrittenItem:
    if isinstance(decision, NoteDeleted):
        return WrittenItem(status=HTTPStatus.NO_CONTENT, id=decision.note_id, version=None)
    return WrittenItem(status=decision.http_status, id=decision.note.id, version=decision.note.version)


def register_user(command: RegisterUser, user_id: int) -> UserWritten:
    """Return a new user, with the first version of credentials."""
    user = User(
        id=user_id,
        credentials_version=1,
        name=command.data.name,
        folded_name=fold_name(command.data.name),
        created_date=command.time,
        updated_date=command.time,
        password_hash=command.data.password_hash,
    )
    return UserWritten(HTTPStatus.CREATED, user)


def change_user(command: ChangeUser, user: User) -> UserWritten:
    """Return the user with another name or password; a new password outdates all credentials.

    The same name changes nothing. A password always does: a salted hash does not show whether it is the same.
    """
    if command.data.password_hash is None and command.data.name in (None, user.name):
        return UserWritten(HTTPStatus.OK, user)
    user = replace(user, updated_date=max(command.time, user.updated_date))
    if command.data.name is not None:
        user = user.with_name(command.data.name)
    if command.data.password_hash is not None:
        user = replace(user, password_hash=command.data.password_hash, credentials_version=user.credentials_version + 1)
    return UserWritten(HTTPStatus.OK, user)


def renew_hash(command: RenewHash, user: User) -> UserWritten:
    """Return the user with another hash of the same password; no visible change."""
    return UserWritten(HTTPStatus.OK, replace(user, password_hash=command.data.password_hash))


def create_token(command: CreateToken, owner: User) -> TokenCreated:
    """Return a new personal token; it ends with its owner's credentials, or after the lifetime requested."""
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
    return TokenCreated(token)
