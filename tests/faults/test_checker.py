"""The checker finds each broken promise in a made-up history, and nothing in a history without one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.faults.checker import violations
from tests.faults.facts import Facts
from tests.faults.history import Answer, Disturbance, Follow, History, Read, Seen, Write

OWNER = 7


@dataclass
class Story:
    """A made-up history with the database's facts; each step takes a second."""

    history: History = field(default_factory=History)
    facts: Facts = field(default_factory=lambda: Facts([], [], []))
    now: float = 0.0

    def answered(self, status: int, *, seconds: float = 0.5, **members: Any) -> Answer:
        self.now += 1
        return Answer(0, self.now, 4.0, self.now + seconds, status, **members)

    def written(self, kind: str, note: int | None, marker: str, *attempts: Answer, **members: Any) -> Write:
        write = Write(OWNER, kind, note, marker, None, attempts=list(attempts), **members)
        self.history.writes.append(write)
        return write

    def applied(self, note: int, version: int | None, marker: str | None, kind: str = "note.replace") -> None:
        """Adds an applied command to the database, each in its own transaction."""
        number = len(self.facts.commands) + 1
        command = {"id": f"c{number}", "type": kind, "status": "applied", "owner_id": OWNER}
        self.facts.commands.append(command | {"note_id": note, "note_version": version, "marker": marker})
        audit = {"seq": number, "transaction": number, "kind": "command", "id": f"c{number}", "owner_id": OWNER}
        self.facts.audit.append(audit | {"version": version, "description": "applied"})
        self.facts.notes = [row for row in self.facts.notes if row["id"] != note]
        if version:
            self.facts.notes.append({"id": note, "owner_id": OWNER, "version": version, "description": marker})

    def created(self, note: int, marker: str) -> None:
        body = {"id": note, "description": marker, "version": 1}
        self.written("create", None, marker, self.answered(201, body=body, etag='"1"', location=f"/notes/{note}"))
        self.applied(note, 1, marker, "note.create")

    def replaced(self, note: int, version: int, marker: str) -> None:
        body = {"id": note, "description": marker, "version": version}
        self.written("replace", note, marker, self.answered(200, body=body, etag=f'"{version}"'))
        self.applied(note, version, marker)

    def touched(self, note: int, version: int, marker: str) -> None:
        body = {"id": note, "description": marker, "version": version}
        self.written("touch", note, "nothing", self.answered(200, body=body, etag=f'"{version}"'))
        self.applied(note, version, marker, "note.patch")

    def followed(self, *seen: Seen, how: str = "stream") -> Follow:
        follow = Follow(OWNER, how, list(seen), connected=[(0.0, 1000.0)])
        self.history.follows.append(follow)
        return follow

    def seen(self, note: int, revision: int, version: int | None, text: str | None, *, after: float = 0.0) -> Seen:
        """A change that arrives after the time of the last step."""
        return Seen(note, revision, version, text, self.now + 0.5 + after)

    def read(self, note: int, version: int | None, description: str = "a", **members: Any) -> None:
        body = {"description": description}
        answer = self.answered(200, etag=f'"{version}"', body=body) if version else self.answered(404)
        self.history.reads.append(Read(OWNER, note, answer, **members))


def lost(story: Story) -> None:
    story.written("create", None, "b", story.answered(202, body={"id": "x"}, location="/commands/x"))


def lost_after_its_201(story: Story) -> None:
    story.created(2, "b")
    story.facts.commands.pop()
    story.facts.notes.pop()


