"""Whatever arrives, a decoder returns one of the results that it documents, soon; nothing else is raised."""

import gc
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.common import FieldTable
from pamqp.header import ContentHeader
from pydantic import ValidationError

from gateway.api.note_bodies import NoteBodies
from gateway.api.pages import Cursor, EncodedCursor
from gateway.api.transfer import is_frame
from gateway.api.trash import TrashCursor
from gateway.api.versions import VersionsCursor
from gateway.http.conditional import PreconditionHeaders
from gateway.problems import ProblemError
from gateway.reads.changes import ChangesCursor
from gateway.writes.command_urls import CommandUrls
from shared.contracts import (
    BadCommand,
    ChangeNotes,
    CreateNote,
    NewerVersionError,
    NoteItems,
    NotePatch,
    NoteText,
    PatchNote,
    Received,
    Unreadable,
    decode_batch,
    decode_hints,
    decode_replies,
    encode_batch,
    encode_command,
    encode_hints,
)
from shared.frames import UNREADABLE_PROPERTIES, decode_leniently
from shared.primary import Timeline
from tests.fuzz.messages import EVENTS, INPUTS, IS_LONG, REPLIES, SEED, change, changes_of, dump, fuzz, messages_of
from tests.support.commands import attributes, create
from tests.support.harness import settings_without_servers
from tests.support.hostile import hostile_messages
from worker.reply_addresses import is_reply_address

OTHERS = INPUTS // 20 if IS_LONG else 400
"""The inputs of each of the other decoders."""
SECONDS, SECONDS_PER_BYTE = 0.02, 2e-6
"""The processor time that an input may take, several times what it takes on an idle machine."""
TRIES = 5
"""On a busy machine a measurement is repeated."""
BYTES, BYTES_PER_BYTE = 64 * 1024, 100
"""The memory that an input may take while it is decoded."""
TRACED = 100
"""The memory of one input in this many is traced."""
TRACED_BYTES = 200_000
"""Tracing takes too long for larger ones, whose memory the worker's own tests measure."""
GOLDEN = [(dump(event).encode(), event, decode_batch(json.dumps([event]).encode())[0]) for event in EVENTS]
SETTINGS = settings_without_servers()
T = TypeVar("T")

pytestmark = pytest.mark.timeout(7200)


def measure(call: Callable[[], T]) -> tuple[float, T]:
    """The processor time of a call, without collections of garbage, and its result."""
    gc.disable()
    started = time.thread_time()
    result = call()
    seconds = time.thread_time() - started
    gc.enable()
    return seconds, result


def trace(call: Callable[[], object]) -> int:
    """The most memory that Python's objects take during a call."""
    tracemalloc.start()
    call()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def decode(body: bytes) -> Sequence[Received]:
    """The commands; those of a newer version as bad ones."""
    try:
        return decode_batch(body)
    except NewerVersionError:
        received = decode_batch(body, fail_newer=True)
        assert any(isinstance(each, BadCommand) and each.reason == "newer_version" for each in received)
        return received


def check_cost(body: bytes) -> Sequence[Received]:
    """A message is decoded in bounded time; returns the result."""
    limit = SECONDS + len(body) * SECONDS_PER_BYTE
    seconds, received = measure(lambda: decode(body))
    for _ in range(TRIES):
        seconds = seconds if seconds < limit else measure(lambda: decode(body))[0]
    assert seconds < limit, f"{len(body)} bytes take {seconds * 1000:.1f} ms"
    return received


def check_memory(body: bytes) -> None:
    """A message is decoded in bounded memory."""
    peak = trace(lambda: decode(body))
    assert peak < BYTES + len(body) * BYTES_PER_BYTE, f"{len(body)} bytes take {peak} bytes"


def check_received(received: Received) -> None:
    """What was decoded can be stored and written again."""
    match received:
        case Unreadable(content=content):
            assert isinstance(content, bytes)
        case BadCommand():
            event = json.loads(received.content, parse_constant=reject_constant)
            assert UUID(event["id"]) == received.id
            assert received.content.isascii()
            assert received.envelope is None or received.envelope.model_dump_json()
        case _:
            assert decode_batch(encode_batch([encode_command(received)])) == [received]


def reject_constant(name: str) -> None:
    """Postgres has no such number."""
    raise AssertionError(name)


def check_neighbors(body: bytes, received: Sequence[Received]) -> None:
    """A good command is not lost beside bad ones."""
    for text, event, command in GOLDEN:
        if text in body:
            try:
                events = json.loads(body.decode())
            except (ValueError, RecursionError):
                return
            if isinstance(events, list) and event in events and len(events) <= 100:
                assert command in received


def test_message_becomes_commands_bad_commands_or_unreadable_content(capsys: pytest.CaptureFixture[str]) -> None:
    if IS_LONG:
        with capsys.disabled():
            sys.stdout.write(f"{INPUTS} messages with seed {SEED}\n")
    number = count(1)

    def check(body: bytes) -> None:
        received = check_cost(body)
        for each in received:
            check_received(each)
        check_neighbors(body, received)
        if next(number) % TRACED == 0:
            check_memory(body)

    fuzz(check, messages_of(EVENTS), INPUTS)

    assert next(number) > INPUTS


@pytest.mark.parametrize("message", hostile_messages(1), ids=lambda message: message.name)
def test_message_of_an_attacker_costs_no_more(message: Any) -> None:
    check_cost(message.body)
    if len(message.body) < TRACED_BYTES:
        check_memory(message.body)


