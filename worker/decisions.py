"""The decisions on commands, and the rows that they are based on; no database, no broker, no clock."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from uuid import UUID

from pydantic import BaseModel

from shared.contracts import (
    REJECTION_STATUS,
    OutcomeStatus,
    PublicToken,
    PublicUser,
    Rejection,
    Scope,
    WrittenItems,
    fold_name,
)

OutcomeColumns = dict[str, object]
"""The columns of an outcome that depend on the decision; those of a written note include its text."""


@dataclass(frozen=True, slots=True)
class Note:
    """A note's row."""

    id: int
    owner_id: int
    title: str
    description: str
    created_date: datetime
    updated_date: datetime
    version: int
    mod_revision: int = 0
    """The owner's revision at the last change."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The row of a deleted note; it is in the trash while it has its text."""

    id: int
    owner_id: int
    title: str | None
    description: str | None
    created_date: datetime
    updated_date: datetime
    version: int
    mod_revision: int
    """The owner's revision at the deletion."""

    @classmethod
    def of(cls, note: Note, mod_revision: int) -> "Tombstone":
        """Return the tombstone of a note that is deleted at this revision."""
        members = {name: getattr(note, name) for name in Note.__slots__}
        return cls(**members | {"mod_revision": mod_revision})

    @property
    def note(self) -> Note | None:
        """The note before its deletion; None once its text is erased."""
        if self.title is None or self.description is None:
            return None
        return Note(
            id=self.id,
            owner_id=self.owner_id,
            title=self.title,
            description=self.description,
            created_date=self.created_date,
            updated_date=self.updated_date,
            version=self.version,
            mod_revision=self.mod_revision,
        )

    def erase(self) -> "Tombstone":
        """Return the tombstone without its text."""
        return replace(self, title=None, description=None)


@dataclass(frozen=True, slots=True)
class User:
    """A user's row; the implicit owner has no name."""

    id: int
    credentials_version: int
    name: str | None
    folded_name: str | None
    created_date: datetime
    updated_date: datetime
    revision: int = 0
    """The number of decisions on the user's commands, corrections by hand included."""
    password_hash: str | None = None
    """The new hash, if the batch sets one; the stored one is not read."""

    def with_revision(self, revision: int) -> "User":
        """Return the user with this revision."""
        return replace(self, revision=revision)

    def with_name(self, name: str) -> "User":
        """Return the user with this name."""
        return replace(self, name=name, folded_name=fold_name(name))


@dataclass(frozen=True, slots=True)
class PersonalToken:
    """A personal token's row."""

    id: UUID
    owner_id: int
    name: str
    scopes: tuple[Scope, ...]
    secret_digest: str
    credentials_version: int
    created_date: datetime
    expires_date: datetime


class NoteVersions(BaseModel, frozen=True):
    """The versions of the notes that a failed command of several writes names, by id; the body of its outcome."""

    versions: Mapping[int, int | None] = {}

    @classmethod
    def parse(cls, body: str | None) -> "NoteVersions":
        """Return the versions in the body; none if the worker that failed the command could not read it."""
        return cls() if body is None else cls.model_validate_json(body)


@dataclass(frozen=True, slots=True)
class NoteWritten:
    """A note was created or changed, or had the requested text already."""

    http_status: HTTPStatus
    note: Note

    @property
    def outcome(self) -> OutcomeColumns:
        """Applied; the response body is the note."""
        note = self.note
        return _applied(self.http_status, note_id=note.id, note_version=note.version) | {
            "title": note.title,
            "description": note.description,
            "created_date": note.created_date,
            "updated_date": note.updated_date,
        }


@dataclass(frozen=True, slots=True)
class NoteDeleted:
    """A note was deleted."""

    note_id: int

    @property
    def outcome(self) -> OutcomeColumns:
        """Applied; the response has no body."""
        return _applied(HTTPStatus.NO_CONTENT, note_id=self.note_id)


