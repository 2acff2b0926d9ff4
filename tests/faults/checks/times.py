"""I7, I11: every request is answered in time, and what needs only one server is served without the other."""

from collections import Counter
from collections.abc import Iterator

from tests.faults.checks.case import Case
from tests.faults.history import EVERYTHING, INTERRUPTED, History

SLACK_SECONDS = 1.0
"""Tolerance beyond the deadline that I7 promises."""
KEPT_ALIVE_SECONDS = 0.5
"""A shorter connection may have been closed while the request was in flight, which HTTP allows."""
LOSES_GATEWAY = {"gateway-kill", "gateway-frozen", "power-cut"}
READ, WRITTEN = {200, 304, 404}, {200, 201, 202, 204, 404, 412, 422}
OVERLOADED = "overloaded"
"""How a page is answered while too many slow ones of its owner are under way."""


def in_time(case: Case) -> Iterator[str]:
    """I7: every request is answered within its deadline and a second, unless its gateway is killed or frozen.

    The time in which the client itself was stalled is not the gateway's.
    """
    history = case.history
    lost = [each for each in history.disturbances if each.name in LOSES_GATEWAY]
    for answer in history.answers():
        took = answer.answered - answer.asked
        if took <= KEPT_ALIVE_SECONDS or answer.error == INTERRUPTED:
            continue
        took -= history.stalls.within(answer.asked, answer.answered)
        if (answer.status or answer.error == "TimeoutError") and took > answer.limit_seconds + SLACK_SECONDS:
            what = answer.code or answer.status or answer.error
            found = f"I7: {what} took {took:.1f} s, {answer.limit_seconds:.1f} s were promised"
        elif answer.is_sent and not answer.status and answer.error != "TimeoutError" and took > KEPT_ALIVE_SECONDS:
            found = f"I7: no answer after {took:.1f} s: {answer.error}"
        else:
            continue
        its_own = (each for each in lost if each.target in (f"gateway-{answer.gateway + 1}", EVERYTHING))
        if not any(each.began < answer.answered and answer.asked < each.ended for each in its_own):
            yield found


def available(case: Case) -> Iterator[str]:
    """I11: reads work while the broker is down, and writes are accepted while Postgres is."""
    history = case.history
    reads = [read.answer for read in history.reads]
    reads += [look.answer for look in history.looks if look.answer.code != OVERLOADED]
    writes = [answer for write in history.writes if write.kind != "import" for answer in write.attempts]
    for server, answers, good in (("broker", reads, READ), ("postgres", writes, WRITTEN)):
        for began, ended in alone(history, server):
            during = (each for each in answers if began < each.asked and each.answered < ended)
            yield from (f"I11: {each.code} while {server} was away" for each in during if each.status not in good)


def alone(history: History, server: str) -> Iterator[tuple[float, float]]:
    """The times at which this server was down and nothing else had failed recently."""
    rounds = Counter(each.round for each in history.disturbances)
    for each in history.disturbances:
        if each.name in (f"{server}-kill", f"{server}-pause", f"{server}-restart") and rounds[each.round] == 1:
            yield each.began, each.ended
