"""What travels between the services: every message, every place where it travels, and who sends and receives it.

A new message is a line in MESSAGES; its payload is the model that encodes it. Names are the topology's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import TypeAdapter

from shared.broker import REPLY_TO
from shared.contracts import (
    COMMANDS,
    COMMANDS_CONTENT_TYPE,
    LARGEST_MESSAGE_BYTES,
    REPLIES,
    ChangeHints,
    CreateNote,
    DeleteNote,
    NoteTarget,
    NoteText,
    Outcome,
    OutcomeStatus,
    Rejection,
    Reply,
    encode_batch,
    encode_command,
    encode_hints,
    encode_replies,
)
from shared.primary import TIMELINE_HEADER, TIMELINE_PATTERN
from shared.settings import ServiceSettings
from shared.topology import UNROUTED_KEY, Topology

PARTITION, PARTITIONS = 77, 88
"""Numbers that become parameters in the addresses."""
TOPOLOGY = Topology(ServiceSettings.model_fields["queue_prefix"].default, PARTITIONS)
TRANSIENT, PERSISTENT = 1, 2

Json = dict[str, Any]
Service = Literal["gateway", "worker"]


@dataclass(frozen=True)
class Message:
    """What is sent: its payload is a model, or a schema of its own."""

    text: str
    payload: TypeAdapter[Any] | Json
    examples: Mapping[str, bytes]
    """Bodies by their summaries."""
    content_type: str = "application/json"
    headers: Json = field(default_factory=dict)
    example_headers: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Channel:
    """Where messages travel: an exchange and routing keys, or a queue, to which the default exchange leads."""

    text: str
    messages: tuple[str, ...]
    exchange: Json | None = None
    queue: Json | None = None
    address: str | None = None
    """The routing key; None if it becomes known at run time."""


@dataclass(frozen=True)
class Operation:
    """What a service does with a channel's messages."""

    service: Service
    action: Literal["send", "receive"]
    text: str
    channel: str
    messages: tuple[str, ...]
    binding: Json
    replies: bool = False


def _example(number: int) -> Json:
    return {
        "id": UUID(f"019b2c3d-4e5f-7a6b-8c7d-00000000000{number}"),
        "time": datetime(2026, 12, 1, 9, 30, tzinfo=UTC),
        "owner": 1,
        "credentials_version": 1,
        "fingerprint": f"0123456789abcdef0123456789abcde{number}",
        "attempt_id": UUID(f"5f0e1d2c-3b4a-4958-8776-00000000000{number}"),
    }


CREATE = CreateNote(**_example(1), data=NoteText(title="Ink", description="Buy a bottle"))
DELETE = DeleteNote(**_example(2), data=NoteTarget(note_id=7, if_match=(3,)))
REPLAYED_AT = datetime(2026, 12, 1, 10, 0, tzinfo=UTC)
APPLIED = Outcome(
    id=CREATE.id,
    type=CREATE.type,
    status=OutcomeStatus.APPLIED,
    http_status=201,
    note_id=7,
    note_version=1,
    body='{"id":7,"title":"Ink","description":"Buy a bottle"}',
    fingerprint=CREATE.fingerprint,
    attempt_id=CREATE.attempt_id,
)
REJECTED = Outcome(
    id=DELETE.id,
    type=DELETE.type,
    status=OutcomeStatus.REJECTED,
    http_status=412,
    reason=Rejection.PRECONDITION_FAILED,
    note_id=7,
    note_version=4,
    fingerprint=DELETE.fingerprint,
    attempt_id=DELETE.attempt_id,
)

MESSAGES = {
    "commands": Message(
        "Commands in the order in which they take effect: a JSON batch of CloudEvents. Several commands have at most "
        "500 writes together; a command with more travels alone. Unknown members are ignored. No commands are a "
        "marker: the worker replies once everything before it is committed.",
        COMMANDS,
        content_type=COMMANDS_CONTENT_TYPE,
        headers={
            "type": "object",
            "properties": {
                "replyTo": {
                    "type": "string",
                    "pattern": f"^{REPLY_TO.replace('.', '[.]')}",
                    "description": "AMQP's property `reply_to`: where the replies go. Without it there are none.",
                }
            },
        },
        examples={
            "A new note, and a deletion with a precondition": encode_batch(
                [encode_command(CREATE), encode_command(DELETE)]
            ),
            "A marker": encode_batch([]),
        },
    ),
    "replayedCommand": Message(
        "A failed command, once more, as it was received and with the time of the replay. It may be invalid: it fails "
        "again, unless a newer worker understands it.",
        {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["id", "replayedat"],
                "properties": {
                    "id": {"type": "string", "format": "uuid"},
                    "replayedat": {"type": "string", "format": "date-time"},
                    "replayforced": {"type": "boolean"},
                },
            },
        },
        content_type=COMMANDS_CONTENT_TYPE,
        examples={
            "A replayed deletion": encode_batch(
                [encode_command(DELETE.model_copy(update={"replayed_at": REPLAYED_AT}))]
            )
        },
    ),
    "replies": Message(
        "Committed outcomes, for the gateway that published their commands. A reply may be lost; a gateway that "
        "misses one, or that finds no outcome in it, looks it up in Postgres.",
        REPLIES,
        headers={
            "type": "object",
            "required": [TIMELINE_HEADER],
            "properties": {
                TIMELINE_HEADER: {
                    "type": "string",
                    "pattern": f"^({TIMELINE_PATTERN})?$",
                    "description": "The system identifier and the timeline of the Postgres server that committed; "
                    "empty if Postgres does not reveal them. A higher timeline tells gateways of a failover.",
                }
            },
        },
        examples={
            "A note was created, a deletion rejected, and an outcome is to be looked up": encode_replies(
                [
                    Reply(attempt_id=CREATE.attempt_id, outcome=APPLIED),
                    Reply(attempt_id=DELETE.attempt_id, outcome=REJECTED),
                    Reply(attempt_id=_example(3)["attempt_id"]),
                ]
            )
        },
        example_headers={TIMELINE_HEADER: "7409012345678901234/1"},
    ),
    "hints": Message(
        "Which owners are at which revision after a commit. A hint may be lost, and says nothing that Postgres does "
        "not: its receivers read what has changed.",
        TypeAdapter(ChangeHints),
        examples={"Two owners' notes may have changed": encode_hints({1: 42, 7: 3})},
    ),
    "deadLetter": Message(
        "What no command could be read from, as it was received. Nothing is known about its form.",
        {
            "type": "string",
            "format": "binary",
            "maxLength": LARGEST_MESSAGE_BYTES,
            "description": "Any bytes, each of which is a character here.",
        },
        content_type="application/octet-stream",
        examples={"Nonsense": b'"nonsense"'},
    ),
    "probe": Message(
        "An empty message, which the broker drops. Only connections that publish learn of an alarm of the broker.",
        {"type": "string", "format": "binary", "maxLength": 0},
        content_type="application/octet-stream",
        examples={"Nothing": b""},
    ),
}


