"""The checks of dead letters find each broken promise in a made-up history, and nothing in a history without one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.faults.checks import dead_letters
from tests.faults.checks.case import Case
from tests.faults.facts import Facts
from tests.faults.history import Answer, History
from tests.faults.keyed_writes import KeyedWrite
from tests.faults.letters import Operation

OWNER, NOTE = 7, 1
COLUMNS = (
    *("seq", "transaction", "kind", "id", "owner_id", "version", "title", "description", "revision"),
    *("created_date", "updated_date", "deleted_date", "type", "status", "http_status", "note_id", "body"),
)


@dataclass
class Story:
    """A made-up history of letters with the database's facts; each step takes a second."""

    history: History = field(default_factory=History)
    facts: Facts = field(default_factory=lambda: Facts([], []))
    now: float = 0.0

    def answered(self, status: int, body: Any = None) -> Answer:
        self.now += 1
        return Answer(0, self.now, 3.0, self.now + 0.5, status, None, body)

    def wrote(self, kind: str, marker: str, note: int | None = None) -> KeyedWrite:
        """A write that is accepted."""
        write = KeyedWrite(OWNER, kind, note, marker, f"key {self.now}")
        write.attempts.append(self.answered(202))
        self.history.letters.append(write)
        return write

    def decided(self, write: KeyedWrite, status: str, *, version: int | None = None, replay: Any = None) -> None:
        """Adds a decision to the database, in a transaction of its own; a version is one of the write's note."""
        seq = len(self.facts.audit) + 1
        decided = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seq)
        row = dict.fromkeys(COLUMNS) | {"seq": seq, "transaction": seq, "owner_id": OWNER, "version": version}
        command = {"kind": "command", "id": write.id, "status": status, "updated_date": decided}
        self.facts.audit.append(row | command | {"type": f"note.{write.kind}", "note_id": write.note})
        if status == "applied":
            note = {"seq": seq + 1, "kind": "update", "id": str(write.note or 100 + seq), "description": write.marker}
            self.facts.audit.append(row | note)
        outcome = {"reason": "discarded" if status == "rejected" else None, "is_kept": status == "failed"}
        self.facts.outcomes.pop(write.id, None)
        if status != "applied" or replay:
            self.facts.outcomes[write.id] = outcome | {"replayed_at": replay}

    def decision(self, write: KeyedWrite) -> dict[str, Any]:
        """The audit of the write's last decision."""
        found: dict[str, Any] = [row for row in self.facts.audit if row["id"] == write.id][-1]
        return found

    @property
    def found(self) -> list[str]:
        """What the checks of dead letters find."""
        case = Case(self.history, self.facts)
        return [each for rule in dead_letters.RULES for each in rule(case)]

    def operated(self, verb: str, *results: str, ids: list[str], is_forced: bool = False) -> Operation:
        """A command that has printed these results."""
        self.now += 1
        operation = Operation(verb, ids, self.now, is_forced, self.now + 0.5, 0)
        reason = "note 1 has changed since" if "refused" in results else None
        operation.printed = {each: (result, reason) for each, result in zip(ids, results, strict=False)}
        self.history.operations.append(operation)
        return operation

    def told(self, write: KeyedWrite, status: str, http_status: int | None = None) -> None:
        """A poll of the write."""
        answer = {"status": http_status, "headers": {}, "body": None} if http_status else None
        write.polls.append(self.answered(200, {"id": write.id, "status": status, "answer": answer}))


@dataclass
class Post(Story):
    """A note, and two letters that would change it, which have failed."""

    def __post_init__(self) -> None:
        note = self.wrote("replace", "text", NOTE)
        self.decided(note, "applied", version=2)
        self.letter, self.second = (self.wrote("replace", f"poison {number}", NOTE) for number in (1, 2))
        for letter in (self.letter, self.second):
            self.decided(letter, "failed")
            self.told(letter, "failed", 500)

    def replayed(self) -> Operation:
        operation = self.operated("replay", "applied", ids=[self.letter.id])
        self.decided(self.letter, "applied", version=3, replay=self.now)
        self.told(self.letter, "applied", 200)
        return operation

    def discarded(self) -> Operation:
        operation = self.operated("discard", "discarded", ids=[self.letter.id])
        self.decided(self.letter, "rejected")
        self.told(self.letter, "rejected", 410)
        return operation


def lost(story: Post) -> None:
    story.facts.audit.remove(story.decision(story.letter))


def lost_command(story: Post) -> None:
    story.facts.outcomes[story.letter.id]["is_kept"] = False


def another_write_failed(story: Post) -> None:
    story.decided(story.wrote("create", "text"), "failed")


def applied_twice(story: Post) -> None:
    story.replayed()
    story.decided(story.letter, "applied", version=4, replay=story.now)


def written_twice(story: Post) -> None:
    story.replayed()
    story.facts.audit.append(story.facts.audit[-1] | {"seq": 99})


def written_although_discarded(story: Post) -> None:
    story.discarded()
    change = dict.fromkeys(COLUMNS) | {"seq": 99, "transaction": 99, "kind": "update", "id": "1", "owner_id": OWNER}
    story.facts.audit.append(change | {"version": 3, "description": story.letter.marker})


def applied_after_it_was_discarded(story: Post) -> None:
    story.discarded()
    story.operated("replay", "refused", ids=[story.letter.id])
    story.decided(story.letter, "applied", version=3, replay=story.now)


def applied_without_a_replay(story: Post) -> None:
    story.decided(story.letter, "applied", version=3)


def discarded_by_nobody(story: Post) -> None:
    story.decided(story.letter, "rejected")


def rejected_for_another_reason(story: Post) -> None:
    story.replayed()
    story.decision(story.letter)["status"] = "rejected"
    story.facts.outcomes[story.letter.id]["reason"] = "note_not_found"