@dataclass(frozen=True, slots=True)
class NotePurged:
    """The text of a deleted note was erased."""

    note_id: int

    @property
    def outcome(self) -> OutcomeColumns:
        """Applied; the response has no body."""
        return _applied(HTTPStatus.NO_CONTENT, note_id=self.note_id)


@dataclass(frozen=True, slots=True)
class NotesWritten:
    """Several writes were applied by one command."""

    items: WrittenItems
    notes: Mapping[int, Note | None]
    """The notes that were written, by id; None for a deleted one."""
    versions: Sequence[Note]
    """Every new version of a note, including those that a later write replaced."""

    @property
    def outcome(self) -> OutcomeColumns:
        """Applied; the response body lists the writes."""
        return _applied(HTTPStatus.OK, body=self.items.model_dump_json())


@dataclass(frozen=True, slots=True)
class UserWritten:
    """A user was registered or changed."""

    http_status: HTTPStatus
    user: User

    @property
    def outcome(self) -> OutcomeColumns:
        """Applied; the response body is the user, who owns the command even if it registers them."""
        body = PublicUser.model_validate(self.user, from_attributes=True).model_dump_json()
        return _applied(self.http_status, owner_id=self.user.id, body=body)


@dataclass(frozen=True, slots=True)
class UserDeleted:
    """A user was deleted, with everything that they own."""

    user_id: int

    @property
    def outcome(self) -> OutcomeColumns:
        """Applied; the response has no body."""
        return _applied(HTTPStatus.NO_CONTENT)


@dataclass(frozen=True, slots=True)
class TokenCreated:
    """A personal token was created."""

    token: PersonalToken

    @property
    def outcome(self) -> OutcomeColumns:
        """Applied; the response body is the token without its secret."""
        body = PublicToken.model_validate(self.token, from_attributes=True).model_dump_json()
        return _applied(HTTPStatus.CREATED, body=body)


@dataclass(frozen=True, slots=True)
class TokenRevoked:
    """A personal token was revoked."""

    token_id: UUID

    @property
    def outcome(self) -> OutcomeColumns:
        """Applied; the response has no body."""
        return _applied(HTTPStatus.NO_CONTENT)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The command has no effect and never will."""

    reason: Rejection
    note_id: int | None = None
    note_version: int | None = None
    """The note's current version if a precondition failed."""
    item: int | None = None
    """The index of the write that was rejected, among several."""

    @property
    def outcome(self) -> OutcomeColumns:
        """Rejected, with the reason."""
        return {
            "status": OutcomeStatus.REJECTED,
            "http_status": REJECTION_STATUS[self.reason],
            "reason": self.reason,
            "note_id": self.note_id,
            "note_version": self.note_version,
            "body": None if self.item is None else json.dumps({"item": self.item}),
        }


@dataclass(frozen=True, slots=True)
class Failed:
    """The command has no effect and is kept for an operator."""

    reason: str
    note_id: int | None = None
    note_version: int | None = None
    """The note's version when the command first failed; for a restore or a purge, that in the trash."""
    note_versions: NoteVersions | None = None
    """The same for a command of several writes; for a restore or a purge, the version of a live note."""

    @property
    def outcome(self) -> OutcomeColumns:
        """Failed; the body is no response but the notes' versions, which a replay compares."""
        return {
            "status": OutcomeStatus.FAILED,
            "http_status": HTTPStatus.INTERNAL_SERVER_ERROR,
            "reason": self.reason,
            "note_id": self.note_id,
            "note_version": self.note_version,
            "body": self.note_versions and self.note_versions.model_dump_json(),
        }


NoteDecision = NoteWritten | NoteDeleted | Rejected
Applied = (
    NoteWritten | NoteDeleted | NotePurged | NotesWritten | UserWritten | UserDeleted | TokenCreated | TokenRevoked
)
Decision = Applied | Rejected | Failed


def _applied(status: HTTPStatus, **columns: object) -> OutcomeColumns:
    return {"status": OutcomeStatus.APPLIED, "http_status": status, **columns}
