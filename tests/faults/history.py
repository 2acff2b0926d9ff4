"""What clients sent and received: the evidence for the checker."""

from collections.abc import Iterator
from dataclasses import dataclass, field
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


def text_of_item(marker: str, index: int) -> str:
    """The description of the note that one of several writes at once creates."""
    return f"{marker}#{index}"


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
        is_decided = self.status in (200, 201, 204) or 400 <= self.status < 500 or self.code == "command_failed"
        return is_decided and self.code not in UNKNOWN_OPERATION

    @property
    def version(self) -> int | None:
        """The note's version in the answer."""
        return int(self.etag.strip('"')) if self.etag else None


@dataclass(slots=True)
class Write:
    """A write as one client intends it, with all its attempts.

    The marker is its description, or the user's or the token's name; no other write has it, and a `touch` writes none.
    """

    owner: int
    kind: str
    """`create`, `replace`, `patch` or `delete` a note, or `touch` it, which changes nothing; create two and patch one
    as a `batch`; `register` or `rename` a user, or create a personal `token`."""
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
        return "refused" if all(answer.is_refusal for answer in self.attempts) else "unknown"

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
        if self.kind == "batch":
            return [(item["id"], item["version"]) for item in body.get("items", ())] if body else []
        return [(self.subject or 0, GONE if self.kind == "delete" else version or 0)]

    @property
    def asked(self) -> float:
        """The time of the first attempt."""
        return self.attempts[0].asked

    @property
    def accepted(self) -> float | None:
        """The time of the first 2xx."""
        return min((answer.answered for answer in self.attempts if 200 <= answer.status < 300), default=None)

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


@dataclass(slots=True)
class History:
    """Everything that happened in a run."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
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
    lag_seconds: float = 0.0
    """The longest time in which the clients themselves were stalled."""

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
        for person in self.people:
            yield from person.answers()
