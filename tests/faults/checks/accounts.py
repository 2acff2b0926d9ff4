"""Decides the promises about accounts: what ended credentials can still do, and what is left of a deleted user.

Each command of a person is found by its id, which follows from its key, and the audit has the order of the decisions.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from tests.faults.checks.case import Case
from tests.faults.checks.changes import is_disturbed
from tests.faults.history import History
from tests.faults.people import OWN_REQUEST, Credentials, PersonalWrite

KNOWN_EVERYWHERE_SECONDS = 30.0
"""Within this time every gateway rejects a revoked token, and every stream with ended credentials has ended."""
SLACK_SECONDS, BEFORE_SECONDS = 3.0, 3.0
ANSWERS = {(0, None), (200, None), (201, None), (202, None), (204, None), (503, "overloaded"), (504, "unconfirmed")}
ANSWERS |= {(503, "not_accepted"), (503, "database_unavailable"), (409, "idempotency_key_spent")}
ANSWERS |= {(401, "credentials_outdated"), (401, "invalid_token")}
READ = POLLED = {0, 200, 401, 503}
NOT_FOUND = ("replace", "delete", "batch")
"""Writes of notes that another of the person's writes may have deleted."""
Rank = tuple[int, datetime]


def effects(case: Case) -> Iterator[str]:
    """I1 to I4: each write has the outcome that its person was told, and its effect once, or not at all."""
    written = Counter(row["description"] for row in case.facts.audit if row["kind"] in ("insert", "update"))
    for write in all_writes(case):
        row = case.facts.by_id.get(write.id)
        status = row["status"] if row else None
        if write.accepted is not None and not row:
            yield f"I1: {describe(write)} was accepted but has no outcome"
        if status == "failed":
            yield f"I1: {describe(write)} has failed although nothing is wrong with it"
        if write.status in ("applied", "rejected") and write.status != status:
            yield f"I4: {describe(write)} was reported as {write.status}, but is {status}"
        if write.learned is not None and status != "applied":
            yield f"I4: {describe(write)} seemed to be applied, but is {status}"
        if write.status == "refused" and status == "applied":
            yield f"I3: {describe(write)} was refused but is applied"
        times = max(written[write.marker], written[f"{write.marker}#0"])
        if write.note_is_written and times > (status == "applied"):
            yield f"I{2 if status == 'applied' else 3}: {describe(write)} is {status}, and was written {times} times"


def answered(case: Case) -> Iterator[str]:
    """I2, I4: no answer but those that are documented, and the same again."""
    for write in all_writes(case):
        allowed = ANSWERS | ({(404, "note_not_found")} if write.kind in NOT_FOUND else set())
        wrong = [each for each in write.attempts if (each.status, each.code) not in allowed]
        wrong += [each for each in write.polls if each.status not in POLLED]
        for answer in wrong:
            yield f"I4: {describe(write)} was answered {answer.status} {answer.code}"
        if len({status for status, _ in write.results if status not in (*OWN_REQUEST, 409)}) > 1:
            yield f"I4: {describe(write)} has contradictory answers: {write.results}"
        for answer in write.repetitions:
            again = write.original[0] if write.original[0] not in OWN_REQUEST else 409
            if answer.status not in (again, 0, 202, 503, 504):
                yield f"I2: {describe(write)} was answered {again}, and {answer.status} to later credentials"


def ended(case: Case) -> Iterator[str]:
    """I13: nothing is applied after what has ended its credentials."""
    ranks = Ranks(case)
    for write in all_writes(case):
        for end in write.credentials.ends if write.credentials else ():
            if ranks.of(write, "applied") > ranks.of(end, "applied") > NEVER:
                yield f"I13: {describe(write)} was applied after {describe(end)}, which ended its credentials"


