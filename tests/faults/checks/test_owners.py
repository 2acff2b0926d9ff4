"""What shows or changes another owner's note is found in a made-up history."""

import pytest

from tests.faults.story import Break, Story, good, promises


def anothers_read(story: Story) -> None:
    story.read(1, 1, is_trespass=True)


def anothers_listed(story: Story) -> None:
    story.looked("list", 1).owner = 8


def anothers_in_the_trash(story: Story) -> None:
    story.deleted(1)
    story.looked("trash", 1).owner = 8


def anothers_found(story: Story) -> None:
    story.searched("a", 1).owner = 8


def anothers_exported(story: Story) -> None:
    story.exported(1).owner = 8


def anothers_seen(story: Story) -> None:
    story.read(1, 1).owner = 8


def anothers_changed(story: Story) -> None:
    story.replaced(1, 2, "b", is_trespass=True)


def anothers_restored(story: Story) -> None:
    story.deleted(1)
    story.restored(1, 2, "a", is_trespass=True)


def anothers_changed_unnoticed(story: Story) -> None:
    story.applied(1, 2, "b")
    [row] = [row for row in story.facts.audit if row["kind"] == "command"][-1:]
    row["owner_id"] = 8


def anothers_existence_revealed(story: Story) -> None:
    answer = story.answered(412, code="precondition_failed", etag='"1"')
    story.written("replace", 1, "b", answer, is_trespass=True, conditions={"If-Match": '"2"'})


def told_of_anothers_note(story: Story) -> None:
    story.followed(story.seen(1, 1, 1, "a")).owner = 8


BROKEN = {
    anothers_read: "I10",
    anothers_listed: "I10",
    anothers_in_the_trash: "I10",
    anothers_found: "I10",
    anothers_exported: "I10",
    anothers_seen: "I10",
    anothers_changed: "I10",
    anothers_restored: "I10",
    anothers_changed_unnoticed: "I10",
    anothers_existence_revealed: "I10",
    told_of_anothers_note: "I10",
}


@pytest.mark.parametrize(("break_it", "promise"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_promise_is_found(break_it: Break, promise: str) -> None:
    story = good()
    break_it(story)

    assert promise in promises(story.found)
