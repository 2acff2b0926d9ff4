"""The wire format: old messages stay readable, and an invalid command does not affect its neighbors."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from gateway.settings import TEXT_MAX_LENGTH, GatewaySettings
from shared.contracts import (
    DESCRIPTION_HARD_LIMIT,
    LARGEST_MESSAGE_BYTES,
    MAX_MESSAGE_COMMANDS,
    MAX_VERSIONS_AHEAD,
    TITLE_HARD_LIMIT,
    BadCommand,
    ChangeHints,
    ChangeNotes,
    ChangeUser,
    Command,
    CreateItem,
    CreateNote,
    CreateToken,
    DeleteItem,
    DeleteNote,
    DeleteUser,
    NewerVersionError,
    NoData,
    NoteItems,
    NotePatch,
    NoteReplacement,
    NoteTarget,
    NoteText,
    Outcome,
    OutcomeStatus,
    PatchItem,
    PatchNote,
    PurgeNote,
    Received,
    RegisterUser,
    Registration,
    Rejection,
    RenewedHash,
    RenewHash,
    ReplaceItem,
    ReplaceNote,
    Reply,
    RestoreNote,
    RevokeToken,
    Scope,
    TokenRequest,
    TokenTarget,
    Unreadable,
    UserChange,
    decode_batch,
    decode_replies,
    encode_batch,
    encode_command,
    encode_replies,
)

GOLDEN = Path(__file__).parent.parent / "contracts"


def command_id(number: int) -> UUID:
    return UUID(f"019b2c3d-4e5f-7a6b-8c7d-00000000000{number}")


def attempt_id(number: int) -> UUID:
    return UUID(f"5f0e1d2c-3b4a-4958-8776-00000000000{number}")


def fingerprint(number: int) -> str:
    return f"0123456789abcdef0123456789abcde{number}"


def envelope(number: int) -> dict[str, Any]:
    return {
        "id": command_id(number),
        "time": datetime(2026, 7, 1, 12, 30, 45, 123456, tzinfo=UTC),
        "owner": 1,
        "credentials_version": 1,
        "fingerprint": fingerprint(number - 1),
        "attempt_id": attempt_id(number),
    }


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CREATE = CreateNote(**envelope(1), data=NoteText(title="Ink", description="Buy a bottle — blue 🖋"))
REPLACE = ReplaceNote(**envelope(2), data=NoteReplacement(note_id=7, title="Pen", description=""))
REPLACE_IF_MATCH = ReplaceNote(
    **envelope(3), traceparent=TRACE, data=NoteReplacement(note_id=7, title="Pen", description="", if_match=(2, 3))
)
DELETE = DeleteNote(**envelope(4), data=NoteTarget(note_id=7))
REPLACE_IF_NONE_MATCH = ReplaceNote(
    **envelope(5), data=NoteReplacement(note_id=7, title="Pen", description="", if_none_match=(4,))
)
PATCH = PatchNote(**envelope(6), data=NotePatch(note_id=7, description="Two bottles", if_match=(3,)))
REPLAY = DeleteNote(
    **envelope(7),
    replayed_at=datetime(2026, 7, 2, 8, 0, tzinfo=UTC),
    replay_forced=True,
    data=NoteTarget(note_id=7, if_none_match="*"),
)
TOKEN_ID = UUID("019b2c3d-4e5f-7a6b-8c7d-0000000000ff")
ACCOUNT_COMMANDS: list[Command] = [
    RegisterUser(
        **envelope(1) | {"owner": 0, "credentials_version": 0},
        data=Registration(name="Ada", password_hash="$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"),
    ),
    ChangeUser(**envelope(2), data=UserChange(name="Lovelace")),
    ChangeUser(**envelope(3), data=UserChange(password_hash="$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA")),
    CreateToken(
        **envelope(4),
        data=TokenRequest(name="backup", scopes=(Scope.READ, Scope.WRITE), lifetime_days=90, secret_digest="c0ffee"),
    ),
    RevokeToken(**envelope(5), data=TokenTarget(token_id=TOKEN_ID)),
    DeleteUser(**envelope(6), data=NoData()),
]
RENEWAL: list[Command] = [
    RenewHash(**envelope(1), data=RenewedHash(password_hash="$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"))
]
SEVERAL: list[Command] = [
    ChangeNotes(
        **envelope(1),
        data=NoteItems(
            items=(
                CreateItem(title="Ink", description="Buy a bottle — blue 🖋"),
                ReplaceItem(note_id=7, title="Pen", description="", if_match=(2, 3)),
                PatchItem(note_id=8, description="Two bottles", if_none_match=(4,)),
                DeleteItem(note_id=9),
            )
        ),
    )
]
TRASH: list[Command] = [
    RestoreNote(**envelope(1), data=NoteTarget(note_id=7, if_match=(2, 3))),
    PurgeNote(**envelope(2), data=NoteTarget(note_id=8, if_none_match=(4,))),
]
IMPORTED: list[Command] = [
    ChangeNotes(
        **envelope(1),
        dataversion=2,
        data=NoteItems(
            items=(
                CreateItem(
                    title="Ink",
                    description="Buy a bottle — blue 🖋",
                    created_date=datetime(1969, 7, 20, 20, 17, 40, 1, tzinfo=UTC),
                ),
                CreateItem(title="Pen", description=""),
            )
        ),
    )
]
FIRST_COMMANDS: list[Command] = [
    command.model_copy(update={"dataversion": 1}) for command in (CREATE, REPLACE, REPLACE_IF_MATCH, DELETE)
]
COMMANDS: list[Command] = [CREATE, REPLACE, REPLACE_IF_MATCH, DELETE, REPLACE_IF_NONE_MATCH, PATCH, REPLAY]

REPLIES = [
    Reply(
        attempt_id=attempt_id(1),
        outcome=Outcome(
            id=command_id(1),
            status=OutcomeStatus.APPLIED,
            http_status=201,
            note_id=7,
            note_version=1,
            body='{"id":7,"title":"Ink"}',
            fingerprint=fingerprint(0),
            attempt_id=attempt_id(1),
        ),
    ),
    Reply(
        attempt_id=attempt_id(2),
        outcome=Outcome(
            id=command_id(2),
            status=OutcomeStatus.REJECTED,
            http_status=404,
            reason=Rejection.NOTE_NOT_FOUND,
            note_id=7,
            fingerprint=fingerprint(1),
            attempt_id=attempt_id(2),
        ),
    ),
    Reply(attempt_id=attempt_id(3), outcome=None),
]


def event(command: Command = CREATE, **members: object) -> dict[str, Any]:
    """A command as JSON with some members replaced."""
    travelling: dict[str, Any] = json.loads(encode_command(command))
    return travelling | members


def batch(*events: object) -> bytes:
    return json.dumps(events).encode()


def batch_with_raw_title(raw_title: bytes) -> bytes:
    """An invalid command between two valid ones; its title is not formatted as `json.dumps` would."""
    bad = json.dumps(event(REPLACE, data={"note_id": 7, "title": "@", "description": ""})).encode()
    return encode_batch([encode_command(CREATE), bad.replace(b'"@"', raw_title), encode_command(DELETE)])


@pytest.mark.parametrize(
    ("file", "commands"),
    [
        ("commands.v1", FIRST_COMMANDS),
        ("commands.v2", COMMANDS),
        ("account-commands.v1", ACCOUNT_COMMANDS),
        ("several-at-once.v1", SEVERAL),
        ("several-at-once.v2", IMPORTED),
        ("renewed-hash.v1", RENEWAL),
        ("trash.v1", TRASH),
    ],
)
def test_golden_commands_are_read(file: str, commands: list[Command]) -> None:
    assert decode_batch((GOLDEN / f"{file}.json").read_bytes()) == commands


def test_golden_replies_are_read() -> None:
    assert decode_replies((GOLDEN / "replies.v1.json").read_bytes()) == REPLIES


@pytest.mark.parametrize(
    "command",
    COMMANDS + FIRST_COMMANDS + ACCOUNT_COMMANDS + SEVERAL + IMPORTED + RENEWAL + TRASH,
    ids=lambda command: command.type,
)
def test_command_is_read_as_it_was_written(command: Command) -> None:
    assert decode_batch(encode_batch([encode_command(command)])) == [command]


@pytest.mark.parametrize("reply", REPLIES, ids=["applied", "rejected", "look it up"])
def test_reply_is_read_as_it_was_written(reply: Reply) -> None:
    assert decode_replies(encode_replies([reply])) == [reply]


def test_reply_of_another_shape_is_refused() -> None:
    with pytest.raises(ValidationError):
        decode_replies(b'{"outcome": null}')


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (decode_replies, b"[" + b"1," * 1000 + b"1]"),
        (decode_replies, b"[" + b"{}," * 1000 + b"{}]"),
        (ChangeHints.model_validate_json, b'{"owners":[' + b"1," * 1000 + b"1]}"),
    ],
)
def test_bad_message_is_refused_at_its_first_error(decode: Callable[[bytes], object], body: bytes) -> None:
    """The list of all errors would take a hundred times the memory of the message."""
    with pytest.raises(ValidationError) as refused:
        decode(body)

    assert len({error["loc"][:2] for error in refused.value.errors()}) == 1


def test_empty_batch_has_no_commands() -> None:
    assert decode_batch(b"[]") == []


def test_unknown_members_are_ignored() -> None:
    newer = event(REPLACE, priority=3, extension={"a": [1]})
    newer["data"]["colour"] = "blue"

    assert decode_batch(batch(newer)) == [REPLACE]


def test_unknown_members_are_ignored_beside_a_bad_command() -> None:
    newer = event(REPLACE, priority=3, extension={"a": [1]})
    newer["data"]["colour"] = "blue"

    assert decode_batch(batch(newer, event(type="note.paint")))[0] == REPLACE


@pytest.mark.parametrize("command", [CREATE, REPLACE, PATCH, DELETE, *TRASH], ids=lambda command: command.type)
def test_newer_version_of_a_known_type_is_not_decided(command: Command) -> None:
    with pytest.raises(NewerVersionError, match=command.type):
        decode_batch(batch(event(CREATE), event(command, dataversion=command.dataversion + 1)))


def test_newer_version_is_not_decided_whatever_its_data_look_like() -> None:
    with pytest.raises(NewerVersionError):
        decode_batch(batch(event(dataversion=2, data={"headline": "Ink"})))


@pytest.mark.parametrize("unknown", ["note.paint", "", None, 1, ["note.create"], "\ud800"])
def test_unknown_type_is_a_bad_command(unknown: object) -> None:
    [received] = decode_batch(batch(event(type=unknown)))

    assert_bad(received, "unknown_type", event(type=unknown))


def test_missing_type_is_a_bad_command() -> None:
    untyped = event()
    del untyped["type"]

    [received] = decode_batch(batch(untyped))

    assert_bad(received, "unknown_type", untyped)


@pytest.mark.parametrize(
    "members",
    [
        {"data": None},
        {"data": []},
        {"data": {"title": "Ink"}},
        {"data": {"title": 1, "description": ""}},
        {"data": {"title": "\0", "description": ""}},
        {"owner": "somebody"},
        {"owner": None},
        {"owner": 2**63},
        {"credentialsversion": "first"},
        {"time": "yesterday"},
        {"time": "2026-07-01T12:30:45"},
        {"time": "1999-12-31T23:59:59Z"},
        {"time": "9999-12-31T23:59:59-23:59"},
        {"attemptid": "x"},
        {"fingerprint": None},
        {"fingerprint": "\0"},
        {"specversion": "2.0"},
        {"dataversion": 0},
        {"dataversion": "1"},
        {"dataversion": None},
    ],
    ids=json.dumps,
)
def test_bad_data_is_a_bad_command_that_keeps_its_id_and_content(members: dict[str, object]) -> None:
    bad = event() | members

    before, received, after = decode_batch(batch(event(REPLACE), bad, event(DELETE)))

    assert (before, after) == (REPLACE, DELETE)
    assert_bad(received, "invalid_command", bad)


def assert_bad(received: Received, reason: str, sent: dict[str, Any]) -> None:
    assert isinstance(received, BadCommand)
    assert (received.id, received.reason, json.loads(received.content)) == (CREATE.id, reason, sent)


@pytest.mark.parametrize("bad_id", [None, 1, "", "x", [], {}, "\ud800", str(CREATE.id)[:-1]])
def test_event_without_a_command_id_is_unreadable(bad_id: object) -> None:
    received = decode_batch(batch(event(REPLACE), event(id=bad_id), event(DELETE)))

    assert received == [REPLACE, Unreadable(json.dumps(event(id=bad_id)).encode()), DELETE]


@pytest.mark.parametrize("something", [None, 1, "x", [], {}])
def test_what_is_no_event_is_unreadable(something: object) -> None:
    assert decode_batch(batch(event(REPLACE), something)) == [REPLACE, Unreadable(json.dumps(something).encode())]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON",
        b"[",
        b"{}",
        b"null",
        b'"x"',
        b"NaN",
        b"\xff\xfe",
        b"[" * 100_000,
        encode_command(CREATE),
        encode_batch([encode_command(CREATE)])[:-1],
    ],
    ids=["empty", "text", "broken", "object", "null", "string", "NaN", "bytes", "deep", "no batch", "cut off"],
)
def test_what_is_no_batch_is_unreadable_as_a_whole(body: bytes) -> None:
    assert decode_batch(body) == [Unreadable(body)]


@pytest.mark.parametrize(
    "raw_title",
    [b'"\\ud800"', b'"\\udc00\\ud800"', b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000],
    ids=[
        "surrogate",
        "swapped surrogates",
        "NaN",
        "Infinity",
        "-Infinity",
        "huge float",
        "big integer",
        "huge integer",
    ],
)
def test_text_that_cannot_be_stored_is_a_bad_command_among_good_ones(raw_title: bytes) -> None:
    before, bad, after = decode_batch(batch_with_raw_title(raw_title))

    assert (before, after) == (CREATE, DELETE)
    assert isinstance(bad, BadCommand)
    assert (bad.id, bad.reason) == (REPLACE.id, "invalid_command")
    assert is_storable_json(bad.content)


@pytest.mark.parametrize("raw", [b'"\\ud800"', b"NaN", b"1e999"])
def test_command_beside_a_strange_event_is_read(raw: bytes) -> None:
    first, strange = decode_batch(encode_batch([encode_command(CREATE), b'{"id": %b}' % raw]))

    assert first == CREATE
    assert isinstance(strange, Unreadable)


@pytest.mark.parametrize("member", ["fingerprint", "source", "traceparent"])
def test_command_that_was_read_can_be_written_again(member: str) -> None:
    [received] = decode_batch(batch(event() | {member: "\ud800"}))

    assert not isinstance(received, Unreadable)
    assert isinstance(received, BadCommand) or encode_command(received)


@pytest.mark.parametrize("member", ["fingerprint", "source", "traceparent"])
def test_envelope_of_a_bad_command_can_be_written_again(member: str) -> None:
    [received] = decode_batch(batch(event(data=None) | {member: "\ud800"}))

    assert isinstance(received, BadCommand)
    assert received.envelope is None or received.envelope.model_dump_json()


def test_nesting_of_any_depth_is_survived() -> None:
    for depth in range(1, 1200):
        nested = encode_command(CREATE).replace(b'"owner":1', b'"owner":' + b"[" * depth + b"]" * depth)

        [received] = decode_batch(encode_batch([nested]))

        assert isinstance(received, BadCommand | Unreadable)


HASH = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2g"
GOOD_HASHES = [
    HASH,
    HASH.replace("m=65536,t=3", "m=8,t=1"),
    HASH.replace("m=65536,t=3,p=4", "m=7168,t=5,p=1"),
]
BAD_HASHES = [
    "",
    "secret",
    HASH.replace("m=65536", "m=1048576"),
    HASH.replace("m=65536", "m=65537"),
    HASH.replace("t=3", "t=4"),
    HASH.replace("m=65536,t=3", "m=8,t=1000000000"),
    HASH.replace("p=4", "p=5"),
    HASH.replace("argon2id", "argon2d"),
    HASH.replace("v=19", "v=16"),
    HASH.replace("t=3", "t=-3"),
    HASH.replace("t=3", "t=٣"),
    HASH.replace("t=3", "t=" + "3" * 5000),
    HASH + "\n",
    HASH + "A" * 200,
    HASH.replace("c2FsdHNhbHQ", "A" * 65),
]
TOKEN = {
    "name": "backup",
    "scopes": ["notes:read"],
    "lifetime_days": 90,
    "secret_digest": "c0ffee",
}
NEW_TEXT = {"title": "Ink", "description": ""}
ITEM = {"op": "delete", "note_id": 1}


def typed(type_name: str, data: object) -> dict[str, Any]:
    """A command of this type with this data."""
    owner = 0 if type_name == "user.register" else 1
    return event(type=type_name, owner=owner, dataversion=1, data=data)


@pytest.mark.parametrize("password_hash", GOOD_HASHES)
def test_hash_that_costs_no_more_than_a_gateways_own_is_taken(password_hash: str) -> None:
    registration = typed("user.register", {"name": "Ada", "password_hash": password_hash})
    change = typed("user.change", {"password_hash": password_hash})
    renewal = typed("user.renew_hash", {"password_hash": password_hash})

    assert not [each for each in decode_batch(batch(registration, change, renewal)) if isinstance(each, BadCommand)]


BREACHES: dict[str, dict[str, Any]] = {
    **{
        f"hash {number} in {type_name}": typed(type_name, {"name": "Ada", "password_hash": bad})
        for number, bad in enumerate(BAD_HASHES)
        for type_name in ("user.register", "user.change", "user.renew_hash")
    },
    "name over 64 characters": typed("user.change", {"name": "a" * 65}),
    "token with the scope account": typed("token.create", TOKEN | {"scopes": ["account"]}),
    "token with an unknown scope": typed("token.create", TOKEN | {"scopes": ["everything"]}),
    "token without a scope": typed("token.create", TOKEN | {"scopes": []}),
    "token with a scope twice and once": typed("token.create", TOKEN | {"scopes": ["notes:read"] * 3}),
    "token for more than a year": typed("token.create", TOKEN | {"lifetime_days": 367}),
    "token for no day": typed("token.create", TOKEN | {"lifetime_days": 0}),
    "token without a name": typed("token.create", TOKEN | {"name": ""}),
    "token with a long name": typed("token.create", TOKEN | {"name": "x" * 65}),
    "digest that is none": typed("token.create", TOKEN | {"secret_digest": "secret"}),
    "digest that is too long for an index": typed("token.create", TOKEN | {"secret_digest": "a" * 10_000}),
    "title over the hard limit": typed("note.create", NEW_TEXT | {"title": "x" * 10_001}),
    "description over the hard limit": typed("note.create", NEW_TEXT | {"description": "x" * 1_000_001}),
    "replaced title over the hard limit": typed("note.replace", NEW_TEXT | {"title": "x" * 10_001, "note_id": 1}),
    "patched title over the hard limit": typed("note.patch", {"title": "x" * 10_001, "note_id": 1}),
    "no items": typed("notes.change", {"items": []}),
    "more items than the API takes": typed("notes.change", {"items": [ITEM] * 1001}),
    "item over the hard limit": typed("notes.change", {"items": [NEW_TEXT | {"op": "create", "title": "x" * 10_001}]}),
    "version 0": typed("note.delete", {"note_id": 1, "if_match": [0]}),
    "more versions than headers hold": typed("note.delete", {"note_id": 1, "if_match": [1] * 20_000}),
    "id of no note": typed("note.delete", {"note_id": 2**63}),
    "credentials of no version": event(credentialsversion=-1),
    "credentials of a version that no row holds": event(credentialsversion=2**31),
    "long fingerprint": event(fingerprint="x" * 129),
    "long source": event(source="x" * 129),
    "long traceparent": event(traceparent="x" * 129),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_command_that_breaks_its_contract_is_a_bad_command_among_good_ones(breach: str) -> None:
    before, received, after = decode_batch(batch(event(REPLACE), BREACHES[breach], event(DELETE)))

    assert (before, after) == (REPLACE, DELETE)
    assert_bad(received, "invalid_command", BREACHES[breach])


def test_hard_limits_are_those_of_the_settings() -> None:
    titles = GatewaySettings.model_fields["title_max_length"].metadata

    assert [each.le for each in titles if hasattr(each, "le")] == [TITLE_HARD_LIMIT]
    assert TEXT_MAX_LENGTH <= DESCRIPTION_HARD_LIMIT


def test_message_with_as_many_commands_as_a_gateway_sends_is_read() -> None:
    assert len(decode_batch(batch(*[event()] * MAX_MESSAGE_COMMANDS))) == MAX_MESSAGE_COMMANDS


@pytest.mark.parametrize(
    "events",
    [
        [event()] * (MAX_MESSAGE_COMMANDS + 1),
        [1] * 100_000,
        [{}] * (MAX_MESSAGE_COMMANDS + 1),
        [event(type="note.paint")] * (MAX_MESSAGE_COMMANDS + 1),
        [{}] * MAX_MESSAGE_COMMANDS,
        [None, 1, "x", [], {}],
        [event(type="notes.change", data={"items": [ITEM] * 300})] * 2,
    ],
    ids=["too many commands", "numbers", "too many objects", "unknown types", "no ids", "anything", "too many writes"],
)
def test_message_that_no_gateway_sends_is_unreadable_as_a_whole(events: list[object]) -> None:
    assert decode_batch(batch(*events)) == [Unreadable(batch(*events))]


def test_command_with_many_writes_is_read_where_it_is_alone() -> None:
    [received] = decode_batch(batch(event(type="notes.change", data={"items": [ITEM] * 1000})))

    assert isinstance(received, ChangeNotes)


def test_message_larger_than_the_brokers_limit_is_not_even_parsed() -> None:
    body = batch(event(extension="x" * LARGEST_MESSAGE_BYTES))

    assert decode_batch(body) == [Unreadable(body)]


@pytest.mark.parametrize("version", [CREATE.dataversion + MAX_VERSIONS_AHEAD + 1, 999, 2**70])
def test_version_that_cannot_be_the_next_ones_is_a_bad_command(version: int) -> None:
    [received] = decode_batch(batch(event(dataversion=version)))

    assert_bad(received, "invalid_command", event(dataversion=version))


def test_bad_command_that_postgres_could_not_store_is_unreadable() -> None:
    nested = b'{"id":"%s","x":%b}' % (str(CREATE.id).encode(), b"[" * 150 + b"]" * 150)

    first, received = decode_batch(encode_batch([encode_command(CREATE), nested]))

    assert first == CREATE
    assert isinstance(received, Unreadable)


def is_storable_json(content: str) -> bool:
    """Whether Postgres accepts it as JSON, which has neither NaN nor Infinity."""
    constants: list[str] = []
    json.loads(content, parse_constant=constants.append)
    content.encode()
    return not constants
