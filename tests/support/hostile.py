"""Messages that no gateway sends, but that an attacker with the gateway's broker password can publish."""

import json
import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aio_pika
import pamqp.frame
from aiormq.abc import ChannelFrame
from pamqp.commands import Basic

from shared.broker import BROKER_ERRORS
from shared.contracts import LARGEST_MESSAGE_BYTES, MAX_MESSAGE_COMMANDS, encode_command
from shared.tables import IMPLICIT_OWNER
from tests.support.commands import CHEAP_HASH, DIGEST, create

FRAME_BYTES = 100_000
HEADER_FRAME, BODY_FRAME = 2, 3
FAR = datetime(8999, 1, 1, tzinfo=UTC)
GIGABYTE_HASH = CHEAP_HASH.replace("m=8,t=1", "m=1048576,t=100")


@dataclass(frozen=True)
class Hostile:
    """A message, and its effect on the worker."""

    name: str
    body: bytes
    dead_letters: int = 0
    failed: int = 0
    depends: bool = False
    """Whether it may end as one dead letter, one `failed` row or nothing."""
    properties: tuple[str, bytes] | None = None
    """One AMQP property and its bytes, valid or not."""

    @property
    def expected(self) -> list[list[int]]:
        """The possible numbers of dead letters and of failed commands."""
        return [[0, 0], [0, 1], [1, 0]] if self.depends else [[self.dead_letters, self.failed]]

    def frames(self, channel: int, exchange: str, routing_key: str) -> ChannelFrame:
        """The message in the form in which it is written to the broker."""
        name, value = self.properties or ("", b"")
        flags = Basic.Properties.flags[name] if name else 0
        method = pamqp.frame.marshal(Basic.Publish(exchange=exchange, routing_key=routing_key), channel)
        header = frame(HEADER_FRAME, channel, struct.pack(">HHQH", 60, 0, len(self.body), flags) + value)
        parts = range(0, len(self.body), FRAME_BYTES)
        body = b"".join(frame(BODY_FRAME, channel, self.body[start : start + FRAME_BYTES]) for start in parts)
        return ChannelFrame(payload=method + header + body, should_close=False)


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


async def publish(url: str, message: Hostile, exchange: str, routing_key: str) -> None:
    """Publishes the message; returns once the broker has read it, even if the broker rejects it."""
    with suppress(*BROKER_ERRORS):  # it may close the channel, or the connection
        async with await aio_pika.connect(url) as connection:
            channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
            await channel.connection.write_queue.put(message.frames(channel.number, exchange, routing_key))
            await channel.exchange_declare(exchange, passive=True)  # on the same channel, so it is answered later


def event(of: int, **members: object) -> dict[str, Any]:
    """A command of the owner as JSON, with some members replaced."""
    travelling: dict[str, Any] = json.loads(encode_command(create("hostile", owner=of)))
    return travelling | {"fingerprint": uuid4().hex} | members


def typed(owner: int, type_name: str, **data: object) -> dict[str, Any]:
    without_owner = {"owner": 0, "credentialsversion": 0} if type_name == "user.register" else {}
    return event(owner, type=type_name, data=data) | without_owner


def batch(*events: object) -> bytes:
    return json.dumps(events).encode()


