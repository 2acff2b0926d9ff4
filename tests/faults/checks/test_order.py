"""A write out of order, or one that its owner's revision does not count, is found in a made-up history."""

import pytest

from tests.faults.checks.case import ids_of
from tests.faults.story import OWNER, Break, Story, good, promises


def overtaken(story: Story) -> None:
    first, second = story.created(2, "b"), story.created(3, "c")
    first.attempts, second.attempts = second.attempts, first.attempts


def overtaken_in_its_transaction(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.replaced(1, 3, "c")
    commands = [row for row in story.facts.audit if row["kind"] == "command"][-2:]
    first, second = (row["transaction"] for row in commands)
    for row in story.facts.audit:
        row["transaction"] = first if row["transaction"] == second else row["transaction"]
    commands[0]["updated_date"], commands[1]["updated_date"] = commands[1]["updated_date"], commands[0]["updated_date"]


def rejected_since_overtaken(story: Story) -> None:
    write = story.written("replace", 1, "b", story.answered(202, body={"id": "x"}, location="/commands/x"), key="k")
    story.deleted(1)
    story.commit(story.command("note.replace", 1, None, "rejected", id=next(iter(ids_of(write)))))


def restored_before_it_was_deleted(story: Story) -> None:
    deletion, restoration = story.deleted(1), story.restored(1, 2, "a")
    deletion.attempts, restoration.attempts = restoration.attempts, deletion.attempts


def not_counted(story: Story) -> None:
    story.facts.owners.append({"id": OWNER, "revision": 1, "decided": 2})


def two_decisions_counted_as_one(story: Story) -> None:
    story.created(2, "b")
    story.commit(story.command("note.replace", 9, None, "rejected"), is_together=True)


def revision_not_raised(story: Story) -> None:
    story.revision -= 1
    story.created(2, "b")


def letters_discarded(story: Story) -> None:
    """Two dead letters, discarded by one transaction."""
    for letter in ("x", "y"):
        story.commit(story.command("note.replace", 1, None, "failed", id=letter))
    letters = [story.command("note.replace", 1, None, "rejected", id=each, http_status=410) for each in ("x", "y")]
    story.commit(*letters)


def discarded_without_raising_the_revision(story: Story) -> None:
    letters_discarded(story)
    story.facts.audit[-1]["revision"] -= 1


def written_in_an_old_revision(story: Story) -> None:
    story.commit(story.row("insert", 2, 1, "b", revision=1))


def buried_in_an_old_revision(story: Story) -> None:
    story.deleted(1)
    next(row for row in story.facts.audit if row["kind"] == "buried")["revision"] = 1


BROKEN = {
    overtaken: "I6",
    overtaken_in_its_transaction: "I6",
    rejected_since_overtaken: "I6",
    restored_before_it_was_deleted: "I6",
    not_counted: "I6",
    two_decisions_counted_as_one: "I6",
    revision_not_raised: "I6",
    discarded_without_raising_the_revision: "I6",
    written_in_an_old_revision: "I6",
    buried_in_an_old_revision: "I6",
}


@pytest.mark.parametrize(("break_it", "promise"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_promise_is_found(break_it: Break, promise: str) -> None:
    story = good()
    break_it(story)

    assert promise in promises(story.found)


def test_letters_that_are_discarded_together_raise_the_revision_once() -> None:
    story = good()
    letters_discarded(story)

    assert story.found == []