def _address(name: str) -> str:
    """The name of a queue or a routing key with parameters in place of numbers."""
    return name.replace(f".{PARTITION}", ".{partition}").replace(f".{PARTITIONS}", ".{partitions}")


COMMANDS_EXCHANGE = {"name": TOPOLOGY.commands_exchange, "type": "direct", "durable": True, "autoDelete": False}
CHANNELS = {
    "commands": Channel(
        "The routes to the partitions. Each partition keeps its owners' commands in order: an owner's partition is "
        "the CRC-32 of the owner's decimal digits, modulo the number of partitions. A message without a route is "
        "returned: the number of partitions has changed.",
        ("commands", "replayedCommand"),
        exchange=COMMANDS_EXCHANGE,
        address=_address(TOPOLOGY.routing_key(PARTITION)),
    ),
    "commandQueue": Channel(
        "A partition: a quorum queue with a single active consumer, which rejects messages when it is full.",
        ("commands", "replayedCommand"),
        queue={"durable": True},
        address=_address(TOPOLOGY.command_queue(PARTITION)),
    ),
    "replies": Channel(
        "RabbitMQ's direct reply-to: the address is the `reply_to` of a message with commands. Nothing is queued.",
        ("replies",),
        queue={"name": REPLY_TO, "durable": False},
    ),
    "changes": Channel(
        "A fanout exchange in the virtual host for hints: every queue bound to it gets every hint, whatever its "
        "routing key.",
        ("hints",),
        exchange={"name": TOPOLOGY.changes_exchange, "type": "fanout", "durable": True, "autoDelete": False},
        address="",
    ),
    "hintQueue": Channel(
        "A queue of the connection's own in the virtual host for hints, bound while clients of a gateway follow "
        "changes; the oldest hints are dropped if it is not read in time.",
        ("hints",),
        queue={"durable": False, "exclusive": True, "autoDelete": True},
        address=TOPOLOGY.hints_queue("{queue}"),
    ),
    "deadLetters": Channel(
        "A quorum queue without a consumer: an operator reads it.",
        ("deadLetter",),
        queue={"durable": True},
        address=TOPOLOGY.unreadable_queue,
    ),
    "probes": Channel("A routing key without a queue.", ("probe",), exchange=COMMANDS_EXCHANGE, address=UNROUTED_KEY),
}
SEND = {"deliveryMode": PERSISTENT, "mandatory": True}
OPERATIONS = {
    "publishCommands": Operation(
        "gateway",
        "send",
        "Publish the pending commands of a partition as one message, and wait for the broker's confirm.",
        "commands",
        ("commands",),
        SEND | {"timestamp": True},
        replies=True,
    ),
    "applyCommands": Operation(
        "worker",
        "receive",
        "Apply the commands in one transaction, send the outcomes, then acknowledge the message.",
        "commandQueue",
        ("commands", "replayedCommand"),
        {"ack": True},
        replies=True,
    ),
    "replayCommand": Operation(
        "worker",
        "send",
        "Publish a failed command again, for an operator. It counts only if `user_id`, which the broker checks, is "
        "the worker's user.",
        "commands",
        ("replayedCommand",),
        SEND,
    ),
    "markEndOfQueue": Operation(
        "worker",
        "send",
        "Publish a marker, to learn that a partition is drained, while the number of partitions is changed.",
        "commandQueue",
        ("commands",),
        SEND,
        replies=True,
    ),
    "sendHints": Operation(
        "worker",
        "send",
        "Tell who follows changes that there may be some; neither confirmed nor waited for.",
        "changes",
        ("hints",),
        {"deliveryMode": TRANSIENT, "mandatory": False},
    ),
    "receiveHints": Operation(
        "gateway",
        "receive",
        "Wake the followers of the owners; received only while there are followers.",
        "hintQueue",
        ("hints",),
        {"ack": False},
    ),
    "keepUnreadable": Operation(
        "worker",
        "send",
        "Move a message without a readable command id out of the way, confirmed, before acknowledging it.",
        "deadLetters",
        ("deadLetter",),
        SEND,
    ),
    "probeFromGateway": Operation(
        "gateway", "send", "Check for an alarm (`python -m gateway doctor`).", "probes", ("probe",), {}
    ),
    "probeFromWorker": Operation(
        "worker", "send", "Check for an alarm (`python -m worker doctor`).", "probes", ("probe",), {}
    ),
}