def applied_twice(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.applied(1, 3, "b")


def touched_into_a_new_version(story: Story) -> None:
    story.touched(1, 2, "a")


def left_alone_by_a_replacement(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.replaced(1, 2, "b")


def written_without_a_change(story: Story) -> None:
    story.touched(1, 1, "a")
    update = {"seq": 8, "transaction": 8, "kind": "update", "id": "1", "owner_id": OWNER, "version": 1}
    story.facts.audit += [update, update]


def shown_another_text_of_an_unchanged_note(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.touched(1, 2, "a")


def touched_against_its_condition(story: Story) -> None:
    story.touched(1, 1, "a")
    story.history.writes[-1].conditions = {"If-Match": '"2"'}


def changed_by_no_command(story: Story) -> None:
    story.facts.notes[0]["version"] = 2


def refused_and_applied(story: Story) -> None:
    story.written("replace", 1, "b", story.answered(503, code="not_accepted"))
    story.applied(1, 2, "b")


def shown_anothers(story: Story) -> None:
    body = {"id": 1, "description": "c", "version": 2}
    story.written("replace", 1, "b", story.answered(200, body=body, etag='"2"'))
    story.applied(1, 2, "b")


def shown_what_is_false(story: Story) -> None:
    write = story.written("replace", 1, "b", story.answered(202, body={"id": "c2"}, location="/commands/c2"))
    rejected = {"status": 404, "headers": {}, "body": {}}
    write.polls.append(story.answered(200, body={"id": "c2", "status": "rejected", "answer": rejected}))
    story.applied(1, 2, "another")


def refused_for_no_reason(story: Story) -> None:
    story.history.reads.append(Read(OWNER, 1, story.answered(401, code="invalid_token")))


def forgotten_at_its_url(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.history.writes[-1].polls.append(story.answered(404, code="command_not_found"))


def not_seen(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.read(1, 1)


def seen_and_gone(story: Story) -> None:
    story.read(1, None)


def overtaken(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.replaced(1, 3, "c")
    first, second = story.facts.commands[-2:]
    first["marker"], second["marker"] = "c", "b"


def overtaken_by_another_notes(story: Story) -> None:
    story.created(2, "b")
    story.created(3, "c")
    first, second = story.facts.audit[-2:]
    first["id"], second["id"] = second["id"], first["id"]


def late(story: Story) -> None:
    story.history.reads.append(Read(OWNER, 1, story.answered(503, seconds=5.5, code="database_unavailable")))


def anothers_read(story: Story) -> None:
    story.read(1, 1, is_trespass=True)


def anothers_changed(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.history.writes[-1].is_trespass = True


def not_accepted_without_postgres(story: Story) -> None:
    story.history.disturbances.append(Disturbance("postgres-kill", "postgres", story.now, ended=story.now + 9))
    story.written("create", None, "b", story.answered(503, code="not_accepted"))


def unread_without_the_broker(story: Story) -> None:
    story.history.disturbances.append(Disturbance("broker-kill", "rabbitmq", story.now, ended=story.now + 9))
    story.history.reads.append(Read(OWNER, 1, story.answered(503, code="database_unavailable")))


def missing(story: Story) -> None:
    story.facts.notes.clear()


def of_another_text(story: Story) -> None:
    story.facts.notes[0]["description"] = "z"


def failed_for_no_reason(story: Story) -> None:
    story.written("create", None, "b", story.answered(500, code="command_failed"))


def rejected_for_no_reason(story: Story) -> None:
    story.written("replace", 1, "b", story.answered(404, code="note_not_found"))


def applied_against_its_condition(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.replaced(1, 3, "c")
    story.history.writes[-1].conditions = {"If-Match": '"1"'}


def refused_although_its_condition_held(story: Story) -> None:
    answer = story.answered(412, code="precondition_failed")
    story.written("replace", 1, "b", answer, conditions={"If-Match": '"1"'})


def refused_in_the_version_that_it_asked_for(story: Story) -> None:
    answer = story.answered(412, code="precondition_failed", etag='"1"')
    story.written("replace", 1, "b", answer, conditions={"If-Match": '"1"'})
    story.replaced(1, 2, "c")


def shown_anothers_at_its_url(story: Story) -> None:
    story.created(2, "b")
    applied = {"status": 201, "headers": {"ETag": '"1"'}, "body": {"id": 1, "description": "a", "version": 1}}
    state = {"id": "c2", "status": "applied", "answer": applied}
    story.history.writes[-1].polls.append(story.answered(200, body=state))


def answered_otherwise_when_repeated(story: Story) -> None:
    story.created(2, "b")
    story.history.writes[-1].key = "k"
    story.history.writes[-1].attempts.append(story.answered(404, code="note_not_found"))


def several(story: Story) -> None:
    """Two new notes and a patch at once."""
    items = [(5, 1), (6, 1), (1, 2)]
    body = {"items": [{"id": note, "version": version} for note, version in items]}
    story.written("batch", 1, "b", story.answered(200, body=body))
    story.applied(0, None, "b", "notes.change")
    for index, (note, version) in enumerate(items):
        story.applied(note, version, f"b#{index}", "note.create" if version == 1 else "note.patch")


def shown_anothers_items(story: Story) -> None:
    several(story)
    answer = story.history.writes[-1].attempts[-1]
    answer.body["items"][0], answer.body["items"][1] = answer.body["items"][1], answer.body["items"][0]


def half_done(story: Story) -> None:
    several(story)
    del story.facts.commands[-2:]


def partly_gone(story: Story) -> None:
    several(story)
    story.facts.notes.pop()


def anothers_listed(story: Story) -> None:
    story.read(1, 1)
    story.history.reads[-1].owner = 8


def decided_twice(story: Story) -> None:
    story.facts.audit.append(story.facts.audit[0] | {"seq": 9})


def deleted_without_a_command(story: Story) -> None:
    story.written("delete", 1, "b", story.answered(503, code="not_accepted"))
    story.applied(1, None, None, "note.delete")


def read_as_never_written(story: Story) -> None:
    story.read(1, 1, "z")


def rejected_since_overtaken(story: Story) -> None:
    accepted = story.answered(202, body={"id": "c3", "issued_at": "now"}, location="/commands/c3")
    story.written("replace", 1, "b", accepted)
    story.written("delete", 1, "c", story.answered(204))
    story.applied(1, None, None, "note.delete")
    story.applied(1, None, None, "note.replace")
    story.facts.commands[-1]["status"] = "rejected"


def cut_off(story: Story) -> None:
    answer = story.answered(0, seconds=2.0, error="RemoteProtocolError")
    story.history.reads.append(Read(OWNER, 1, answer))


def trespass_in_the_end(story: Story) -> None:
    story.applied(1, 2, "b")
    story.facts.commands[-1]["owner_id"] = 8


def crashed(story: Story) -> None:
    story.history.reads.append(Read(OWNER, 1, story.answered(500, code="internal_error")))


def not_counted(story: Story) -> None:
    story.facts.owners.append({"id": OWNER, "revision": 1, "decided": 2})


def written_in_an_old_revision(story: Story) -> None:
    row = {"kind": "owner", "id": str(OWNER), "owner_id": OWNER, "version": None, "description": None}
    story.facts.audit += [row | {"seq": 8, "transaction": 8, "revision": 5}]
    story.facts.audit += [row | {"seq": 9, "transaction": 9, "kind": "insert", "revision": 5}]


def missed(story: Story) -> None:
    story.created(2, "b")
    story.followed(story.seen(1, 1, 1, "a"), how="wait")


def missed_a_deletion(story: Story) -> None:
    seen = story.seen(1, 1, 1, "a")
    story.written("delete", 1, "e", story.answered(204))
    story.applied(1, None, None, "note.delete")
    story.followed(seen)


def kept_an_old_version(story: Story) -> None:
    seen = story.seen(1, 1, 1, "a")
    story.replaced(1, 2, "b")
    story.followed(seen)


def told_in_another_order(story: Story) -> None:
    story.created(2, "b")
    story.followed(story.seen(2, 2, 1, "b"), story.seen(1, 1, 1, "a"))


def told_twice(story: Story) -> None:
    story.followed(story.seen(1, 1, 1, "a"), story.seen(1, 1, 1, "a"))


def gone_for_no_reason(story: Story) -> None:
    story.followed(story.seen(1, 1, 1, "a")).gone.append(story.now)
    story.history.disturbances.append(Disturbance("postgres-kill", "postgres", 0.0, ended=0.5))


def woken_late(story: Story) -> None:
    story.followed(story.seen(1, 1, 1, "a", after=5.0))


def told_of_anothers_note(story: Story) -> None:
    story.followed(story.seen(1, 1, 1, "a")).owner = 8


def refused_to_tell(story: Story) -> None:
    story.followed(story.seen(1, 1, 1, "a")).refusals.append("500 internal_error")


BROKEN = {
    missed: "I12",
    missed_a_deletion: "I12",
    kept_an_old_version: "I12",
    told_in_another_order: "I12",
    told_twice: "I12",
    gone_for_no_reason: "I12",
    woken_late: "I12",
    refused_to_tell: "I12",
    told_of_anothers_note: "I10",
    lost: "I1",
    lost_after_its_201: "I1",
    applied_twice: "I2",
    changed_by_no_command: "I2",
    touched_into_a_new_version: "I2",
    left_alone_by_a_replacement: "I2",
    written_without_a_change: "I2",
    shown_another_text_of_an_unchanged_note: "I4",
    touched_against_its_condition: "I4",
    refused_and_applied: "I3",
    shown_anothers: "I4",
    shown_what_is_false: "I4",
    shown_anothers_items: "I4",
    refused_for_no_reason: "I4",
    forgotten_at_its_url: "I4",
    crashed: "I4",
    missing: "I1",
    of_another_text: "I1",
    failed_for_no_reason: "I1",
    decided_twice: "I2",
    applied_against_its_condition: "I4",
    refused_although_its_condition_held: "I4",
    refused_in_the_version_that_it_asked_for: "I4",
    shown_anothers_at_its_url: "I4",
    answered_otherwise_when_repeated: "I2",
    anothers_listed: "I10",
    half_done: "I2",
    partly_gone: "I1",
    deleted_without_a_command: "I3",
    rejected_for_no_reason: "I4",
    read_as_never_written: "I4",
    rejected_since_overtaken: "I6",
    not_counted: "I6",
    written_in_an_old_revision: "I6",
    cut_off: "I7",
    trespass_in_the_end: "I10",
    not_seen: "I5",
    seen_and_gone: "I5",
    overtaken: "I6",
    overtaken_by_another_notes: "I6",
    late: "I7",
    anothers_read: "I10",
    anothers_changed: "I10",
    not_accepted_without_postgres: "I11",
    unread_without_the_broker: "I11",
}


def good() -> Story:
    """A note is created, replaced in order, read, and deleted; another write is refused without an effect."""
    story = Story()
    story.created(1, "a")
    return story


def test_nothing_is_found_where_nothing_is_broken() -> None:
    story = good()
    several(story)
    story.touched(1, 2, "b#2")
    story.replaced(1, 3, "e")
    story.touched(1, 3, "e")
    story.history.writes[-1].conditions = {"If-Match": '"3"'}
    story.read(1, 3, "e")
    story.written("replace", 1, "c", story.answered(503, code="not_accepted"))
    story.written("create", None, "d", story.answered(504, code="unconfirmed"))
    story.written("delete", 1, "e", story.answered(204))
    story.applied(1, None, None, "note.delete")
    story.read(1, None)
    story.history.reads.append(Read(OWNER, 0, story.answered(200, body=[], etag='"of-an-empty-list"')))

    assert violations(story.history, story.facts) == []


def test_nothing_is_found_where_a_follower_misses_nothing() -> None:
    story = good()
    seen = story.seen(1, 1, 1, "a")
    story.created(2, "b")
    story.written("delete", 1, "e", story.answered(204))
    story.applied(1, None, None, "note.delete")
    story.followed(seen, story.seen(2, 2, 1, "b"), story.seen(1, 3, None, None))
    late = story.followed(story.seen(2, 2, 1, "b", after=60), story.seen(1, 3, None, None, after=60), how="absent")
    late.connected.clear()
    purged = story.followed(story.seen(2, 2, 1, "b"))
    purged.gone.append(story.now)
    story.history.disturbances.append(Disturbance("tombstones-purged", "postgres", 0.0, round=1, ended=0.5))
    story.history.recoveries.append(0.1)

    assert violations(story.history, story.facts) == []


@pytest.mark.parametrize(("began", "is_excused"), [(0.0, True), (500.0, False)])
def test_a_stream_may_be_late_while_something_fails(began: float, *, is_excused: bool) -> None:
    story = good()
    story.followed(story.seen(1, 1, 1, "a", after=5.0))
    story.history.disturbances.append(Disturbance("broker-kill", "rabbitmq", began, round=1, ended=began + 2))
    story.history.recoveries.append(1.0)

    assert bool(violations(story.history, story.facts)) is not is_excused


def test_writes_of_one_transaction_have_no_order_unless_they_are_to_one_note() -> None:
    story = good()
    story.created(2, "b")
    story.created(3, "c")
    first, second = story.facts.audit[-2:]
    first["id"], second["id"], second["transaction"] = second["id"], first["id"], first["transaction"]
    second["owner_id"] = OWNER + 1  # a new owner, as after a registration

    assert violations(story.history, story.facts) == []


@pytest.mark.parametrize(("break_it", "promise"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_promise_is_found(break_it: Callable[[Story], None], promise: str) -> None:
    story = good()
    break_it(story)

    found = violations(story.history, story.facts)

    assert found
    assert {violation.partition(":")[0] for violation in found} >= {promise}
