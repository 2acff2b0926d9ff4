"""Decides the promises about dead letters: what an operator's commands did, and what they said."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from tests.faults.checks.case import Case
from tests.faults.clients import POISON
from tests.faults.history import Answer
from tests.faults.keyed_writes import KeyedWrite
from tests.faults.letters import Letters, Operation, is_dead, texts_of

FINAL = ("applied", "rejected")
NOTHING_DONE = re.compile("does not answer|did not accept|queue")
"""In the errors of a command that has printed no results."""
ANSWERS = {0, 200, 201, 202, 410, 500, 503, 504}
OUTCOMES = {"applied": {200, 201, 204}, "rejected": {410}, "failed": {500}}


class Evidence:
    """The commands and the audit, by command and by note."""

    def __init__(self, case: Case) -> None:
        self.letters = Letters(case.history.letters, case.history.operations)
        self.decisions, self._commands = defaultdict(list, case.facts.decisions), case.facts.by_id
        self._outcomes, self.makers = case.facts.outcomes, case.facts.makers
        written = (row["description"] for row in case.facts.audit if row["kind"] in ("insert", "update"))
        self.written = Counter(text for text in written if text and text.startswith(POISON))
        self.changes: dict[int, list[Any]] = defaultdict(list)
        notes = {str(write.note) for write in self.letters.writes}
        for row in case.facts.audit:
            if row["kind"] in ("insert", "update") and row["id"] in notes:
                self.changes[int(row["id"])].append(row)

    def place(self, write: KeyedWrite) -> int | None:
        """The place of the write's last decision among all."""
        command = self._commands.get(write.id)
        return command["place"] if command else None

    def outcome(self, command: str) -> Any:
        """Why the command was rejected or has failed, when it was replayed, and whether it is kept; or None."""
        return self._outcomes.get(command)

    def status(self, write: KeyedWrite) -> str | None:
        """The final status."""
        command = self._commands.get(write.id)
        return command["status"] if command else None

    def first_failure(self, letter: KeyedWrite) -> float:
        """The position of the first failure."""
        return min((row["seq"] for row in self.decisions[letter.id] if row["status"] == "failed"), default=math.inf)


def evidence_of(case: Case) -> tuple[Letters, Evidence]:
    """The letters and what the database says about them."""
    evidence = Evidence(case)
    return evidence.letters, evidence


def kept(case: Case) -> Iterator[str]:
    """I1: no letter is lost, and the other writes are applied."""
    letters, evidence = evidence_of(case)
    for write in letters.writes:
        status = evidence.status(write)
        if status is None and (write.accepted is not None or evidence.decisions[write.id]):
            yield f"I1: {describe(write)} is lost"
        outcome = evidence.outcome(write.id)
        if status == "failed" and not (outcome and outcome["is_kept"]):
            yield f"I1: the command of {describe(write)} is lost"
    for write in letters.others:
        if write.accepted is not None and evidence.status(write) not in (None, "applied"):
            yield f"I1: {describe(write)} is {evidence.status(write)} although nothing is wrong with it"


def once(case: Case) -> Iterator[str]:
    """I2, I3: a letter is applied once or not at all, and its final outcome stays."""
    letters, evidence = evidence_of(case)
    for letter in letters.dead:
        for row in evidence.decisions[letter.id][:-1]:
            if row["status"] != "failed":
                yield f"I2: {describe(letter)} was decided again after it was {row['status']}"
        is_applied = evidence.status(letter) == "applied"
        for text in texts_of(letter):
            if evidence.written[text] > is_applied:
                yield f"I{2 if is_applied else 3}: {describe(letter)} was written {evidence.written[text]} times"


def decided_by_operators(case: Case) -> Iterator[str]:
    """I1: only an operator changes the outcome of a failed command."""
    letters, evidence = evidence_of(case)
    for letter in letters.dead:
        status = evidence.status(letter)
        if status == "applied" and not letters.naming(letter, "replay"):
            yield f"I1: {describe(letter)} is applied, and nobody has replayed it"
        outcome = evidence.outcome(letter.id)
        if status == "rejected" and outcome and outcome["reason"] != "discarded":
            yield f"I4: {describe(letter)} was rejected as {outcome['reason']}"
        elif status == "rejected" and not letters.naming(letter, "discard"):
            yield f"I1: {describe(letter)} is discarded, and nobody has done so"