def rejected_rightly(case: Case) -> Iterator[str]:
    """I4, I6: a write is rejected only because of what was decided before it, and not sent after it was accepted."""
    ranks = Ranks(case)
    for write in all_writes(case):
        row = case.facts.by_id.get(write.id)
        if not row or row["status"] != "rejected" or not write.credentials:
            continue
        if reason_of(write, case) == "credentials_outdated":
            mine = ranks.of(write, "rejected")
            causes = [each for each in write.credentials.ends if NEVER < ranks.of(each, "applied") < mine]
            if not causes:
                yield f"I4: {describe(write)} was rejected although its credentials were valid"
            elif write.accepted is not None and all(write.accepted < each.asked for each in causes):
                yield f"I6: {describe(write)} was rejected because of {describe(causes[0])}, sent after it was accepted"
        elif not (reason_of(write, case) == "note_not_found" and write.kind in NOT_FOUND):
            yield f"I4: {describe(write)} was rejected as {reason_of(write, case)}"


def reads(case: Case) -> Iterator[str]:
    """I13: ended credentials read nothing from then on."""
    for person in case.history.people:
        for use in person.uses:
            over = [each for each in use.credentials.ends if each.is_known_before(use.answer.asked)]
            if use.answer.status == 200 and over:
                yield f"I13: a read was answered after {describe(over[0])} had ended its credentials"
            if use.answer.status not in READ:
                yield f"I4: a read of one's own was answered {use.answer.status} {use.answer.code}"


def accepted(case: Case) -> Iterator[str]:
    """I13: valid credentials are accepted."""
    for person in case.history.people:
        for credentials, answer in person.requests():
            if answer.status == 401 and not any(each.asked < answer.answered for each in all_ends(credentials)):
                yield f"I13: person {person.id} was answered {answer.code} with valid credentials"


def revoked(case: Case) -> Iterator[str]:
    """I13, I7: a revoked token is rejected by the gateway that has answered so, and by all half a minute later."""
    for person in case.history.people:
        for credentials, answer in person.requests():
            write = credentials.revocation
            if not write or write.known is None or not 200 <= answer.status < 300:
                continue
            told = (each.answered for each in write.attempts if (each.status, each.gateway) == (204, answer.gateway))
            if min(told, default=math.inf) < answer.asked:
                yield f"I13: gateway {answer.gateway} has accepted a token after it had answered {describe(write)}"
            late = answer.asked > write.known + KNOWN_EVERYWHERE_SECONDS + SLACK_SECONDS + case.history.lag_seconds
            if late and not is_disturbed(case.history, answer.asked - BEFORE_SECONDS, answer.answered):
                yield f"I7: a token was accepted {answer.asked - write.known:.0f} s after {describe(write)}"


def sign_ins(case: Case) -> Iterator[str]:
    """I13: the last password and name sign in, and no others do; after the deletion none does."""
    for person in case.history.people:
        sets = {"password": person.of_kind("register", "password"), "name": person.of_kind("register", "rename")}
        for attempt in person.sign_ins:
            asked, status = attempt.answer.asked, attempt.answer.status
            later = sets["password"][sets["password"].index(attempt.password) + 1 :]
            later += sets["name"][sets["name"].index(attempt.name) + 1 :]
            later += [person.leave] if person.leave else []
            over = [each for each in later if each.is_known_before(asked)]
            if status == 200 and over:
                yield f"I13: person {person.id} has signed in as before {describe(over[0])}"
            are_set = attempt.password.is_known_before(asked) and attempt.name.is_known_before(asked)
            are_valid = are_set and not any(each.asked < attempt.answer.answered for each in later if each.attempts)
            if status not in (0, 200, 503) and (are_valid or status != 400):
                yield f"I13: person {person.id} could not sign in: {status} {attempt.answer.code}"


def streams(case: Case) -> Iterator[str]:
    """I13: a stream has no change after what has ended its credentials."""
    revisions: dict[tuple[int, int], int] = defaultdict(int)
    for row in case.facts.audit:
        if row["kind"] == "owner":
            place = row["owner_id"], row["transaction"]
            revisions[place] = max(revisions[place], row["revision"])
    for person in case.history.people:
        for stream in person.streams:
            for end in stream.credentials.ends:
                command = case.facts.by_id.get(end.id)
                last = revisions.get((person.id, command["transaction"]), math.inf) if command else math.inf
                if any(revision > last for revision in stream.revisions):
                    yield f"I13: a stream had a change after {describe(end)}"


