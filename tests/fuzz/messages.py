"""Bytes that may arrive from a queue or a client: real messages, broken in every way."""

import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from pathlib import Path as File
from random import Random, SystemRandom
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

GOLDEN = File(__file__).parent.parent / "contracts"
EVENTS: list[dict[str, Any]] = [
    event
    for path in sorted(GOLDEN.glob("*.json"))
    if not path.name.startswith("replies")
    for event in json.loads(path.read_text())
]
"""A command of every type and version."""
REPLIES: list[dict[str, Any]] = json.loads((GOLDEN / "replies.v1.json").read_text())
IS_LONG = "DECODER_INPUTS" in os.environ
INPUTS = int(os.environ.get("DECODER_INPUTS", "4000"))
SEED = int(os.environ.get("PROOF_SEED") or SystemRandom().randrange(2**32)) if IS_LONG else 1
"""The everyday run has the same inputs each time."""
MANGLED = 19
"""How often each message is mangled."""
EXAMPLES = 500
"""Messages drawn with one seed, since Hypothesis remembers all of them."""


@dataclass(frozen=True)
class Raw:
    """A piece of JSON as it is written, or of what is none."""

    text: str


@dataclass(frozen=True)
class Twice:
    """A member that an object has twice."""

    first: Any
    second: Any


def dump(value: Any) -> str:
    """Return the value as JSON."""
    match value:
        case Raw(text=text):
            return text
        case dict():
            return "{" + ",".join(dump_member(json.dumps(name), each) for name, each in value.items()) + "}"
        case list():
            return "[" + ",".join(map(dump, value)) + "]"
        case _:
            return json.dumps(value)


def dump_member(name: str, value: Any) -> str:
    """Return a member of an object as JSON."""
    if isinstance(value, Twice):
        return f"{name}:{dump(value.first)},{name}:{dump(value.second)}"
    return f"{name}:{dump(value)}"


UUIDS = ("019b2c3d4e5f7a6b8c7d000000000001", "{019b2c3d-4e5f-7a6b-8c7d-000000000001}", "urn:uuid:" + "0" * 32, "_" * 32)
TIMES = (
    "2026-07-01T12:30:45Z",
    "2026-07-01",
    "2026-07-01T24:00:00Z",
    "2016-12-31T23:59:60Z",
    "0001-01-01T00:00:00+23:59",
    "0001-01-02T00:00:00Z",
    "8999-12-31T23:59:59.9999999Z",
    "9999-12-31T23:59:59-23:59",
    "P1D",
    1_751_373_045,
    1e11,
    1e300,
    -1e18,
)
HASH = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2g"
ITEMS: tuple[list[dict[str, Any]], ...] = (
    [{"op": "create", "title": "", "description": ""}],
    [{"op": "create", "title": "", "description": "", "created_date": "0001-01-02T00:00:00Z"}],
    [{"op": "delete", "note_id": 1}] * 3,
    [{"op": "paint"}],
    [{}],
)
TYPES = ("note.create", "note.purge", "notes.change", "user.change", "token.create")
WORDS = ("*", "1.0", "Ada", "\ufb01", "e\u0301", "delete")
NESTED = [
    opened * levels + "1" + closed * levels
    for opened, closed in (("[", "]"), ('{"a":', "}"))
    for levels in (20, 99, 100, 101, 150, 250, 900, 1200)
]
RAWS = [
    *NESTED,
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "-0", "9" * 400, "9" * 4300, "9" * 5000),
    *("1.0", "1.5", "1e2", "01", "1.", ".5", "+1", "0x1", "1_0", "tru", "nil", "", "[", '"', "'x'", "\x01", "//"),
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\x"', '"\ufeff"', '"\t"', '{"a":1,"a":2}', '{"a":1,}', "[1,]"),
]
VALUES = (
    st.sampled_from([None, True, False, 0, 1, 2, -1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**10, "1", 1.0])
    | st.sampled_from([*UUIDS, *TIMES, HASH, *ITEMS, *TYPES, *WORDS, [], {}, [1], [1, 1], ["notes:read"], [[]]])
    | st.integers(0, len(RAWS) - 1).map(lambda number: Raw(RAWS[number]))
    | st.text(st.characters(), max_size=20)
    | st.integers()
    | st.floats()
    | st.integers(1, 100_000).map(lambda length: "x" * length)
)
MEMBERS = """
id type dataversion dataversion data owner credentialsversion time attemptid fingerprint specversion source traceparent
mayexpire replayedat replayforced attempt_id colour owners owners.0 owners.0.owner owners.0.revision data.title
data.description data.note_id data.if_match data.if_none_match data.colour data.items data.items.0 data.items.0.op
data.items.0.title data.items.0.created_date data.items.1.note_id data.items.1.if_match data.name data.password_hash
data.scopes data.lifetime_days data.secret_digest data.token_id outcome outcome.status outcome.http_status outcome.id
outcome.body outcome.note_id
"""
Path = tuple[str | int, ...]


