"""What clients sent and received: the evidence for the checker."""

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.keyed_writes import KeyedWrite
    from tests.faults.letters import Operation
    from tests.faults.people import Person

GONE = 10**9
"""The version of a deleted note."""
REFUSALS = {"not_accepted", "overloaded"}
"""The codes of 503 that guarantee that a write has no effect."""
UNKNOWN_OPERATION = {"not_found", "method_not_allowed"}
"""The codes with which a gateway of the version before answers requests that it does not know."""


PATCHED = 2
"""The position of the patch among several writes at once."""
INCOMPLETE = "incomplete"
"""The code of an import that ended before all its lines were imported."""
INTERRUPTED = "Interrupted"
"""The error of a request that its client has broken off."""
COLOURS = ("Amber", "Blue", "Crimson", "Indigo", "Ochre", "Violet")
"""Words of which each title has one; no text contains them."""


def text_of_item(marker: str, index: int) -> str:
    """The description of the note that one of several writes at once creates."""
    return f"{marker}#{index}"


def colour_of(text: str) -> str:
    """The word in the title of a note that is created or replaced with this text."""
    return COLOURS[zlib.crc32(text.encode()) % len(COLOURS)]


def title_of(text: str) -> str:
    """The title of a note that is created or replaced with this text."""
    return f"{colour_of(text)} {text[:4]}"


def text_of(text: str) -> dict[str, Any]:
    """The members of a note that is created or replaced with this text."""
    return {"title": title_of(text), "description": text}


ENDINGS = {"delete", "purge"}
"""The kinds of writes whose note is not found afterwards."""
SEVERAL = ("batch", "swap")
"""The kinds of writes that make or change several notes."""
TEXTLESS = {"delete", "touch", "restore", "purge"}
"""The kinds of writes that write no text of their own."""
EVERYTHING = "everything"
"""The target of a fault that ends all servers and services."""


@dataclass(slots=True)
class Answer:
    """One request and its answer; times are those of the event loop."""

    gateway: int
    asked: float
    limit_seconds: float
    """The promised time for the answer."""
    answered: float = 0.0
    status: int = 0
    """0 if no answer came."""
    code: str | None = None
    """The code of a problem."""
    body: Any = None
    etag: str | None = None
    location: str | None = None
    link: str | None = None
    """The links of a page."""
    total: str | None = None
    """The number of notes on all pages, if it was requested."""
    error: str | None = None
    """Why no answer came."""

    @property
    def is_sent(self) -> bool:
        """Whether the gateway may have received it."""
        return self.error != "ClientConnectorError"

    @property
    def is_refusal(self) -> bool:
        """Whether the answer says that the write has no effect."""
        return not self.is_sent or 400 <= self.status < 500 or self.code in REFUSALS

    @property
    def is_outcome(self) -> bool:
        """Whether the answer of a write contains its outcome."""
        is_decided = self.is_success or 400 <= self.status < 500 or self.code == "command_failed"
        return is_decided and self.code not in UNKNOWN_OPERATION

    @property
    def is_success(self) -> bool:
        """Whether the answer of a write says that it is applied."""
        return self.status in (200, 201, 204) and self.code is None

    @property
    def version(self) -> int | None:
        """The note's version in the answer."""
        return int(self.etag.strip('"')) if self.etag else None


