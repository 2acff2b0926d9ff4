"""What a handler can decide about a command, and the rows that it decides on; no database, no broker, no clock."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from uuid import UUID

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
"""The columns of a command's outcome that tell what was decided; of a written note they have the text to print."""


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
class NoteWritten:
    """A note was created or changed, or asked to be what it is."""

    http_status: HTTPStatus
    note: Note

    @property
    def outcome(self) -> OutcomeColumns:
        """Its answer is the note."""
        note = self.note
        return _applied(self.http_status, note_id=note.id, note_version=note.version) | {
            "title": note.title,
            "description": note.description,
            "created_date": note.created_date,
            "updated_date": note.updated_date,
        }


@dataclass(frozen=True, slots=True)
class NoteDeleted:
    """A note is gone."""

    note_id: int

    @property
    def outcome(self) -> OutcomeColumns:
        """Its answer has no body."""
        return _applied(HTTPStatus.NO_CONTENT, note_id=self.note_id)


@dataclass(frozen=True, slots=True)
class NotesWritten:
    """Several writes at once were done."""

    items: WrittenItems
    notes: Mapping[int, Note | None]
    """The notes as the writes have left them, None where one is gone."""

    @property
    def outcome(self) -> OutcomeColumns:
        """Its answer lists the writes."""
        return _applied(HTTPStatus.OK, body=self.items.model_dump_json())


@dataclass(frozen=True, slots=True)
class UserWritten:
    """A user was registered or changed."""

    http_status: HTTPStatus
    user: User

    @property
    def outcome(self) -> OutcomeColumns:
        """Its answer is the user, who is the owner of a registration, too."""
        body = PublicUser.model_validate(self.user, from_attributes=True).model_dump_json()
        return _applied(self.http_status, owner_id=self.user.id, body=body)


@dataclass(frozen=True, slots=True)
class UserDeleted:
    """A user is gone, with all that is theirs."""

    user_id: int

    @property
    def outcome(self) -> OutcomeColumns:
        """Its answer has no body."""
        return _applied(HTTPStatus.NO_CONTENT)


@dataclass(frozen=True, slots=True)
class TokenCreated:
    """A personal token was created."""

    token: PersonalToken

    @property
    def outcome(self) -> OutcomeColumns:
        """Its answer is the token without its secret."""
        body = PublicToken.model_validate(self.token, from_attributes=True).model_dump_json()
        return _applied(HTTPStatus.CREATED, body=body)


@dataclass(frozen=True, slots=True)
class TokenRevoked:
    """A personal token is gone."""

    token_id: UUID

    @property
    def outcome(self) -> OutcomeColumns:
        """Its answer has no body."""
        return _applied(HTTPStatus.NO_CONTENT)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The command has no effect, and never will."""

    reason: Rejection
    note_id: int | None = None
    note_version: int | None = None
    """The version that the note is in, where the reason is a precondition."""
    item: int | None = None
    """Which of several writes was rejected."""

    @property
    def outcome(self) -> OutcomeColumns:
        """Its answer tells why."""
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
    """The version of the note when the command first failed."""
    note_versions: str | None = None
    """The same for the notes of several writes, as JSON."""

    @property
    def outcome(self) -> OutcomeColumns:
        """Its answer tells nothing but that; the body keeps the versions for a replay."""
        return {
            "status": OutcomeStatus.FAILED,
            "http_status": HTTPStatus.INTERNAL_SERVER_ERROR,
            "reason": self.reason,
            "note_id": self.note_id,
            "note_version": self.note_version,
            "body": self.note_versions,
        }


NoteDecision = NoteWritten | NoteDeleted | Rejected
Applied = NoteWritten | NoteDeleted | NotesWritten | UserWritten | UserDeleted | TokenCreated | TokenRevoked
Decision = Applied | Rejected | Failed


def _applied(status: HTTPStatus, **columns: object) -> OutcomeColumns:
    return {"status": OutcomeStatus.APPLIED, "http_status": status, **columns}