def paths_to(members: str) -> st.SearchStrategy[Path]:
    """Return a strategy for paths to these members, or to one that has a strange name."""
    paths: list[Path] = [
        tuple(int(step) if step.isdigit() else step for step in each.split(".")) for each in members.split()
    ]
    return st.sampled_from([*paths, ("",), ("\ud800",)])


def changes_of(members: str) -> st.SearchStrategy[list[tuple[str, Path, Any]]]:
    """Return a strategy for changes of these members."""
    one = st.tuples(st.sampled_from(["set", "set", "remove", "twice"]), paths_to(members), VALUES)
    return st.lists(one, min_size=1, max_size=3)


CHANGES = changes_of(MEMBERS)


def change(event: dict[str, Any], changes: list[tuple[str, Path, Any]]) -> dict[str, Any]:
    """Return the event with some members set, removed or doubled."""
    event = deepcopy(event)
    for how, (*steps, last), value in changes:
        place: Any = event
        for step in steps:
            place = place[step] if has(place, step) else None
        if isinstance(place, list) and isinstance(last, int) and has(place, last):
            place[last] = value
        elif isinstance(place, dict) and how == "remove":
            place.pop(last, None)
        elif isinstance(place, dict):
            first = place.get(last)
            place[last] = Twice(first, value) if how == "twice" and not isinstance(first, Twice) else value
    return event


def has(place: Any, step: Any) -> bool:
    """Whether an object has this member, or a list this index."""
    return step in (range(len(place)) if isinstance(place, list) else place if isinstance(place, dict) else ())


def events_of(golden: list[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy for events, most of them changed."""
    event = st.sampled_from(golden)
    return event | st.builds(change, event, CHANGES) | st.builds(change, event, CHANGES)


def messages_of(golden: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """Return a strategy for messages with such events."""
    anything = VALUES.map(lambda value: value if isinstance(value, Raw) else Raw(dump(value)))
    several = st.lists(events_of(golden) | events_of(golden) | events_of(golden) | anything, max_size=4)
    written = several.map(dump) | anything.map(dump)
    encoded = written.map(lambda text: text.encode(errors="surrogatepass"))
    return encoded | encoded | encoded | st.binary(max_size=200) | written.map(encode_strangely)


def encode_strangely(text: str) -> bytes:
    """Return the text in an encoding, with a frame or with a number of copies that no gateway uses."""
    ways: list[Callable[[str], bytes]] = [
        lambda text: text.encode("utf-16", errors="surrogatepass"),
        lambda text: text.encode("utf-8-sig", errors="surrogatepass"),
        lambda text: f" \n{text} \t".encode(errors="surrogatepass"),
        lambda text: f"{text}{text}".encode(errors="surrogatepass"),
        lambda text: f"[{text}]".encode(errors="surrogatepass"),
        lambda text: ("[" + ",".join([text.strip("[]") or "1"] * 300) + "]").encode(errors="surrogatepass"),
    ]
    return ways[len(text) % len(ways)](text)


TOKENS = [
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u0000", b"\\ud800", b"null", b"true", b"NaN", b"1e999"),
    *(b"-", b"0", b"9" * 30, b"\xff", b"\xef\xbb\xbf", b"\x00", b"\xf0\x9f\x96\x8b", b"[" * 300, b"]" * 300),
    *(b'"id":', b'"type":', b'"dataversion":2,', b'"data":{', b'"owner":', b"}, {", b"[]", b"{}", b".", b"-", b"end"),
]


def mangle(body: bytes, random: Random) -> bytes:
    """Return the bytes with some of them changed, lost, repeated or inserted."""
    mangled = bytearray(body)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(mangled) + 1)
        to = min(len(mangled), at + random.choice((1, 1, 2, 8, 50)))
        match random.randrange(6):
            case 0 if at < len(mangled):
                mangled[at] = random.randrange(256)
            case 1:
                del mangled[at:to]
            case 2:
                mangled[at:at] = mangled[at:to] * random.choice((1, 2, 20))
            case 3:
                mangled[at:to] = random.choice(TOKENS)
            case 4:
                mangled[at:at] = random.choice(TOKENS)
            case _:
                del mangled[at:]
    return bytes(mangled)


def mangle_often(body: bytes, number: int) -> Iterator[bytes]:
    """Yield the bytes, and then mangled ones."""
    yield body
    random = Random(number)  # noqa: S311 - no secret
    for _ in range(MANGLED):
        yield mangle(body, random)


def fuzz(check: Callable[[bytes], None], bodies: st.SearchStrategy[bytes], inputs: int) -> None:
    """Check as many inputs."""
    examples = ceil(inputs / (MANGLED + 1))
    for number in range(ceil(examples / EXAMPLES)):

        @settings(
            max_examples=min(EXAMPLES, examples),
            phases=(Phase.generate, Phase.shrink),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(body=bodies, mangling=st.integers(0, 2**32))
        def check_all(body: bytes, mangling: int) -> None:
            for each in mangle_often(body, mangling):
                check(each)

        seed(SEED + number)(check_all)()
