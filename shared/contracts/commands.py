"""The commands: imperative, one model each, in the envelope of CloudEvents.

Unknown members are ignored, so that a newer gateway may add members that do not change the effect. Any other change is
a new `dataversion` of the type, which older workers do not apply.
"""

from collections.abc import Iterator
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from shared.contracts.accounts import (
    NO_OWNER,
    NoData,
    Registration,
    RenewedHash,
    TokenRequest,
    TokenTarget,
    UserChange,
)
from shared.contracts.notes import (
    CreateItem,
    DeleteItem,
    NoteItems,
    NotePatch,
    NoteReplacement,
    NoteTarget,
    NoteText,
    PatchItem,
    ReplaceItem,
)
from shared.contracts.values import MAX_VERSION, Instant, Int64, StorableText

ShortText = Annotated[StorableText, Field(max_length=128)]
CredentialsVersion = Annotated[int, Field(ge=0, le=MAX_VERSION)]


class Envelope(BaseModel):
    """The CloudEvents attributes of every command; the extension attributes are Inkwell's."""

    model_config = ConfigDict(
        frozen=True,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )

    specversion: Literal["1.0"] = "1.0"
    id: UUID
    """The command's id; a second command with it has no effect."""
    source: ShortText = "/inkwell/gateway"
    time: Instant
    """When the gateway made the command; it dates what the command writes."""
    owner: Int64
    """The user to whom the notes belong. Commands of an owner are applied in order."""
    credentials_version: Annotated[CredentialsVersion, Field(alias="credentialsversion")]
    """The version of the credentials that the request had; an outdated one is rejected."""
    fingerprint: ShortText
    """A digest of the request: the same key with another request is rejected."""
    attempt_id: Annotated[UUID, Field(alias="attemptid")]
    """The request that waits for the reply; a request that is repeated with its key is another attempt."""
    traceparent: ShortText | None = None
    """The trace that the request belongs to (W3C Trace Context)."""
    may_expire: Annotated[bool | None, Field(alias="mayexpire")] = None
    """Whether `time` is Postgres' time. Otherwise the command never expires, since its clock may have been wrong."""
    replayed_at: Annotated[Instant | None, Field(alias="replayedat")] = None
    """When an operator replayed a failed command; only such a delivery may change its outcome."""
    replay_forced: Annotated[bool | None, Field(alias="replayforced")] = None
    """Whether to apply the replay even if a later command has changed the note."""

    @classmethod
    def type_name(cls) -> str:
        """Return the `type` of this model's commands."""
        return str(cls.model_fields["type"].default)


class CreateNote(Envelope):
    """Add a note."""

    type: Literal["note.create"] = "note.create"
    dataversion: Literal[1] = 1
    data: NoteText


class ReplaceNote(Envelope):
    """Give a note a new title and description."""

    type: Literal["note.replace"] = "note.replace"
    dataversion: Literal[1, 2] = 2  # 2 knows if_none_match
    data: NoteReplacement


class PatchNote(Envelope):
    """Change some members of a note."""

    type: Literal["note.patch"] = "note.patch"
    dataversion: Literal[1] = 1
    data: NotePatch


class DeleteNote(Envelope):
    """Remove a note."""

    type: Literal["note.delete"] = "note.delete"
    dataversion: Literal[1, 2] = 2  # 2 knows if_none_match
    data: NoteTarget


class RestoreNote(Envelope):
    """Take a deleted note out of the trash."""

    type: Literal["note.restore"] = "note.restore"
    dataversion: Literal[1] = 1
    data: NoteTarget


class PurgeNote(Envelope):
    """Erase the text of a deleted note."""

    type: Literal["note.purge"] = "note.purge"
    dataversion: Literal[1] = 1
    data: NoteTarget


class ChangeNotes(Envelope):
    """Add, change and remove several notes atomically."""

    type: Literal["notes.change"] = "notes.change"
    dataversion: Literal[1, 2] = 1  # 2 knows created_date; only imports need it
    data: NoteItems

    def split(self) -> Iterator["SingleNoteCommand"]:
        """Yield each write as a separate command, in order."""
        envelope = {name: getattr(self, name) for name in Envelope.model_fields}
        for item in self.data.items:
            match item:
                case CreateItem():
                    yield CreateNote.model_construct(**envelope, data=item)
                case ReplaceItem():
                    yield ReplaceNote.model_construct(**envelope, data=item)
                case PatchItem():
                    yield PatchNote.model_construct(**envelope, data=item)
                case DeleteItem():
                    yield DeleteNote.model_construct(**envelope, data=item)


class RegisterUser(Envelope):
    """Add a user."""

    type: Literal["user.register"] = "user.register"
    dataversion: Literal[1] = 1
    owner: Literal[0] = NO_OWNER
    data: Registration


class ChangeUser(Envelope):
    """Give a user another name or password; a new password outdates all credentials."""

    type: Literal["user.change"] = "user.change"
    dataversion: Literal[1] = 1
    data: UserChange


class RenewHash(Envelope):
    """Replace a user's password hash with a costlier one; the password and all credentials remain valid."""

    type: Literal["user.renew_hash"] = "user.renew_hash"
    dataversion: Literal[1] = 1
    data: RenewedHash


class DeleteUser(Envelope):
    """Remove a user with their notes and tokens."""

    type: Literal["user.delete"] = "user.delete"
    dataversion: Literal[1] = 1
    data: NoData


class CreateToken(Envelope):
    """Add a personal token."""

    type: Literal["token.create"] = "token.create"
    dataversion: Literal[1] = 1
    data: TokenRequest


class RevokeToken(Envelope):
    """Remove a personal token."""

    type: Literal["token.revoke"] = "token.revoke"
    dataversion: Literal[1] = 1
    data: TokenTarget


SingleNoteCommand = CreateNote | ReplaceNote | PatchNote | DeleteNote
TrashCommand = RestoreNote | PurgeNote
NoteCommand = SingleNoteCommand | ChangeNotes | TrashCommand
AccountCommand = RegisterUser | ChangeUser | RenewHash | DeleteUser | CreateToken | RevokeToken
Command = NoteCommand | AccountCommand


def count_writes(command: object) -> int:
    """Return the number of writes in a command: 1 unless it is a client's batch."""
    return len(command.data.items) if isinstance(command, ChangeNotes) else 1
