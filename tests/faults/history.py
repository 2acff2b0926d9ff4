"""What clients did and were answered: the evidence that the checker judges."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

GONE = 10**9
"""The version of a note that is deleted."""
REFUSALS = {"not_accepted", "overloaded"}
"""The codes of 503 that say that a write certainly has no effect."""


PATCHED = 2
"""Which of several writes at once is the patch."""


def text_of_item(marker: str, index: int) -> str:
    """The description that one of several writes at once gives its note."""
    return f"{marker}#{index}"


@dataclass(slots=True)
class Answer:
    """One request and what came of it; times are those of the event loop."""

    gateway: int
    asked: float
    limit_seconds: float
    """How long the gateway may take by its promises."""
    answered: float = 0.0
    status: int = 0
    """0 where no answer came."""
    code: str | None = None
    """Of a problem."""
    body: Any = None
    etag: str | None = None
    location: str | None = None
    error: str | None = None
    """Why no answer came."""

    @property
    def is_sent(self) -> bool:
        """Whether the gateway may have it."""
        return self.error != "ClientConnectorError"

    @property
    def is_refusal(self) -> bool:
        """Whether it says that the write has no effect."""
        return not self.is_sent or 400 <= self.status < 500 or self.code in REFUSALS

    @property
    def is_outcome(self) -> bool:
        """Whether it is the answer of a write that tells its outcome."""
        return self.status in (200, 201, 204) or 400 <= self.status < 500 or self.code == "command_failed"

    @property
    def version(self) -> int | None:
        """The note's version that it tells."""
        return int(self.etag.strip('"')) if self.etag else None


@dataclass(slots=True)
class Write:
    """A write as one client wants it, however often it has to ask.

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
    """Headers that each attempt has."""
    attempts: list[Answer] = field(default_factory=list)
    polls: list[Answer] = field(default_factory=list)
    """Answers of its command's URL."""

    @property
    def url(self) -> str | None:
        """The URL of its command, as the last answer that had one told it."""
        for answer in reversed(self.attempts):
            if answer.status == 202:
                return answer.location
            if answer.code == "unconfirmed" and answer.body:
                return str(answer.body["command"])
        return None

    @property
    def command(self) -> str | None:
        """The id of its command, where an answer told it."""
        states = (
            answer.body for answer in (*self.attempts, *self.polls) if answer.status in (200, 202) and answer.body
        )
        return next((str(state["id"]) for state in states if "issued_at" in state), None)

    @property
    def condition(self) -> int | None:
        """The version that it asks for."""
        return int(self.conditions["If-Match"].strip('"')) if self.conditions else None

    @property
    def decided(self) -> Answer | None:
        """The first answer that tells the outcome."""
        tell = (answer for answer in self.attempts if answer.is_outcome)
        asked = (poll for poll in self.polls if poll.status == 200 and poll.body["answer"])
        return next(tell, None) or next(asked, None)

    @property
    def status(self) -> str:
        """`applied`, `rejected`, `failed`; `refused` where it was never accepted; `unknown` where nobody can tell."""
        if answer := self.decided:
            if answer in self.polls:
                return str(answer.body["status"])
            return {2: "applied", 4: "rejected", 5: "failed"}[answer.status // 100]
        return "refused" if all(answer.is_refusal for answer in self.attempts) else "unknown"

    @property
    def original(self) -> tuple[int, Any, int | None]:
        """Status, body and version of the answer that tells the outcome."""
        answer = self.decided
        assert answer
        if answer in self.polls:
            told = answer.body["answer"]
            etag = told["headers"].get("ETag", "").strip('"')
            return told["status"], told["body"], int(etag) if etag else None
        return answer.status, answer.body, answer.version

    @property
    def results(self) -> list[tuple[int, Any]]:
        """Status and body of every answer, at its command's URL too, that tells the outcome."""
        asked = [poll.body["answer"] for poll in self.polls if poll.status == 200 and poll.body["answer"]]
        told = [(answer.status, answer.body) for answer in self.attempts if answer.is_outcome]
        return told + [(answer["status"], answer["body"]) for answer in asked]

    @property
    def subject(self) -> int | None:
        """The note that it is about, or that it has made."""
        if self.kind != "create" or self.status != "applied":
            return self.note
        answer, (_, body, _) = self.decided, self.original
        told = body["id"] if isinstance(body, dict) and "id" in body else None
        if told is None and answer and answer.location:
            told = answer.location.rpartition("/")[2]
        return (
            int(told) if told is not None and str(told).isdecimal() else None
        )  # or it is the answer to another, as the checker finds

    @property
    def made(self) -> list[tuple[int, int]]:
        """The versions in which it has left notes, as far as its answers tell."""
        if self.status != "applied":
            return []
        _, body, version = self.original
        if self.kind == "batch":
            return [(item["id"], item["version"]) for item in body.get("items", ())] if body else []
        return [(self.subject or 0, GONE if self.kind == "delete" else version or 0)]

    @property
    def asked(self) -> float:
        """When it was first sent."""
        return self.attempts[0].asked

    @property
    def accepted(self) -> float | None:
        """When the first 2xx came."""
        return min((answer.answered for answer in self.attempts if 200 <= answer.status < 300), default=None)

    @property
    def applied(self) -> float | None:
        """When the client knew that it was applied."""
        answer = self.decided
        return answer.answered if answer and self.status == "applied" else None


@dataclass(slots=True)
class Read:
    """A note as it was read."""

    owner: int
    note: int
    answer: Answer
    is_trespass: bool = False


@dataclass(slots=True)
class Disturbance:
    """One fault: which, to what, when; times are those of the event loop."""

    name: str
    target: str
    began: float
    round: int = 0
    """Those of one round overlap, and the cluster recovers from all of them together."""
    ended: float = 0.0


@dataclass(slots=True)
class History:
    """Everything that happened in a run."""

    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    """Seconds from the end of each disturbance, or of several at once, until everything was served again."""
    complaints: list[str] = field(default_factory=list)
    """What was found broken while the run was under way."""
    lag_seconds: float = 0.0
    """The longest time in which the clients themselves stood still."""

    def recoveries_by_fault(self) -> dict[str, list[float]]:
        """The seconds that each recovery from a fault took, and from those that overlapped with it."""
        found: dict[str, list[float]] = {}
        for each in self.disturbances:
            found.setdefault(each.name, []).append(self.recoveries[each.round - 1])
        return found

    def answers(self) -> Iterator[Answer]:
        """All of them."""
        for write in self.writes:
            yield from write.attempts
            yield from write.polls
        for read in self.reads:
            yield read.answer