def printed_truly(case: Case) -> Iterator[str]:
    """I4: what an operator's command printed is true, and tells of every letter."""
    letters, evidence = evidence_of(case)
    by_id = {letter.id: letter for letter in letters.dead}
    for each in letters.operations:
        if each.code not in (None, 0, 1) or "Traceback" in each.errors:
            yield f"I4: {name(each)} ended with {each.code}: {each.errors[-300:]}"
        is_silent = each.code is None or NOTHING_DONE.search(each.errors)
        if each.verb != "list" and not is_silent and each.printed.keys() != set(each.ids):
            yield f"I4: {name(each)} printed nothing of {len(set(each.ids) - each.printed.keys())} letters"
        for command, (result, reason) in each.printed.items() if each.verb != "list" else ():
            if command not in by_id or not is_true(by_id[command], result, reason, evidence):
                outcome = evidence.outcome(command)
                yield f"I4: {name(each)} printed {result} ({reason}) of {command}, whose outcome is {outcome}"


def is_true(letter: KeyedWrite, result: str, reason: str | None, evidence: Evidence) -> bool:
    """Whether the result was true, as far as what came later can tell."""
    status = evidence.status(letter)
    if result == "refused":
        has_changed = any(row["seq"] > evidence.first_failure(letter) for row in evidence.changes[letter.note or 0])
        return has_changed or reason == f"it is {status}, not failed"
    failures = sum(row["status"] == "failed" for row in evidence.decisions[letter.id])
    truths: dict[str, bool] = {
        "applied": status == "applied",
        "discarded": status == "rejected",
        "not failed any more": status in FINAL,
        "failed": failures > 1,
        "not sent": True,
        "not decided yet": True,
    }
    return truths.get(result, False)


def listed(case: Case) -> Iterator[str]:
    """I1: a list has every letter that had failed before and still has, and no others."""
    letters, evidence = evidence_of(case)
    for each in letters.operations:
        if each.verb != "list" or each.code != 0:
            continue
        for letter in letters.dead:
            known = (poll for poll in letter.polls if poll.status == 200 and poll.body["status"] == "failed")
            has_failed = any(poll.answered < each.began for poll in known)
            if has_failed and evidence.status(letter) == "failed" and letter.id not in each.printed:
                yield f"I1: {describe(letter)} was missing in the list"
        for command in each.printed:
            if not any(row["status"] == "failed" for row in evidence.decisions[command]):
                yield f"I4: the list had {command}, which has not failed"


def told(case: Case) -> Iterator[str]:
    """I4, I5: a letter's client is told what the database says, and its final outcome from then on."""
    letters, evidence = evidence_of(case)
    for letter in letters.dead:
        status, final = evidence.status(letter), final_since(letter, letters)
        for answer, reported, http_status in states(letter):
            if reported in FINAL and reported != status:
                yield f"I4: {describe(letter)} was reported as {reported}, but is {status}"
            if reported not in FINAL and answer.asked > final:
                yield f"I5: {describe(letter)} was reported as {reported} after it was {status}"
            if http_status not in OUTCOMES.get(reported, {http_status}):
                yield f"I4: {describe(letter)} is {reported}, and its answer was {http_status}"


def final_since(letter: KeyedWrite, letters: Letters) -> float:
    """The time since which an answer, or an operator's command, has shown the letter's final outcome."""
    shown = (each for each in letters.operations if each.verb != "list" and letter.id in each.printed)
    printed = [each.ended for each in shown if each.printed[letter.id][0] in ("applied", "discarded")]
    return min([*printed, *(answer.answered for answer, told, _ in states(letter) if told in FINAL)], default=math.inf)


def answered(case: Case) -> Iterator[str]:
    """I4: no answers but those that are documented."""
    for write in case.history.letters:
        for answer in (*write.attempts, *write.polls):
            if answer.status not in ANSWERS or answer.code == "internal_error":
                yield f"I4: {describe(write)} was answered {answer.status} {answer.code}"