def streams_end(case: Case) -> Iterator[str]:
    """I7: a stream ends half a minute after its credentials, not counting the time in which something fails."""
    for person in case.history.people:
        for stream in person.streams:
            known = min((end.known for end in all_ends(stream.credentials) if end.known is not None), default=math.inf)
            lasted = undisturbed_seconds(case.history, known, stream.ended or stream.watched)
            if lasted > KNOWN_EVERYWHERE_SECONDS + SLACK_SECONDS + case.history.lag_seconds:
                yield f"I7: a stream of person {person.id} was open {lasted:.0f} s after its credentials had ended"


def deleted(case: Case) -> Iterator[str]:
    """I13: nothing is written for a deleted user, and nothing is left of them; of everybody else it is."""
    ranks = Ranks(case)
    changes = defaultdict[int, list[Any]](list)
    for row in case.facts.audit:
        if row["kind"] in ("insert", "update"):
            changes[row["owner_id"]].append(row)
    for person in case.history.people:
        end = ranks.of(person.leave, "applied") if person.leave else NEVER
        left = [kind for (kind, owner), rows in case.facts.remains.items() if owner == person.id and rows]
        if end > NEVER and left:
            yield f"I13: person {person.id} is deleted, and has left {', '.join(left)}"
        if end == NEVER and person.id and "user" not in left:
            yield f"I1: person {person.id} is gone without a deletion"
        late = (row for row in changes[person.id] if end > NEVER and row["seq"] > ranks.last_seq[end[0]])
        yield from (f"I13: note {row['id']} of person {person.id} was written after the deletion" for row in late)


def own(case: Case) -> Iterator[str]:
    """I10: people see their own notes only, even under the name of a deleted user."""
    for person in case.history.people:
        texts = {write.marker for write in person.writes}
        for use in person.uses:
            for note in use.answer.body if isinstance(use.answer.body, list) else ():
                if note["description"].partition("#")[0] not in texts:
                    yield f"I10: person {person.id} was shown note {note['id']}, which is another's"


class Ranks:
    """The order in which commands were decided."""

    def __init__(self, case: Case) -> None:
        self._commands = case.facts.by_id
        last = {row["transaction"]: row["seq"] for row in case.facts.audit}
        self.last_seq = {place: last[transaction] for transaction, place in case.facts.transactions.items()}
        """The last audited event of the transaction at each place."""

    def of(self, write: PersonalWrite, status: str) -> Rank:
        """The rank of the write's decision; NEVER if it is not decided so."""
        command = self._commands.get(write.id)
        return (command["place"], command["decided"]) if command and command["status"] == status else NEVER


NEVER: Rank = (-1, datetime.min)  # noqa: DTZ901 - compared by its first member


def undisturbed_seconds(history: History, began: float, ended: float) -> float:
    """How much of the time nothing failed or was still recovering."""
    recoveries = dict(enumerate(history.recoveries, start=1))
    disturbed = sorted((each.began, each.ended + recoveries.get(each.round, math.inf)) for each in history.disturbances)
    undisturbed, now = 0.0, began
    for start, end in disturbed:
        undisturbed += max(0.0, min(start, ended) - now)
        now = max(now, end)
    return undisturbed + max(0.0, ended - now)


def all_writes(case: Case) -> Iterator[PersonalWrite]:
    """The writes of all people."""
    for person in case.history.people:
        yield from person.writes


def all_ends(credentials: Credentials) -> list[PersonalWrite]:
    """Everything that has ended the credentials, or was about to."""
    revocation = [credentials.revocation] if credentials.revocation else []
    return [each for each in (*credentials.ends, *revocation) if each.attempts]


def reason_of(write: PersonalWrite, case: Case) -> str | None:
    """Why the write was rejected."""
    outcome = case.facts.outcomes.get(write.id)
    return outcome and outcome["reason"]


def describe(write: PersonalWrite) -> str:
    """The write, described for a violation."""
    note = f" of note {write.note}" if write.note else ""
    return f"{write.kind}{note} by person {write.owner} ({write.id})"


RULES = (
    effects,
    answered,
    ended,
    rejected_rightly,
    reads,
    accepted,
    revoked,
    sign_ins,
    streams,
    streams_end,
    deleted,
    own,
)
