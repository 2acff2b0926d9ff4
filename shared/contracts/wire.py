"""Encodes commands as JSON batches of CloudEvents and replies as JSON; decodes both, even if they are invalid."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args
from uuid import UUID

from pydantic import Field, TypeAdapter, ValidationError

from shared.contracts.commands import Command, Envelope, count_writes
from shared.contracts.outcomes import Reply

COMMANDS_CONTENT_TYPE = "application/cloudevents-batch+json"
MAX_MESSAGE_COMMANDS = 500
MAX_MESSAGE_BYTES = 1024 * 1024
"""Limit on a message with several commands; a larger command travels alone."""
LARGEST_MESSAGE_BYTES = 3 * 1024 * 1024
"""RabbitMQ's `max_message_size`: a batch request has at most 2 MiB, and its command is a little larger."""
MAX_COMMAND_BYTES = LARGEST_MESSAGE_BYTES - len("[]")
MAX_VERSIONS_AHEAD = 10
"""How far a command's version may be ahead of this code's; a higher one counts as forged."""
MAX_DEPTH = 100
"""Limit on the levels of nesting: Postgres rejects JSON with a few thousand of them."""
_NO_REPLAY = {"replayed_at": None, "replay_forced": None}
_CONTAINERS = (dict, list)
_COMMAND_TYPES: tuple[type[Command], ...] = get_args(Command)
_VERSIONS = {model.type_name(): max(get_args(model.model_fields["dataversion"].annotation)) for model in _COMMAND_TYPES}
_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="type")])
# Fails fast: the list of all errors in a hostile message would take hundreds of times the memory of the message.
COMMANDS: TypeAdapter[list[Command]] = TypeAdapter(
    Annotated[
        list[Annotated[Command, Field(discriminator="type")]], Field(max_length=MAX_MESSAGE_COMMANDS, fail_fast=True)
    ]
)
"""A message with commands."""
REPLIES: TypeAdapter[list[Reply]] = TypeAdapter(Annotated[list[Reply], Field(fail_fast=True)])
"""A message with replies."""

BadCommandReason = Literal["invalid_command", "unknown_type", "newer_version"]


@dataclass(frozen=True, slots=True)
class BadCommand:
    """An invalid command whose id is readable; it becomes a `failed` row."""

    id: UUID
    reason: BadCommandReason
    content: str
    envelope: Envelope | None = None
    """None unless it is valid."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An event or message without a readable command id; it goes to the queue of unreadable messages."""

    content: bytes


def find_envelope(command: Command | BadCommand) -> Envelope | None:
    """Return the command's envelope; None if it is invalid."""
    return command.envelope if isinstance(command, BadCommand) else command


Received = Command | BadCommand | Unreadable


def strip_replay(received: Received) -> Received:
    """Return the command without its replay attributes, which makes it an ordinary delivery."""
    if isinstance(received, Unreadable) or not (envelope := find_envelope(received)) or not envelope.replayed_at:
        return received
    if isinstance(received, BadCommand):
        return replace(received, envelope=envelope.model_copy(update=_NO_REPLAY))
    return received.model_copy(update=_NO_REPLAY)


class NewerVersionError(Exception):
    """A known type in a version that this worker does not know: workers must be upgraded before gateways."""


def encode_command(command: Command) -> bytes:
    """Return one CloudEvent as JSON."""
    return command.model_dump_json(exclude_none=True).encode()


def encode_batch(encoded_commands: Iterable[bytes]) -> bytes:
    """Return a CloudEvents JSON batch of commands encoded by `encode_command`."""
    return b"[" + b",".join(encoded_commands) + b"]"


def decode_batch(body: bytes, *, fail_newer: bool = False) -> Sequence[Received]:
    """Return the commands of one message in order, valid or not.

    A message that no gateway sends (too large, too many commands or writes, no command with an id) is unreadable as a
    whole. Raises NewerVersionError for a command of a newer version; with `fail_newer` it becomes a BadCommand.
    """
    if len(body) > LARGEST_MESSAGE_BYTES:
        return [Unreadable(body)]
    try:
        received: Sequence[Received] = COMMANDS.validate_json(body)
    except ValidationError:
        received = _decode_each(body, fail_newer=fail_newer)
    writes = sum(map(count_writes, received))
    return received if len(received) == 1 or writes <= MAX_MESSAGE_COMMANDS else [Unreadable(body)]


def _decode_each(body: bytes, *, fail_newer: bool) -> Sequence[Received]:
    try:
        events = _parse(body.decode())
        if isinstance(events, list) and len(events) <= MAX_MESSAGE_COMMANDS:
            received = [_decode_event(event, fail_newer=fail_newer) for event in events]
            if not all(isinstance(each, Unreadable) for each in received):
                return received
    except (ValueError, RecursionError):
        pass
    return [Unreadable(body)]


def _parse(body: str) -> object:
    """Parse JSON; numbers that cannot be serialized again become null: no valid command has one."""
    try:
        return json.loads(body, parse_constant=_no_number, parse_float=_parse_float)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer with more digits than Python converts by default
        return json.loads(body, parse_constant=_no_number, parse_float=_parse_float, parse_int=_parse_integer)


def _parse_float(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _parse_integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _no_number(_: str) -> None:
    """Replace NaN and Infinity, which JSON lacks, with null."""


def _decode_event(event: object, *, fail_newer: bool) -> Received:
    command_id = _parse_id(event)
    if command_id is None or not isinstance(event, dict):
        return Unreadable(json.dumps(event).encode())
    known = _VERSIONS.get(str(event.get("type")))
    version = event.get("dataversion", 1)
    is_newer = known is not None and isinstance(version, int) and known < version <= known + MAX_VERSIONS_AHEAD
    if is_newer and not fail_newer:
        raise NewerVersionError(f"{event['type']} version {version}; this worker knows {known}")
    try:
        return _COMMAND.validate_python(event)
    except ValidationError:
        pass
    reason: BadCommandReason = "newer_version" if is_newer else "invalid_command" if known else "unknown_type"
    if _is_deeper(event, MAX_DEPTH):
        return Unreadable(json.dumps(event).encode())
    return BadCommand(command_id, reason, json.dumps(event), _parse_envelope(event))


def _parse_id(event: object) -> UUID | None:
    try:
        return UUID(event["id"]) if isinstance(event, dict) else None
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _is_deeper(value: object, levels: int) -> bool:
    """Whether a JSON value is nested deeper than this many levels."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in value if type(each) in _CONTAINERS)


def _parse_envelope(event: dict[str, object]) -> Envelope | None:
    try:
        return Envelope.model_validate(event)
    except ValidationError:
        return None


def encode_replies(replies: Sequence[Reply]) -> bytes:
    """Return the message with one gateway's replies."""
    return REPLIES.dump_json(list(replies), exclude_none=True)


def decode_replies(body: bytes) -> list[Reply]:
    """Return the replies of a message; raises pydantic's ValidationError if it is invalid."""
    return REPLIES.validate_json(body)