def states(letter: KeyedWrite) -> Iterator[tuple[Answer, str, int | None]]:
    """Each answer about the letter, with the status that it reports, and the answer's own within it."""
    for poll in letter.polls:
        if poll.status == 200:
            yield poll, poll.body["status"], poll.body["answer"] and poll.body["answer"]["status"]
    of_status = {status: outcome for outcome, statuses in OUTCOMES.items() for status in statuses}
    for attempt in letter.attempts:
        if attempt.is_outcome:
            yield attempt, of_status.get(attempt.status, str(attempt.status)), attempt.status


def superseded(case: Case) -> Iterator[str]:
    """I6: a replay is applied only if nothing but replays of earlier letters has changed its note since."""
    letters, evidence = evidence_of(case)
    order = {write.id: number for number, write in enumerate(letters.writes)}
    for number, letter in enumerate(letters.writes):
        is_forced = any(each.is_forced for each in letters.naming(letter, "replay"))
        if letter.note is None or not is_dead(letter) or is_forced or evidence.status(letter) != "applied":
            continue
        began, ended = evidence.first_failure(letter), evidence.decisions[letter.id][-1]
        for row in evidence.changes[letter.note]:
            maker = evidence.makers.get((letter.note, row["version"]))
            if maker is None or row["transaction"] == ended["transaction"] or not began < row["seq"] < ended["seq"]:
                continue
            its, mine = evidence.outcome(maker["id"]), evidence.outcome(letter.id)
            is_later = order.get(maker["id"], number) > number and its and mine["replayed_at"] != its["replayed_at"]
            if not its or is_later:
                yield f"I6: the replay of {describe(letter)} has undone version {row['version']}, written since"


def in_order(case: Case) -> Iterator[str]:
    """I6: a replay takes its place in its owner's order when it is replayed."""
    letters, evidence = evidence_of(case)
    for letter in letters.dead:
        replays = letters.naming(letter, "replay")
        if evidence.status(letter) != "applied" or not replays:
            continue
        began = min(each.began for each in replays)
        ended = [each.ended for each in replays if each.printed.get(letter.id, ("",))[0] == "applied"]
        place = evidence.place(letter)
        for write in letters.others:
            other = evidence.place(write)
            if place is None or other is None or write.owner != letter.owner:
                continue
            if write.accepted is not None and write.accepted < began and other > place:
                yield f"I6: the replay of {describe(letter)} precedes {describe(write)}, accepted before it"
            if write.asked > min(ended, default=math.inf) and other < place:
                yield f"I6: the replay of {describe(letter)} follows {describe(write)}, sent after its outcome"


def together(case: Case) -> Iterator[str]:
    """I2: letters are discarded together or not at all, even if the command was killed."""
    letters, evidence = evidence_of(case)
    by_id = {letter.id: letter for letter in letters.dead}
    for each in letters.operations:
        if each.verb != "discard":
            continue
        only = [by_id[command] for command in each.ids if len(letters.naming(by_id[command], "discard")) == 1]
        touched = [letter for letter in only if evidence.status(letter) != "applied"]
        for one, other in combinations(touched, 2):
            if transaction_of(one, evidence) != transaction_of(other, evidence):
                yield f"I2: {describe(one)} and {describe(other)} were not discarded together"


def transaction_of(letter: KeyedWrite, evidence: Evidence) -> int | None:
    """The transaction that has discarded the letter."""
    discarded = (row["transaction"] for row in evidence.decisions[letter.id] if row["status"] == "rejected")
    return next(discarded, None)


def name(operation: Operation) -> str:
    """The command, as an operator types it."""
    return f"dead-letters {operation.verb}{' --force' if operation.is_forced else ''}"


def describe(write: KeyedWrite) -> str:
    """The write, described for a violation."""
    note = f" of note {write.note}" if write.note else ""
    return f"{write.kind}{note} ({write.marker}, {write.id})"


RULES = (
    kept,
    once,
    decided_by_operators,
    printed_truly,
    listed,
    told,
    answered,
    superseded,
    in_order,
    together,
)
