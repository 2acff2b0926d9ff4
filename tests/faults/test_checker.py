"""The checker finds nothing in a made-up history in which every promise is kept."""

from functools import partial

import pytest

from tests.faults.checker import RULES, Rule
from tests.faults.checks import (
    accounts,
    dead_letters,
    test_answers,
    test_changes,
    test_order,
    test_outcomes,
    test_owners,
    test_reads,
    test_times,
)
from tests.faults.checks.case import Case, ids_of
from tests.faults.clients import POISON
from tests.faults.evidence import evidence
from tests.faults.history import Disturbance, Read, Stalls
from tests.faults.story import OWNER, good

BREAKS = [
    break_it
    for module in (test_answers, test_changes, test_order, test_outcomes, test_owners, test_reads, test_times)
    for break_it in module.BROKEN
]


# Those of accounts and dead letters have stories of their own.
@pytest.mark.parametrize(
    "rule",
    [rule for rule in RULES if rule not in (*accounts.RULES, *dead_letters.RULES)],
    ids=lambda rule: rule.__name__,
)
def test_every_rule_can_be_broken(rule: Rule) -> None:
    stories = []
    for break_it in BREAKS:
        story = good()
        break_it(story)
        stories.append(Case(story.history, story.settled))

    assert any([*rule(case)] for case in stories)


def test_nothing_is_found_where_nothing_is_broken() -> None:
    story = good()
    story.several()
    story.touched(1, 2, "b#2")
    story.replaced(1, 3, "e")
    story.touched(1, 3, "e", conditions={"If-Match": '"3"'})
    story.read(1, 3, "e")
    story.written("replace", 1, "c", story.answered(503, code="not_accepted"))
    story.written("create", None, "d", story.answered(504, code="unconfirmed"))
    story.deleted(1)
    story.read(1, None)
    story.history.reads.append(Read(OWNER, 0, story.answered(200, body=[], etag='"of-an-empty-list"')))

    assert story.found == []


def test_nothing_is_found_where_a_note_is_deleted_restored_and_purged() -> None:
    story = good()
    story.replaced(1, 2, "b")
    story.deleted(1)
    story.read(1, 2, "b", is_in_trash=True)
    story.read(1, None)
    story.looked("trash", 1)
    story.restored(1, 3, "b", conditions={"If-Match": '"2"'})
    story.read(1, None, is_in_trash=True)
    story.looked("trash")
    story.replaced(1, 4, "c")
    story.deleted(1)
    refused = story.answered(412, code="precondition_failed", etag='"4"')
    story.written("restore", 1, "r", refused, conditions={"If-Match": '"3"'})
    story.purged(1)
    story.written("restore", 1, "r", story.answered(404, code="note_not_found"))
    story.looked("trash")

    assert story.found == []


def test_nothing_is_found_where_pages_are_as_committed() -> None:
    story = good()
    story.created(2, "b")
    story.created(3, "c")
    story.looked("list", 1, 2, 3)
    story.looked("list", 1, 2, limit=2, link='</notes>; rel="next"')
    story.looked("list", 3, limit=2, place=("", 2))
    story.looked("list", 1, 2, limit=2, place=("", 3), is_backwards=True)
    story.looked("list", 3, 2, 1, sort="-updated", is_counted=True, total="3")
    story.replaced(2, 2, "d")
    story.looked("list", 1, 3, 2, sort="updated", status=304)
    story.searched("d", 2)
    story.searched("b")
    story.exported(1, 2, 3)
    story.shown("versions", "", status=404, note=9).answer.code = "note_not_found"

    assert story.found == []


def test_nothing_is_found_where_a_read_has_seen_a_write_that_is_not_answered_yet() -> None:
    story = good()
    early = story.looked("list", 1)
    write = story.replaced(1, 2, "b")
    read = story.read(1, 2, "b")
    late = story.looked("list", 1)
    write.attempts[0].answered = late.answer.answered + 1
    late.answer.asked = read.answer.asked = early.answer.asked = write.asked + 0.1
    early.answer.answered = write.asked + 0.2

    assert story.found == []


def test_nothing_is_found_where_a_follower_misses_nothing() -> None:
    story = good()
    seen = story.seen(1, 1, 1, "a")
    story.created(2, "b")
    story.deleted(1)
    story.followed(seen, story.seen(2, 2, 1, "b"), story.seen(1, 3, None, None))
    late = story.followed(story.seen(2, 2, 1, "b", after=60), story.seen(1, 3, None, None, after=60), how="absent")
    late.connected.clear()
    purged = story.followed(story.seen(2, 2, 1, "b"))
    purged.gone.append(story.now)
    story.history.disturbances.append(Disturbance("tombstones-purged", "postgres", 0.0, round=1, ended=0.5))
    story.history.recoveries.append(0.1)
    story.horizon = 3
    story.commit(story.row("unburied", 1, 1, revision=3))

    assert story.found == []


