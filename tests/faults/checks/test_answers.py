"""An untrue answer to a write is found in a made-up history."""

import pytest

from tests.faults.checks.case import ids_of
from tests.faults.history import Answer, Read, Write
from tests.faults.story import OWNER, Break, Story, good, promises


def shown_anothers(story: Story) -> None:
    story.replaced(1, 2, "b").attempts[0].body["description"] = "c"


def shown_another_version(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.replaced(1, 3, "c").attempts[0].etag = '"2"'


def restored_and_shown_another_text(story: Story) -> None:
    story.deleted(1)
    story.restored(1, 2, "a").attempts[0].body["description"] = "z"


def shown_another_text_of_an_unchanged_note(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.touched(1, 2, "a")


def shown_anothers_items(story: Story) -> None:
    items = story.several().attempts[-1].body["items"]
    items[0], items[1] = items[1] | {}, items[0] | {}


def told_of_fewer_items(story: Story) -> None:
    story.several().attempts[-1].body = {"items": [{"status": 201, "id": 5, "version": 1}]}


def told_that_fewer_lines_are_imported(story: Story) -> None:
    story.imported([2, 3]).attempts[-1].body[-1]["end"]["imported"] = 1


def told_of_another_outcome(story: Story) -> None:
    body = {"id": "c2", "issued_at": "now", "status": "pending", "answer": None}
    write = story.written("touch", 1, "b", story.answered(202, body=body, location="/commands/c2"))
    rejected = {"status": 404, "headers": {}, "body": {}}
    write.polls.append(story.answered(200, body={"id": "c2", "status": "rejected", "answer": rejected}))
    story.applied(1, 2, "another")


def crashed(story: Story) -> None:
    story.history.reads.append(Read(OWNER, 1, story.answered(500, code="internal_error")))


def refused_for_no_reason(story: Story) -> None:
    story.history.reads.append(Read(OWNER, 1, story.answered(401, code="invalid_token")))


def a_page_refused_for_no_reason(story: Story) -> None:
    story.shown("list", "null", status=404)


def forgotten_at_its_url(story: Story) -> None:
    story.replaced(1, 2, "b").polls.append(story.answered(404, code="command_not_found"))


def shown_anothers_at_its_url(story: Story) -> None:
    applied = {"status": 201, "headers": {"ETag": '"1"'}, "body": {"id": 1, "description": "a", "version": 1}}
    write = story.created(2, "b")
    write.polls.append(story.answered(200, body={"id": "c2", "status": "applied", "answer": applied}))


def touched_against_its_condition(story: Story) -> None:
    accepted(story, story.touched(1, 1, "a", conditions={"If-Match": '"2"'}))


def applied_against_its_condition(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.replaced(1, 3, "c", conditions={"If-Match": '"1"'})


def deleted_against_its_condition(story: Story) -> None:
    accepted(story, story.deleted(1, conditions={"If-Match": '"2"'}))


def restored_against_its_condition(story: Story) -> None:
    story.deleted(1)
    accepted(story, story.restored(1, 2, "a", conditions={"If-Match": '"2"'}))


def purged_against_its_condition(story: Story) -> None:
    story.deleted(1)
    accepted(story, story.purged(1, conditions={"If-Match": '"2"'}))


def accepted(story: Story, write: Write) -> None:
    """The write's first answer has the id of the last command, which is how the checker knows it."""
    last = [row for row in story.facts.audit if row["kind"] == "command"][-1]
    body = {"id": last["id"], "issued_at": "now", "status": "pending", "answer": None}
    write.attempts.insert(0, Answer(0, write.asked, 4.0, write.asked + 0.1, 202, body=body))


def refused_although_its_condition_held(story: Story) -> None:
    answer = story.answered(412, code="precondition_failed")
    story.written("replace", 1, "b", answer, conditions={"If-Match": '"1"'})


def restoration_refused_although_its_condition_held(story: Story) -> None:
    story.deleted(1)
    answer = story.answered(412, code="precondition_failed", etag='"2"')
    story.written("restore", 1, "b", answer, conditions={"If-Match": '"1"'})


def refused_in_the_version_that_it_asked_for(story: Story) -> None:
    answer = story.answered(412, code="precondition_failed", etag='"1"')
    story.written("replace", 1, "b", answer, conditions={"If-Match": '"1"'})
    story.replaced(1, 2, "c")


def rejected_for_no_reason(story: Story) -> None:
    story.written("replace", 1, "b", story.answered(404, code="note_not_found"))


def rejected_before_the_deletion(story: Story) -> None:
    write = story.written("replace", 1, "b", story.answered(404, code="note_not_found"), key="k")
    row = story.command("note.replace", 1, None, "rejected", id=next(iter(ids_of(write))))
    story.commit(row)
    story.deleted(1)


def restoration_rejected_for_no_reason(story: Story) -> None:
    story.deleted(1)
    story.written("restore", 1, "b", story.answered(404, code="note_not_found"))


def rejected_without_a_condition(story: Story) -> None:
    story.written("replace", 1, "b", story.answered(412, code="precondition_failed", etag='"2"'))


def answered_to_a_key_of_another(story: Story) -> None:
    answer = story.answered(404, code="note_not_found")
    story.written("replace", 1, "b", answer, key="k", is_reuse=True)


BROKEN = {
    shown_anothers: "I4",
    shown_another_version: "I4",
    restored_and_shown_another_text: "I4",
    shown_another_text_of_an_unchanged_note: "I4",
    shown_anothers_items: "I4",
    told_of_fewer_items: "I4",
    told_that_fewer_lines_are_imported: "I4",
    told_of_another_outcome: "I4",
    crashed: "I4",
    refused_for_no_reason: "I4",
    a_page_refused_for_no_reason: "I4",
    forgotten_at_its_url: "I4",
    shown_anothers_at_its_url: "I4",
    touched_against_its_condition: "I4",
    applied_against_its_condition: "I4",
    deleted_against_its_condition: "I4",
    restored_against_its_condition: "I4",
    purged_against_its_condition: "I4",
    refused_although_its_condition_held: "I4",
    restoration_refused_although_its_condition_held: "I4",
    refused_in_the_version_that_it_asked_for: "I4",
    rejected_for_no_reason: "I4",
    rejected_before_the_deletion: "I4",
    restoration_rejected_for_no_reason: "I4",
    rejected_without_a_condition: "I4",
    answered_to_a_key_of_another: "I4",
}


@pytest.mark.parametrize(("break_it", "promise"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_promise_is_found(break_it: Break, promise: str) -> None:
    story = good()
    break_it(story)

    assert promise in promises(story.found)
