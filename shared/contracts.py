"""The wire: commands travel as CloudEvents in JSON batches, outcomes return as replies.

Unknown members are ignored, so a newer gateway may add what cannot change a command's effect; anything
that can is a new `dataversion` of the type, which an older worker refuses to touch.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

COMMANDS_CONTENT_TYPE = "application/cloudevents-batch+json"
MAX_MESSAGE_COMMANDS = 500
MAX_MESSAGE_BYTES = 1024 * 1024


def storable(text: str) -> str:
    """The text, where Postgres can store it; raises ValueError otherwise."""
    if "\0" in text:
        raise ValueError("must not contain the character U+0000")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must not contain a lone surrogate")
    return text


StorableText = Annotated[str, AfterValidator(storable)]
"""Text that Postgres can store."""
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Instant = Annotated[AwareDatetime, Field(ge=datetime(2000, 1, 1, tzinfo=UTC), lt=datetime(9000, 1, 1, tzinfo=UTC))]
"""A time that every zone and Postgres can express."""


class NoteText(BaseModel, frozen=True):
    """What a client writes of a note."""

    title: StorableText
    description: StorableText


class Preconditions(BaseModel, frozen=True):
    """The versions of a note in which a command may have an effect; without one, in every version."""

    if_match: tuple[int, ...] | None = None
    if_none_match: tuple[int, ...] | Literal["*"] | None = None

    def allow(self, version: int) -> bool:
        """Whether the command may have an effect on this version."""
        if self.if_match is not None and version not in self.if_match:
            return False
        return self.if_none_match is None or (self.if_none_match != "*" and version not in self.if_none_match)


class NoteTarget(Preconditions, frozen=True):
    """Which note a command is about."""

    note_id: Int64


class NoteReplacement(NoteTarget, NoteText, frozen=True):
    """A note's new text."""


class NotePatch(NoteTarget, frozen=True):
    """The parts of a note that get a new text; the others stay."""

    title: StorableText | None = None
    description: StorableText | None = None


class Envelope(BaseModel):
    """The CloudEvents attributes of every command; the extension attributes are Inkwell's."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    specversion: Literal["1.0"] = "1.0"
    id: UUID
    source: StorableText = "/inkwell/gateway"
    time: Instant
    owner: Int64
    credentials_version: Annotated[int, Field(alias="credentialsversion")]
    fingerprint: StorableText
    attempt_id: Annotated[UUID, Field(alias="attemptid")]
    traceparent: StorableText | None = None
    replayed_at: Annotated[Instant | None, Field(alias="replayedat")] = None
    """When an operator sent a failed command again; only such a delivery may change its outcome."""
    replay_forced: Annotated[bool | None, Field(alias="replayforced")] = None
    """Whether the replay shall have its effect also where a later command has touched the note."""


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
    """Change parts of a note."""

    type: Literal["note.patch"] = "note.patch"
    dataversion: Literal[1] = 1
    data: NotePatch


class DeleteNote(Envelope):
    """Remove a note."""

    type: Literal["note.delete"] = "note.delete"
    dataversion: Literal[1, 2] = 2  # 2 knows if_none_match
    data: NoteTarget


Command = CreateNote | ReplaceNote | PatchNote | DeleteNote
_COMMAND_TYPES: tuple[type[Command], ...] = (CreateNote, ReplaceNote, PatchNote, DeleteNote)
_VERSIONS = {model.model_fields["type"].default: model.model_fields["dataversion"].default for model in _COMMAND_TYPES}
_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="type")])
_COMMANDS: TypeAdapter[list[Command]] = TypeAdapter(list[Annotated[Command, Field(discriminator="type")]])


class Rejection(StrEnum):
    """Why a well-formed command must have no effect; part of the API."""

    NOTE_NOT_FOUND = "note_not_found"
    PRECONDITION_FAILED = "precondition_failed"
    CREDENTIALS_OUTDATED = "credentials_outdated"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    DISCARDED = "discarded"


REJECTION_STATUS = {
    Rejection.NOTE_NOT_FOUND: HTTPStatus.NOT_FOUND,
    Rejection.PRECONDITION_FAILED: HTTPStatus.PRECONDITION_FAILED,
    Rejection.CREDENTIALS_OUTDATED: HTTPStatus.UNAUTHORIZED,
    Rejection.IDEMPOTENCY_KEY_REUSED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Rejection.DISCARDED: HTTPStatus.GONE,
}


class OutcomeStatus(StrEnum):
    """What became of a command."""

    APPLIED = "applied"
    REJECTED = "rejected"
    FAILED = "failed"


class Outcome(BaseModel):
    """What the database has committed about a command, with the HTTP answer."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    status: OutcomeStatus
    http_status: int
    reason: str | None = None
    note_id: int | None = None
    note_version: int | None = None
    body: str | None = None
    fingerprint: str | None = None
    attempt_id: UUID | None = None