def filled(start: bytes, item: bytes, end: bytes, size: int = LARGEST_MESSAGE_BYTES - 100) -> bytes:
    """As many items as fit into a message."""
    return start + b",".join([item] * ((size - len(start) - len(end)) // (len(item) + 1))) + end


def shortstr(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def table(entries: bytes) -> bytes:
    return struct.pack(">I", len(entries)) + entries


def nested_table(levels: int) -> bytes:
    entries = b""
    for _ in range(levels):
        entries = shortstr(b"") + b"F" + table(entries)
    return table(entries)


def hostile_messages(owner: int) -> list[Hostile]:
    """Messages of every kind, in the name of this owner."""
    return [
        *unreadable_messages(owner),
        *breaches(owner),
        *odd_properties(owner),
        *harmless_messages(owner),
        *mutations(owner),
    ]


def unreadable_messages(owner: int) -> Iterator[Hostile]:
    """Unreadable messages: each becomes one dead letter."""
    good = event(owner)
    dense = json.dumps([event(owner, x="@")]).encode()
    bodies = {
        "100,000 numbers": batch(*[1] * 100_000),
        "100,000 objects": batch(*[{}] * 100_000),
        "500 objects without an id": batch(*[{}] * MAX_MESSAGE_COMMANDS),
        "501 commands": batch(*[event(owner) for _ in range(MAX_MESSAGE_COMMANDS + 1)]),
        "too many writes": batch(
            *[typed(owner, "notes.change", items=[{"op": "delete", "note_id": 1}] * 900) for _ in range(3)]
        ),
        "nothing": b"",
        "text": b"not JSON",
        "bytes": bytes(range(256)),
        "an object": json.dumps(good).encode(),
        "a number": b"1",
        "null": b"null",
        "cut off": batch(good)[:-1],
        "UTF-16": batch(good).decode().encode("utf-16"),
        "deep": b"[" * 1_000_000,
        "deep and closed": b"[" * 100_000 + b"]" * 100_000,
        "a deep command": dense.replace(b'"@"', b"[" * 1200 + b"]" * 1200).replace(b'"1.0"', b"1"),
        "a number with a million digits": b"[" + b"9" * 1_000_000 + b"]",
        "3 MiB of numbers": filled(b"[", b"1", b"]"),
        "3 MiB of arrays": filled(b"[", b"[]", b"]"),
        "3 MiB of objects": filled(b"[", b'{"a":1}', b"]"),
        "3 MiB of exponents": filled(b"[", b"1e9", b"]"),
        "3 MiB of strings": filled(b"[", b'"a"', b"]"),
        "an id that is none": batch(event(owner, id="1")),
        "an id twice over": batch(event(owner, id=[str(uuid4())])),
    }
    for name, body in bodies.items():
        yield Hostile(name, body, dead_letters=1)


def breaches(owner: int) -> Iterator[Hostile]:
    """Commands that violate their contract: each becomes one `failed` row."""
    token = {"name": "x", "scopes": ["notes:read"], "lifetime_days": 1, "secret_digest": DIGEST}
    text = {"title": "x", "description": ""}
    broken = {
        "a hash that takes a gigabyte": typed(owner, "user.register", name="eve", password_hash=GIGABYTE_HASH),
        "a new hash that takes a gigabyte": typed(owner, "user.change", password_hash=GIGABYTE_HASH),
        "a renewed hash that takes a gigabyte": typed(owner, "user.renew_hash", password_hash=GIGABYTE_HASH),
        "no hash": typed(owner, "user.change", password_hash="hunter2"),
        "a long name": typed(owner, "user.change", name="x" * 1_000_000),
        "combining marks as a name": typed(owner, "user.change", name="a" + "\u0301" * 100_000),
        "the scope account": typed(owner, "token.create", **token | {"scopes": ["account"]}),
        "no scope": typed(owner, "token.create", **token | {"scopes": []}),
        "ten years": typed(owner, "token.create", **token | {"lifetime_days": 3650}),
        "a lifetime beyond time": typed(owner, "token.create", **token | {"lifetime_days": 10**9}),
        "a digest that no index takes": typed(owner, "token.create", **token | {"secret_digest": "a" * 100_000}),
        "a long title": typed(owner, "note.create", **text | {"title": "x" * 10_001}),
        "a long description": typed(owner, "note.create", **text | {"description": "x" * 1_000_001}),
        "2,000 items": typed(owner, "notes.change", items=[{"op": "delete", "note_id": 1}] * 2000),
        "items of nothing": typed(owner, "notes.change", items=[{}] * 100_000),
        "no items": typed(owner, "notes.change", items=[]),
        "a million versions": typed(owner, "note.delete", note_id=1, if_match=[1] * 1_000_000),
        "an id out of range": typed(owner, "note.delete", note_id=2**64),
        "an owner out of range": event(owner, owner=2**63),
        "credentials out of range": event(owner, credentialsversion=2**31),
        "a time before this century": event(owner, time="1999-01-01T00:00:00Z"),
        "a time beyond every calendar": event(owner, time="9999-12-31T23:59:59-23:59"),
        "no time": event(owner, time=None),
        "a command long ago": event(owner, time="2000-01-01T00:00:00Z", mayexpire=True),
        "a long fingerprint": event(owner, fingerprint="x" * 1_000_000),
        "a NUL": typed(owner, "note.create", title="\0", description=""),
        "a lone surrogate": typed(owner, "note.create", title="\ud800", description=""),
        "an unknown type": event(owner, type="note.paint"),
        "a type that is none": event(owner, type={"a": 1}),
        "version 999": event(owner, dataversion=999),
        "version 0": event(owner, dataversion=0),
        "no data": event(owner, data=None),
        "data beyond floating point": event(owner, data={"title": 10**4000, "description": ""}),
    }
    for name, command in broken.items():
        yield Hostile(name, batch(command), failed=1)
    yield Hostile("a bad command among rubbish", batch(event(owner, data=None), *[1] * 400), dead_letters=1, failed=1)
    same = event(owner, data=None)
    yield Hostile("the same bad command 500 times", batch(*[same] * MAX_MESSAGE_COMMANDS), failed=1)
    for name, item in {"numbers": b"1", "objects": b"{}", "NaN": b"NaN"}.items():
        start, _, end = json.dumps(event(owner, data="@")).encode().partition(b'"@"')
        yield Hostile(f"3 MiB of {name} in a command", filled(b"[" + start + b"[", item, b"]" + end + b"]"), failed=1)


def odd_properties(owner: int) -> Iterator[Hostile]:
    """Properties that no gateway sets; most cannot be decoded, so the message becomes a dead letter."""
    entries = {
        "a timestamp in the year 292278994": ("timestamp", struct.pack(">Q", 2**63 - 1)),
        "the last timestamp": ("timestamp", struct.pack(">Q", 2**64 - 1)),
        "an address that is no text": ("reply_to", shortstr(b"\xff\xfe")),
        "a content type that is no text": ("content_type", shortstr(b"\xff\xfe")),
        "a message id that is no text": ("message_id", shortstr(b"\xff" * 255)),
        "a header whose name is no text": ("headers", table(shortstr(b"\xff") + b"t\x01")),
        "a header with a timestamp": ("headers", table(shortstr(b"a") + b"T" + struct.pack(">Q", 2**63 - 1))),
        "nested headers": ("headers", nested_table(10_000)),
        "many headers": ("headers", table(b"".join(shortstr(b"%d" % key) + b"t\x01" for key in range(10_000)))),
        "a long header": ("headers", table(shortstr(b"a") + b"A" + table(b"V" * 100_000))),
        "delivery mode 77": ("delivery_mode", b"\x4d"),
        "delivery mode 0": ("delivery_mode", b"\x00"),
    }
    for name, properties in entries.items():
        yield Hostile(name, batch(event(owner)), dead_letters=1, properties=properties)
    # values that RabbitMQ rejects, for a message that is routed nowhere
    for name, properties in {
        "an expiration that is none": ("expiration", shortstr(b"abc")),
        "the name of another user": ("user_id", shortstr(b"inkwell_worker")),
        "a table that is cut off": ("headers", struct.pack(">I", 50) + b"\x01"),
    }.items():
        yield Hostile(name, batch(event(owner)), properties=properties)


def harmless_messages(owner: int) -> Iterator[Hostile]:
    """Unusual but readable messages, which do what their owner may do."""
    yield Hostile("no commands", b"[]")
    yield Hostile("white space", b"[" + b" " * 1_000_000 + b"]")
    for name, reply_to in {
        "a reply into a command queue": b"inkwell.commands.v1.0",
        "a reply address without a consumer": b"amq.rabbitmq.reply-to.g1h2AA5yZXBseUAxMTI0MTg1NA==.AAAA",
        "a reply to nonsense": b"amq.rabbitmq.reply-to.\xc3\xa4",
    }.items():
        yield Hostile(name, batch(event(owner)), properties=("reply_to", shortstr(reply_to)))
    count = table(shortstr(b"x-delivery-count") + b"I" + struct.pack(">i", 1_000_000))
    commands = [event(owner) for _ in range(100)]
    yield Hostile("a forged delivery count", batch(*commands), properties=("headers", count))
    yield Hostile("a command in the far future", batch(event(owner, time=FAR.isoformat())))
    replay = {"replayedat": datetime.now(UTC).isoformat(), "replayforced": True}
    yield Hostile("a forged replay", batch(event(owner, **replay)))
    yield Hostile("a command of an unknown owner", batch(event(99_999_999)))
    yield Hostile("a command without its credentials", batch(event(owner, credentialsversion=7)))
    implicit = typed(IMPLICIT_OWNER, "user.change", password_hash=CHEAP_HASH)
    yield Hostile("a password for the owner without a name", batch(implicit))
    longest = typed(owner, "note.create", title="🖋" * 10_000, description="x" * 1_000_000)
    yield Hostile("the longest note", json.dumps([longest], ensure_ascii=False).encode())
    yield Hostile("a trace that is none", batch(event(owner, traceparent="-" * 128)))


def mutations(owner: int, number: int = 100) -> Iterator[Hostile]:
    """Commands with one or two members replaced, the same in each run."""
    draw = random.Random(42)  # noqa: S311 - keeps no secret
    nasty: list[Any] = [
        *(None, True, False, 0, -1, 2**31, 2**63, 2**200, 1e308, -0.0, "", "x", "\0", "\ud800", "0" * 5000),
        *([], {}, [[]], {"": ""}, [None] * 1000, {"a": {"a": {"a": 1}}}, (FAR + timedelta(days=400)).isoformat()),
    ]
    texts = {"title": "x", "description": "x"}
    commands: list[tuple[str, dict[str, Any]]] = [
        ("note.create", texts),
        ("note.replace", texts | {"note_id": 1, "if_match": [1]}),
        ("note.patch", {"note_id": 1, "title": "x"}),
        ("note.delete", {"note_id": 1, "if_none_match": "*"}),
        ("notes.change", {"items": [texts | {"op": "create"}, {"op": "delete", "note_id": 1}]}),
        ("user.register", {"name": "eve", "password_hash": CHEAP_HASH}),
        ("token.create", {"name": "x", "scopes": ["notes:read"], "lifetime_days": 1, "secret_digest": DIGEST}),
        ("token.revoke", {"token_id": str(uuid4())}),
    ]
    for index in range(number):
        type_name, data = draw.choice(commands)
        command = typed(owner, type_name, **data)
        for part in draw.choice([[command], [command["data"]], [command, command["data"]]]):
            part[draw.choice(sorted(set(part) - {"type", "dataversion", "owner"} or {"x"}))] = draw.choice(nasty)
        yield Hostile(f"mutation {index} of {type_name}", batch(command), depends=True)