def said_to_be_applied(story: Post) -> None:
    story.operated("replay", "applied", ids=[story.letter.id])


def said_to_be_discarded(story: Post) -> None:
    story.operated("discard", "discarded", ids=[story.letter.id])


def said_to_have_failed_again(story: Post) -> None:
    story.operated("replay", "failed", ids=[story.letter.id])


def refused_although_nothing_has_changed(story: Post) -> None:
    story.operated("replay", "refused", ids=[story.letter.id])


def said_nothing(story: Post) -> None:
    story.operated("replay", ids=[story.letter.id])


def crashed(story: Post) -> None:
    story.operated("list", ids=[]).errors = "Traceback (most recent call last): …"
    story.history.operations[-1].printed = {each.id: ("failed", None) for each in (story.letter, story.second)}


def not_listed(story: Post) -> None:
    story.operated("list", "failed", ids=[story.letter.id])


def listed_another(story: Post) -> None:
    ids = [write.id for write in story.history.letters]
    story.operated("list", *["failed"] * len(ids), ids=ids)


def told_a_lie(story: Post) -> None:
    story.told(story.letter, "applied", 200)


def told_that_it_has_failed_after_its_replay(story: Post) -> None:
    story.replayed()
    story.told(story.letter, "failed", 500)


def told_that_it_has_failed_after_it_was_said_to_be_discarded(story: Post) -> None:
    story.discarded()
    story.letter.polls.pop()
    story.told(story.letter, "failed", 500)


def discarded_as_not_found(story: Post) -> None:
    story.discarded()
    story.told(story.letter, "rejected", 404)


def answered_strangely(story: Post) -> None:
    story.letter.polls.append(story.answered(404))


def undone(story: Post) -> None:
    story.decided(story.wrote("replace", "text 2", NOTE), "applied", version=3)
    story.operated("replay", "applied", ids=[story.letter.id])
    story.decided(story.letter, "applied", version=4, replay=story.now)


def undone_a_later_replay(story: Post) -> None:
    story.operated("replay", "applied", ids=[story.second.id])
    story.decided(story.second, "applied", version=3, replay=story.now)
    story.operated("replay", "applied", ids=[story.letter.id])
    story.decided(story.letter, "applied", version=4, replay=story.now)


def replayed_too_early(story: Post) -> None:
    write = story.wrote("create", "text 2")
    story.replayed()
    story.decided(write, "applied", version=1)


def replayed_too_late(story: Post) -> None:
    operation = story.operated("replay", "applied", ids=[story.letter.id])
    story.decided(story.wrote("create", "text 2"), "applied", version=1)
    story.decided(story.letter, "applied", version=3, replay=operation.began)


def discarded_in_part(story: Post) -> None:
    story.operated("discard", ids=[story.letter.id, story.second.id]).code = None
    story.decided(story.letter, "rejected")


BROKEN = {
    lost: "I1",
    lost_command: "I1",
    another_write_failed: "I1",
    applied_twice: "I2",
    written_twice: "I2",
    written_although_discarded: "I3",
    applied_after_it_was_discarded: "I2",
    applied_without_a_replay: "I1",
    discarded_by_nobody: "I1",
    rejected_for_another_reason: "I4",
    said_to_be_applied: "I4",
    said_to_be_discarded: "I4",
    said_to_have_failed_again: "I4",
    refused_although_nothing_has_changed: "I4",
    said_nothing: "I4",
    crashed: "I4",
    not_listed: "I1",
    listed_another: "I4",
    told_a_lie: "I4",
    told_that_it_has_failed_after_its_replay: "I5",
    told_that_it_has_failed_after_it_was_said_to_be_discarded: "I5",
    discarded_as_not_found: "I4",
    answered_strangely: "I4",
    undone: "I6",
    undone_a_later_replay: "I6",
    replayed_too_early: "I6",
    replayed_too_late: "I6",
    discarded_in_part: "I2",
}


def test_nothing_is_found_where_nothing_is_broken() -> None:
    story = Post()
    story.operated("list", "failed", "failed", ids=[story.letter.id, story.second.id])
    story.operated("replay", "failed", ids=[story.letter.id])
    story.decided(story.letter, "failed", replay=story.now)
    story.operated("replay", ids=[story.letter.id]).code = None
    story.replayed()
    write = story.wrote("replace", "text 2", NOTE)
    story.decided(write, "applied", version=4)
    story.operated("replay", "refused", ids=[story.second.id])
    story.operated("replay", "applied", ids=[story.second.id], is_forced=True)
    story.decided(story.second, "applied", version=5, replay=story.now)
    third, fourth = (story.wrote("create", f"poison {number}") for number in (3, 4))
    for letter in (third, fourth):
        story.decided(letter, "failed")
        story.told(letter, "failed", 500)
    story.operated("discard", "discarded", "discarded", ids=[third.id, fourth.id])
    for letter in (third, fourth):
        story.decided(letter, "rejected")
        story.told(letter, "rejected", 410)
    story.facts.audit[-1]["transaction"] = story.facts.audit[-2]["transaction"]

    assert story.found == []


def test_the_letters_of_one_note_may_be_replayed_one_after_the_other() -> None:
    story = Post()
    story.replayed()
    story.operated("replay", "applied", ids=[story.second.id])
    story.decided(story.second, "applied", version=4, replay=story.now)

    assert story.found == []


@pytest.mark.parametrize(("break_it", "promise"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_promise_is_found(break_it: Callable[[Post], None], promise: str) -> None:
    story = Post()
    break_it(story)

    found = story.found

    assert found
    assert {violation.partition(":")[0] for violation in found} >= {promise}
