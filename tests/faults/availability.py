"""The share of requests that are answered as they should be, for each fault, from the history of a run."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.faults.history import INTERRUPTED, Answer, Disturbance, History

LONGEST_SECONDS = 30.0
"""No request takes longer."""
TWO_AT_ONCE, NONE = "two at once", "no fault"


@dataclass
class Share:
    """How many requests there were, and how many of them were answered as they should be."""

    good: int = 0
    all: int = 0

    def count(self, *, is_good: bool) -> None:
        """Add a request."""
        self.good += is_good
        self.all += 1

    def __add__(self, other: "Share") -> "Share":
        return Share(self.good + other.good, self.all + other.all)

    @property
    def percent(self) -> float:
        """In percent; NaN if there was none."""
        return 100 * self.good / self.all if self.all else float("nan")


@dataclass
class Availability:
    """Those shares while a fault lasts, and of all requests until everything is served again."""

    writes: Share = field(default_factory=Share)
    reads: Share = field(default_factory=Share)
    recovering: Share = field(default_factory=Share)

    def __add__(self, other: "Availability") -> "Availability":
        return Availability(self.writes + other.writes, self.reads + other.reads, self.recovering + other.recovering)


def availabilities(history: History) -> dict[str, Availability]:
    """By the name of the fault where one was alone, for two at once, and for the time without any."""
    found: dict[str, Availability] = defaultdict(Availability)
    writes, reads = Requests(write_answers(history)), Requests(read_answers(history))
    rounds = list(rounds_of(history))
    for name, began, ended, recovered in rounds:
        one = found[name]
        writes.count(one.writes, began, ended)
        reads.count(one.reads, began, ended)
        writes.count(one.recovering, ended, recovered)
        reads.count(one.recovering, ended, recovered)
    for (_, _, _, recovered), (_, began, _, _) in pairwise(rounds):
        writes.count(found[NONE].writes, recovered, began, is_within=True)
        reads.count(found[NONE].reads, recovered, began, is_within=True)
    return dict(found)


def rounds_of(history: History) -> Iterator[tuple[str, float, float, float]]:
    """The name of each round's fault, when it began, when it ended, and when everything was served again."""
    by_round: dict[int, list[Disturbance]] = defaultdict(list)
    for each in history.disturbances:
        by_round[each.round].append(each)
    for number, disturbances in sorted(by_round.items()):
        if number <= len(history.recoveries) and all(each.ended for each in disturbances):
            ended = max(each.ended for each in disturbances)
            name = disturbances[0].name if len(disturbances) == 1 else TWO_AT_ONCE
            began = min(each.began for each in disturbances)
            yield name, began, ended, ended + history.recoveries[number - 1]


class Requests:
    """Requests by the time at which they were sent."""

    def __init__(self, answers: Iterable[Answer]) -> None:
        self._answers: Sequence[Answer] = sorted(answers, key=lambda answer: answer.asked)
        self._asked = [answer.asked for answer in self._answers]

    def count(self, share: Share, began: float, ended: float, *, is_within: bool = False) -> None:
        """Count those that were in flight at some time of these, or those that were sent and answered in it."""
        first = bisect_left(self._asked, began if is_within else began - LONGEST_SECONDS)
        for answer in self._answers[first : bisect_left(self._asked, ended)]:
            if answer.answered < ended if is_within else answer.answered > began:
                share.count(is_good=is_answered(answer))


def write_answers(history: History) -> Iterator[Answer]:
    """The answers to all writes."""
    return (answer for write in history.writes for answer in write.attempts if answer.error != INTERRUPTED)


def read_answers(history: History) -> Iterable[Answer]:
    """The answers to all other requests that clients waited for; that to a list counts once, whatever was on it."""
    writes = {id(answer) for write in history.writes for answer in write.attempts}
    reads = (each for each in history.answers() if id(each) not in writes and each.error != INTERRUPTED)
    return {(answer.gateway, answer.asked): answer for answer in reads}.values()


def is_answered(answer: Answer) -> bool:
    """Whether a request was served, or rejected for a reason of its own; other checks judge whether that is true."""
    return 200 <= answer.status < 500