@dataclass(slots=True)
class Write:
    """A write as one client intends it, with all its attempts.

    The marker is its description; no other write has it, and a `touch` writes none.
    """

    owner: int
    kind: str
    """`create`, `replace`, `patch` or `delete` a note, or `touch` it, which changes nothing; `restore` or `purge` a
    deleted one; create two and patch one as a `batch`, or create one and delete another (`swap`); `import` some."""
    note: int | None
    marker: str
    key: str | None
    is_trespass: bool = False
    """Whether the note is another owner's."""
    conditions: dict[str, str] = field(default_factory=dict)
    """The headers of every attempt."""
    attempts: list[Answer] = field(default_factory=list)
    polls: list[Answer] = field(default_factory=list)
    """The answers at its command's URL."""
    lines: int = 0
    """The number of notes that it imports."""
    is_reuse: bool = False
    """Whether its key is that of an earlier, different request."""

    @property
    def url(self) -> str | None:
        """The URL of its command, from the last answer that contained one."""
        for answer in reversed(self.attempts):
            if answer.status == 202:
                return answer.location
            if answer.code == "unconfirmed" and answer.body:
                return str(answer.body["command"])
        return None

    @property
    def command(self) -> str | None:
        """The id of its command, if an answer contained it."""
        states = (
            answer.body for answer in (*self.attempts, *self.polls) if answer.status in (200, 202) and answer.body
        )
        return next((str(state["id"]) for state in states if "issued_at" in state), None)

    @property
    def condition(self) -> int | None:
        """The version that its condition names."""
        return int(self.conditions["If-Match"].strip('"')) if self.conditions else None

    @property
    def decided(self) -> Answer | None:
        """The first answer with the outcome."""
        with_outcome = (answer for answer in self.attempts if answer.is_outcome)
        asked = (poll for poll in self.polls if poll.status == 200 and poll.body["answer"])
        return next(with_outcome, None) or next(asked, None)

    @property
    def status(self) -> str:
        """`applied`, `rejected`, `failed`; `refused` if it was never accepted; `unknown` if no answer shows it."""
        if answer := self.decided:
            if answer in self.polls:
                return str(answer.body["status"])
            return {2: "applied", 4: "rejected", 5: "failed"}[answer.status // 100]
        is_refused = self.attempts and all(answer.is_refusal for answer in self.attempts)  # none: it was broken off
        return "refused" if is_refused else "unknown"

    @property
    def original(self) -> tuple[int, Any, int | None]:
        """Status, body and version of the answer with the outcome."""
        answer = self.decided
        assert answer
        if answer in self.polls:
            original = answer.body["answer"]
            etag = original["headers"].get("ETag", "").strip('"')
            return original["status"], original["body"], int(etag) if etag else None
        return answer.status, answer.body, answer.version

    @property
    def results(self) -> list[tuple[int, Any]]:
        """Status and body of every answer with the outcome, also at its command's URL."""
        asked = [poll.body["answer"] for poll in self.polls if poll.status == 200 and poll.body["answer"]]
        answered = [(answer.status, answer.body) for answer in self.attempts if answer.is_outcome]
        return answered + [(answer["status"], answer["body"]) for answer in asked]

    @property
    def subject(self) -> int | None:
        """The note that it names or has created."""
        if self.kind != "create" or self.status != "applied":
            return self.note
        answer, (_, body, _) = self.decided, self.original
        note_id = body["id"] if isinstance(body, dict) and "id" in body else None
        if note_id is None and answer and answer.location:
            note_id = answer.location.rpartition("/")[2]
        # Without an id it is the answer to another write, as the checker finds out.
        return int(note_id) if note_id is not None and str(note_id).isdecimal() else None

    @property
    def made(self) -> list[tuple[int, int]]:
        """The versions of its notes, as far as its answers show."""
        if self.status != "applied":
            return []
        _, body, version = self.original
        if self.kind in SEVERAL:
            return [(item["id"], item.get("version") or GONE) for item in body.get("items", ())] if body else []
        if self.kind == "import":
            return []
        return [(self.subject or 0, GONE if self.kind in ENDINGS else version or 0)]

    @property
    def asked(self) -> float:
        """The time of the first attempt."""
        return self.attempts[0].asked

    @property
    def accepted(self) -> float | None:
        """The time of the first 2xx."""
        good = (answer.answered for answer in self.attempts if answer.is_success or answer.status == 202)
        return min(good, default=None)

    @property
    def applied(self) -> float | None:
        """The time at which the client knew that it was applied."""
        answer = self.decided
        return answer.answered if answer and self.status == "applied" else None


@dataclass(slots=True)
class Read:
    """A note as a client read it."""

    owner: int
    note: int
    answer: Answer
    is_trespass: bool = False
    is_in_trash: bool = False
    """Whether it was looked for in the trash."""


@dataclass(slots=True)
class Look:
    """A page of notes as a client got it; the body of its answer is not parsed.

    If the client's copy was current (304), the answer has the body, the links and the total of the copy.
    """

    owner: int
    what: str
    """`list`, `trash`, `versions` of a note, `search` or `export`."""
    answer: Answer = field(default_factory=lambda: Answer(0, 0.0, 0.0))
    limit: int = 10**9
    sort: str = "id"
    """The order of a list, with a minus if it is reversed."""
    place: tuple[Any, int] | None = None
    """The sort key and the id of the note next to the page; the revision of a deletion and the id; a version and 0."""
    is_backwards: bool = False
    """Whether the page ends at the place, instead of beginning there."""
    prefix: str | None = None
    """The beginning of the titles in the list, in small letters."""
    text: str | None = None
    """What is searched for."""
    note: int = 0
    """The note whose versions are listed."""
    is_counted: bool = False
    """Whether the number of all notes was requested."""


@dataclass(slots=True)
class Disturbance:
    """One fault with its target and its times, which are those of the event loop."""

    name: str
    target: str
    began: float
    round: int = 0
    """Faults of the same round overlap, and the cluster recovers from all of them together."""
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A change as a follower received it."""

    note: int
    revision: int
    version: int | None
    """None if the note is deleted."""
    text: str | None
    at: float


@dataclass(slots=True)
class Follow:
    """What a follower of an owner's changes received, and the copy that this makes."""

    owner: int
    how: str
    """By `stream`, by pages that `wait`, or by pages now and then, `absent` meanwhile."""
    seen: list[Seen] = field(default_factory=list)
    """Since it began anew for the last time."""
    former: list[list[Seen]] = field(default_factory=list)
    """What it saw before each 410."""
    gone: list[float] = field(default_factory=list)
    """When it was answered 410, and began anew."""
    connected: list[tuple[float, float]] = field(default_factory=list)
    """When it had a stream."""
    refusals: list[str] = field(default_factory=list)
    """Answers that it should not get."""

    def see(self, seen: Seen) -> None:
        """Record a change."""
        self.seen.append(seen)

    def begin_anew(self, at: float) -> None:
        """Record that changes were gone."""
        self.gone.append(at)
        self.former.append(self.seen)
        self.seen = []

    @property
    def copy(self) -> dict[int, tuple[int, str | None]]:
        """Version and text of each note that exists according to the changes."""
        copy = dict[int, tuple[int, str | None]]()
        for seen in self.seen:
            if seen.version is None:
                copy.pop(seen.note, None)
            else:
                copy[seen.note] = (seen.version, seen.text)
        return copy


@dataclass
class Stalls:
    """When the clients themselves were stalled, in order."""

    periods: list[tuple[float, float]] = field(default_factory=list)

    def add(self, began: float, ended: float) -> None:
        """Record that nothing ran between these times."""
        if ended > began:
            self.periods.append((began, ended))

    @property
    def longest(self) -> float:
        """The seconds of the longest stall."""
        return max((ended - began for began, ended in self.periods), default=0.0)

    def within(self, began: float, ended: float) -> float:
        """The seconds of stalls between two times."""
        starts, ends, sums = self._index
        first, last = bisect_right(ends, began), bisect_left(starts, ended)
        if first >= last:
            return 0.0
        outside = max(0.0, began - starts[first]) + max(0.0, ends[last - 1] - ended)
        return sums[last] - sums[first] - outside

    @cached_property
    def _index(self) -> tuple[list[float], list[float], list[float]]:
        """The beginnings, the ends, and the sums of all stalls before each."""
        lengths = (ended - began for began, ended in self.periods)
        return [each[0] for each in self.periods], [each[1] for each in self.periods], [0.0, *accumulate(lengths)]


@dataclass(slots=True)
class History:
    """Everything that happened in a run."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    follows: list[Follow] = field(default_factory=list)
    people: list["Person"] = field(default_factory=list)
    letters: list["KeyedWrite"] = field(default_factory=list)
    """Writes of which many become dead letters."""
    operations: list["Operation"] = field(default_factory=list)
    """What an operator did with these."""
    disturbances: list[Disturbance] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    """Seconds from the end of each disturbance, or of several at once, until everything was served again."""
    complaints: list[str] = field(default_factory=list)
    """Violations found during the run."""
    stalls: Stalls = field(default_factory=Stalls)

    @property
    def lag_seconds(self) -> float:
        """The longest time in which the clients themselves were stalled."""
        return self.stalls.longest

    def recoveries_by_fault(self) -> dict[str, list[float]]:
        """The seconds of each recovery from a fault and from those that overlapped with it."""
        found: dict[str, list[float]] = {}
        for each in self.disturbances:
            found.setdefault(each.name, []).append(self.recoveries[each.round - 1])
        return found

    def answers(self) -> Iterator[Answer]:
        """All requests."""
        for write in (*self.writes, *self.letters):
            yield from write.attempts
            yield from write.polls
        for read in self.reads:
            yield read.answer
        for look in self.looks:
            yield look.answer
        for person in self.people:
            yield from person.answers()