@pytest.mark.parametrize(("began", "is_excused"), [(0.0, True), (500.0, False)])
def test_a_stream_may_be_late_while_something_fails(began: float, *, is_excused: bool) -> None:
    story = good()
    story.followed(story.seen(1, 1, 1, "a", after=5.0))
    story.history.disturbances.append(Disturbance("broker-kill", "rabbitmq", began, round=1, ended=began + 2))
    story.history.recoveries.append(1.0)

    assert bool(story.found) is not is_excused


@pytest.mark.parametrize(("stalled_at", "is_excused"), [(2.0, True), (20.0, False)])
def test_an_answer_may_be_late_by_the_time_in_which_its_client_was_stalled(
    stalled_at: float, *, is_excused: bool
) -> None:
    story = good()
    story.history.reads.append(Read(OWNER, 1, story.answered(503, seconds=5.5, code="database_unavailable")))
    story.history.stalls.add(stalled_at, stalled_at + 1)

    assert bool(story.found) is not is_excused


@pytest.mark.parametrize(
    ("began", "ended", "seconds"), [(0.0, 9.0, 3.0), (1.5, 4.5, 1.0), (2.0, 4.0, 0.0), (5.0, 5.5, 0.5), (7.0, 9.0, 0.0)]
)
def test_only_the_part_of_a_stall_within_a_request_is_counted(began: float, ended: float, seconds: float) -> None:
    stalls = Stalls()
    for period in ((1.0, 2.0), (4.0, 6.0), (6.0, 6.0)):
        stalls.add(*period)

    assert stalls.within(began, ended) == pytest.approx(seconds)
    assert stalls.longest == pytest.approx(2.0)


def test_writes_of_one_transaction_have_no_order_unless_they_are_to_one_note() -> None:
    story = good()
    story.created(2, "b")
    story.created(3, "c")
    commands = [row for row in story.facts.audit if row["kind"] == "command"][-2:]
    commands[0]["updated_date"], commands[1]["updated_date"] = commands[1]["updated_date"], commands[0]["updated_date"]
    first, second = (row["transaction"] for row in commands)
    for row in story.facts.audit:
        row["transaction"] = first if row["transaction"] == second else row["transaction"]

    assert story.found == []


def test_nothing_is_found_where_housekeeping_erases_a_purged_note_during_other_writes_of_its_owner() -> None:
    story = good()
    story.deleted(1)
    story.purged(1)
    erased = story.facts.audit[-2]
    for write in (partial(story.created, 2, "b"), partial(story.replaced, 2, 2, "c"), partial(story.deleted, 2)):
        before = len(story.facts.audit)
        write()
        for place in reversed(range(before + 1, len(story.facts.audit))):
            story.facts.audit.insert(place, erased | {"transaction": 1000 + before})
    for seq, row in enumerate(story.facts.audit, 1):
        row["seq"] = seq

    assert story.found == []


def test_rows_of_the_audit_that_belong_to_a_violation_are_shown() -> None:
    story = good()
    story.created(2, "b")
    story.commit(story.row("insert", 3, 1, "c", revision=1))
    [violation] = [each for each in story.found if "revision 1" in each]

    first, *rows = evidence(violation, story.settled).splitlines()

    assert first == violation
    assert [line.split()[:2] for line in rows] == [["kind=insert", "id=3"], ["kind=owner", f"id={OWNER}"]]


def test_nothing_is_found_where_an_import_is_repeated() -> None:
    story = good()
    write = story.imported([2, 3], [4, 5])
    write.attempts.insert(0, story.answered(0, error="Interrupted", seconds=9.0))

    assert story.found == []


def test_nothing_is_found_where_an_operator_has_replayed_a_failed_write() -> None:
    story = good()
    write = story.written("create", None, "b", story.answered(500, code="command_failed"), key="k")
    [command] = ids_of(write)
    story.commit(story.command("note.create", None, None, "failed", id=command))
    write.marker = f"{POISON} b"
    story.commit(
        story.command("note.create", 2, 1, id=command, body=f'{{"description": "{write.marker}"}}'),
        story.row("insert", 2, 1, write.marker),
    )
    write.attempts.append(story.answered(201, body={"id": 2, "description": write.marker, "version": 1}, etag='"1"'))

    assert story.found == []


@pytest.mark.parametrize("is_rolled_back", [True, False])
def test_version_of_a_batch_may_be_missing_only_after_workers_of_the_version_before(*, is_rolled_back: bool) -> None:
    story = good()
    story.several()
    story.replaced(1, 3, "c")
    texts = [story.settled.states[OWNER].texts[1, version] for version in (3, 1)]
    story.shown("versions", f"[{','.join(texts)}]", note=1)
    if is_rolled_back:
        story.history.disturbances.append(Disturbance("rollback", "all", 0.0, ended=1.0))

    assert bool(story.found) is not is_rolled_back
