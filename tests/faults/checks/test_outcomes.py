"""A lost write, a second effect, an effect of what was refused: each is found in a made-up history."""

import pytest

from tests.faults.story import Break, Story, good, promises


def lost(story: Story) -> None:
    story.written("create", None, "b", story.answered(202, body={"id": "x"}, location="/commands/x"))


def lost_after_its_201(story: Story) -> None:
    story.created(2, "b")
    del story.facts.audit[-3:]


def lost_from_an_import(story: Story) -> None:
    story.imported([2, 3])
    story.history.writes[-1].lines = 3


def a_deletion_lost(story: Story) -> None:
    story.written("delete", 1, "e", story.answered(204))


def a_restoration_lost(story: Story) -> None:
    story.deleted(1)
    story.restored(1, 2, "a")
    story.deleted(1)
    story.written("restore", 1, "r", story.answered(200, body={"id": 1, "description": "a", "version": 4}, etag='"4"'))


def missing(story: Story) -> None:
    story.facts.notes.clear()


def missing_in_the_trash(story: Story) -> None:
    story.deleted(1)
    story.facts.tombstones.clear()


def still_in_the_trash(story: Story) -> None:
    story.deleted(1)
    [tombstone] = story.facts.tombstones
    story.purged(1)
    story.facts.tombstones = [tombstone]


def of_another_text(story: Story) -> None:
    story.facts.notes[0]["description"] = "z"


def committed_with_another_text(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.rows[1]["description"] = "z"


def committed_with_another_title(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.rows[1]["title"] = "z"


def restored_with_another_text(story: Story) -> None:
    story.deleted(1)
    story.restored(1, 2, "a")
    story.rows[1]["description"] = "z"


def partly_gone(story: Story) -> None:
    story.several()
    story.facts.notes.pop()


def failed_for_no_reason(story: Story) -> None:
    story.written("create", None, "b", story.answered(500, code="command_failed"))


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
    story.commit(story.row("update", 1, 1), story.row("update", 1, 1))


def changed_by_no_command(story: Story) -> None:
    story.facts.notes[0]["version"] = 2


def changed_by_a_transaction_without_a_command(story: Story) -> None:
    story.commit(story.row("update", 1, 2, "z"))


def left_in_another_version(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.rows[1]["version"] = 3


def restored_though_never_deleted(story: Story) -> None:
    story.applied(1, 2, "a", "note.restore")


def restored_in_the_old_version(story: Story) -> None:
    story.deleted(1)
    story.restored(1, 1, "a")


def restored_and_still_deleted(story: Story) -> None:
    story.deleted(1)
    story.restored(1, 2, "a")
    story.facts.audit = [row for row in story.facts.audit if row["kind"] != "unburied"]


def purged_and_still_there(story: Story) -> None:
    story.deleted(1)
    story.purged(1)
    story.facts.audit[-2] |= {"title": "z", "description": "z"}


def deleted_without_a_tombstone(story: Story) -> None:
    story.deleted(1)
    story.facts.audit = [row for row in story.facts.audit if row["kind"] != "buried"]


def half_done(story: Story) -> None:
    story.several()
    story.facts.audit = [row for row in story.facts.audit if row["id"] != "6"]
    story.facts.notes = [row for row in story.facts.notes if row["id"] != 6]


def decided_twice(story: Story) -> None:
    story.commit(dict(next(row for row in story.facts.audit if row["kind"] == "command")))


def answered_otherwise_when_repeated(story: Story) -> None:
    story.created(2, "b", key="k").attempts.append(story.answered(404, code="note_not_found"))


def applied_with_a_key_of_another(story: Story) -> None:
    story.created(2, "b", is_reuse=True, key="k")


def refused_and_applied(story: Story) -> None:
    story.written("replace", 1, "b", story.answered(503, code="not_accepted"))
    story.applied(1, 2, "b")


def a_batch_refused_and_applied(story: Story) -> None:
    story.several().attempts[:] = [story.answered(503, code="not_accepted")]


def rejected_with_a_key_of_another_and_applied(story: Story) -> None:
    story.created(2, "b", is_reuse=True, key="k").attempts[:] = [story.answered(422, code="idempotency_key_reused")]


def deleted_without_a_command(story: Story) -> None:
    story.written("delete", 1, "b", story.answered(503, code="not_accepted"))
    story.applied(1, 0, None, "note.delete")


def purged_without_a_command(story: Story) -> None:
    story.deleted(1)
    story.written("purge", 1, "b", story.answered(404, code="note_not_found"))
    story.applied(1, 0, None, "note.purge")


def restored_without_a_command(story: Story) -> None:
    story.deleted(1)
    story.applied(1, 2, "a", "note.restore")


BROKEN = {
    lost: "I1",
    lost_after_its_201: "I1",
    lost_from_an_import: "I1",
    a_deletion_lost: "I1",
    a_restoration_lost: "I1",
    missing: "I1",
    missing_in_the_trash: "I1",
    still_in_the_trash: "I1",
    of_another_text: "I1",
    committed_with_another_text: "I1",
    committed_with_another_title: "I1",
    restored_with_another_text: "I1",
    partly_gone: "I1",
    failed_for_no_reason: "I1",
    applied_twice: "I2",
    touched_into_a_new_version: "I2",
    left_alone_by_a_replacement: "I2",
    written_without_a_change: "I2",
    changed_by_no_command: "I2",
    changed_by_a_transaction_without_a_command: "I2",
    left_in_another_version: "I2",
    restored_though_never_deleted: "I2",
    restored_in_the_old_version: "I2",
    restored_and_still_deleted: "I2",
    purged_and_still_there: "I2",
    deleted_without_a_tombstone: "I2",
    half_done: "I2",
    decided_twice: "I2",
    answered_otherwise_when_repeated: "I2",
    applied_with_a_key_of_another: "I2",
    refused_and_applied: "I3",
    a_batch_refused_and_applied: "I3",
    rejected_with_a_key_of_another_and_applied: "I3",
    deleted_without_a_command: "I3",
    purged_without_a_command: "I3",
    restored_without_a_command: "I3",
}


@pytest.mark.parametrize(("break_it", "promise"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_promise_is_found(break_it: Break, promise: str) -> None:
    story = good()
    break_it(story)

    assert promise in promises(story.found)


def test_write_that_was_broken_off_before_its_first_answer_may_have_an_effect() -> None:
    story = good()
    story.written("create", None, "b")
    story.applied(2, 1, "b", "note.create")

    assert story.found == []
