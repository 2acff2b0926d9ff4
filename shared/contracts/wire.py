"""Commands as JSON batches of CloudEvents, whatever shape they arrive in, and replies as JSON."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args
from uuid import UUID

from pydantic import Field, TypeAdapter, ValidationError

from shared.contracts.commands import Command, Envelope
from shared.contracts.outcomes import Reply

COMMANDS_CONTENT_TYPE = "application/cloudevents-batch+json"
MAX_MESSAGE_COMMANDS = 500
MAX_MESSAGE_BYTES = 1024 * 1024
_COMMAND_TYPES: tuple[type[Command], ...] = get_args(Command)
_VERSIONS = {model.model_fields["type"].default: model.model_fields["dataversion"].default for model in _COMMAND_TYPES}
_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="type")])
_COMMANDS: TypeAdapter[list[Command]] = TypeAdapter(list[Annotated[Command, Field(discriminator="type")]])
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


def envelope_of(command: Command | BadCommand) -> Envelope | None:
    """Whose the command is and who waits for it, as far as that can be read."""
    return command.envelope if isinstance(command, BadCommand) else command


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