def test_replies_are_read_or_refused() -> None:
    def check(body: bytes) -> None:
        try:
            replies = decode_replies(body)
        except ValidationError:
            return
        assert all(each.attempt_id for each in replies)

    fuzz(check, messages_of(REPLIES), OTHERS)


def test_hints_are_read_or_there_are_none() -> None:
    hints = [{"owners": [{"owner": 1, "revision": 7}, {"owner": 2**63 - 1, "revision": 1}]}]

    def check(body: bytes) -> None:
        for owner, revision in decode_hints(body).items():
            assert -(2**63) <= min(owner, revision) <= max(owner, revision) < 2**63

    fuzz(check, messages_of(hints) | st.just(encode_hints({1: 7})), OTHERS)


def test_command_url_is_ours_or_none() -> None:
    urls = CommandUrls(SETTINGS)
    tokens = {urls.url(create(), confirmed=confirmed).rpartition("/")[2] for confirmed in (True, False)}

    def check(body: bytes) -> None:
        token = body.decode(errors="replace")  # as the gateway decodes a path
        assert (urls.read(token) is not None) == (token in tokens)

    fuzz(check, st.sampled_from(sorted(tokens)).map(str.encode) | st.binary(max_size=100), OTHERS)


CURSORS: list[tuple[type[EncodedCursor] | type[ChangesCursor], list[Any]]] = [
    (ChangesCursor, [ChangesCursor(3, 8, timeline="9f86d081884c"), ChangesCursor(1, 2**63 - 1, 5, 7)]),
    (TrashCursor, [TrashCursor(revision=8, id=1)]),
    (VersionsCursor, [VersionsCursor(before=3)]),
    (
        Cursor,
        [
            Cursor(order="-id", id=3),
            Cursor(order="title", id=3, key="ink \ufb01", backwards=True),
            Cursor(order="created", id=3, key="2026-11-30T09:25:30.649922+00:00"),
        ],
    ),
]


@pytest.mark.parametrize(("kind", "cursors"), CURSORS, ids=lambda each: getattr(each, "__name__", ""))
def test_cursor_is_encoded_exactly_as_ours_or_refused(kind: Any, cursors: list[Any]) -> None:
    def check(body: bytes) -> None:
        text = body.decode(errors="surrogateescape")
        try:
            cursor = kind.parse(text)
        except ValueError:
            return
        assert cursor.encoded == text

    encoded = st.sampled_from([cursor.encoded for cursor in cursors]).map(str.encode)
    fuzz(check, encoded | st.binary(max_size=100), OTHERS)


NOTE = {
    "title": "Ink",
    "description": "Blue",
    "created_date": "2026-11-30T09:25:30.649922+00:00",
    "id": 1,
    "version": 2,
}
PATCHES: list[dict[str, Any]] = [{"title": "Ink"}, {"description": "Blue"}, {}]
BATCH: dict[str, Any] = {
    "items": [{"op": "create", "title": "a", "description": ""}, {"op": "patch", "id": 1, "if_match": [1]}]
}


@pytest.mark.parametrize("kind", ["note", "patch", "line", "batch"])
def test_body_that_a_gateway_takes_is_a_command_that_a_worker_reads(kind: str) -> None:
    bodies, headers = NoteBodies(SETTINGS), PreconditionHeaders(required=False)
    envelope = attributes()

    def parse(body: bytes) -> Any:
        match kind:
            case "note":
                text = bodies.note.parse(body)
                return CreateNote(**envelope, data=NoteText(title=text.title, description=text.description))
            case "patch":
                patch = bodies.patch.parse(body).model_dump(exclude_unset=True)
                return PatchNote(**envelope, data=NotePatch(note_id=1, **patch))
            case "line":
                item = bodies.imported_note.parse(body).to_item()
                return ChangeNotes(**envelope, dataversion=2, data=NoteItems(items=(item,)))
            case _:
                items = bodies.items.parse(body).to_note_items(headers)
                return ChangeNotes(**envelope, data=items)

    def check(body: bytes) -> None:
        try:
            command = parse(body)
        except ProblemError:
            is_frame(body)
            return
        assert decode_batch(encode_batch([encode_command(command)])) == [command]

    golden = {"patch": PATCHES, "batch": [BATCH]}.get(kind, [NOTE])
    changes = changes_of("title description created_date id items items.0 items.0.title items.1.id items.1.if_match")
    changed = st.builds(change, st.sampled_from(golden), changes)
    fuzz(check, changed.map(dump).map(lambda text: text.encode(errors="surrogatepass")), OTHERS)


def test_properties_of_a_message_are_decoded_or_marked_as_unreadable() -> None:
    """Headers, timestamps and addresses that no client library writes do not cost the connection."""
    headers: FieldTable = {"x-delivery-count": 3, "inkwell-timeline": "7/1", "a": [1, {"b": None}]}
    address = "amq.rabbitmq.reply-to.g1h2"
    full = Basic.Properties("application/json", headers=headers, delivery_mode=2, reply_to=address, user_id="x")
    bodies = [ContentHeader(0, 10, properties).marshal() for properties in (full, Basic.Properties())]

    def check(body: bytes) -> None:
        if len(body) < 12:
            return  # the broker's frames have at least these
        header = ContentHeader()
        decode_leniently(header, body)
        properties = header.properties
        assert properties.message_type == UNREADABLE_PROPERTIES or properties.delivery_mode in (None, 1, 2)
        Timeline.parse(str((properties.headers or {}).get("inkwell-timeline", "")))
        for version in ("3.13.7", "4.3.6"):
            is_reply_address(properties.reply_to or "", version)

    fuzz(check, st.sampled_from(bodies), OTHERS)