def outcome_for(fingerprint: str, outcome: Outcome) -> Outcome:
    """What the request with this fingerprint is told: the outcome, unless it is another request's of the same id."""
    if fingerprint == outcome.fingerprint:
        return outcome
    reason = Rejection.IDEMPOTENCY_KEY_REUSED
    return Outcome(id=outcome.id, status=OutcomeStatus.REJECTED, http_status=REJECTION_STATUS[reason], reason=reason)


class Reply(BaseModel, frozen=True):
    """The hint that an attempt is decided; without an outcome it says only "look it up"."""

    attempt_id: UUID
    outcome: Outcome | None = None


_REPLIES: TypeAdapter[list[Reply]] = TypeAdapter(list[Reply])


@dataclass(frozen=True, slots=True)
class BadCommand:
    """A command whose id can be read and whose rest cannot be used; it becomes a `failed` row."""

    id: UUID
    reason: Literal["invalid_command", "unknown_type"]
    content: str
    envelope: Envelope | None = None
    """Whose it is and who waits for it, where at least that can be read."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something in which no command id can be read; it goes to the dead-letter queue."""

    content: bytes


Received = Command | BadCommand | Unreadable


class NewerVersionError(Exception):
    """A known type in a version that this worker does not know: upgrade the workers first."""


def encode_command(command: Command) -> bytes:
    """One CloudEvent as JSON."""
    return command.model_dump_json(exclude_none=True).encode()


def encode_batch(encoded_commands: Iterable[bytes]) -> bytes:
    """A CloudEvents JSON batch of commands that `encode_command` made."""
    return b"[" + b",".join(encoded_commands) + b"]"


def decode_batch(body: bytes) -> Sequence[Received]:
    """The commands of one message, in order, whatever shape they are in.

    Raises NewerVersionError where one of them is of a newer version than this code knows.
    """
    try:
        return _COMMANDS.validate_json(body)
    except ValidationError:
        return _decode_each(body)


def _decode_each(body: bytes) -> list[Received]:
    try:
        events = json.loads(body, parse_constant=_no_number, parse_float=_number, parse_int=_number)
        if isinstance(events, list):
            return [_decode_event(event) for event in events]
    except (ValueError, RecursionError):
        pass
    return [Unreadable(body)]


def _number(text: str) -> float | None:
    """A number that can be written again; the others, which no command has, become null."""
    try:
        number = float(text) if {".", "e", "E"} & set(text) else int(text)
        return number if math.isfinite(number) else None
    except (ValueError, OverflowError):  # more digits than Python converts
        return None


def _no_number(_: str) -> None:
    """NaN and Infinity, which are no JSON."""


def _decode_event(event: object) -> Received:
    content = json.dumps(event)
    try:
        command_id = UUID(event["id"]) if isinstance(event, dict) else None
    except (TypeError, KeyError, ValueError, AttributeError):
        command_id = None
    if command_id is None or not isinstance(event, dict):
        return Unreadable(content.encode())
    known, version = _VERSIONS.get(str(event.get("type"))), event.get("dataversion", 1)
    if known is None:
        return BadCommand(command_id, "unknown_type", content, _envelope(event))
    if isinstance(version, int) and version > known:
        raise NewerVersionError(f"{event['type']} version {version}; this worker knows {known}")
    try:
        return _COMMAND.validate_python(event)
    except ValidationError:
        return BadCommand(command_id, "invalid_command", content, _envelope(event))


def _envelope(event: dict[str, object]) -> Envelope | None:
    try:
        return Envelope.model_validate(event)
    except ValidationError:
        return None


def encode_replies(replies: Sequence[Reply]) -> bytes:
    """The replies of one batch to one gateway."""
    return _REPLIES.dump_json(list(replies), exclude_none=True)


def decode_replies(body: bytes) -> list[Reply]:
    """What `encode_replies` made; raises pydantic's ValidationError on anything else."""
    return _REPLIES.validate_json(body)
