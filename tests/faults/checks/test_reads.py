"""A read or a page of a state that it cannot have seen is found in a made-up history."""

import pytest

from tests.faults.story import Break, Story, good, promises


def not_seen(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.read(1, 1)


def not_seen_when_a_copy_was_said_to_be_current(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.read(1, 1).answer.status = 304


def not_seen_after_another_read_had_seen_it(story: Story) -> None:
    story.replaced(1, 2, "b").attempts.clear()
    story.read(1, 2, "b")
    story.read(1, 1)


def seen_and_gone(story: Story) -> None:
    story.read(1, None)


def still_seen_after_its_deletion(story: Story) -> None:
    story.deleted(1)
    story.read(1, 1)


def not_seen_in_the_trash(story: Story) -> None:
    story.deleted(1)
    story.read(1, None, is_in_trash=True)


def seen_in_the_trash_after_its_restoration(story: Story) -> None:
    story.deleted(1)
    story.restored(1, 2, "a")
    story.read(1, 1, is_in_trash=True)


def not_seen_after_its_restoration(story: Story) -> None:
    story.deleted(1)
    story.restored(1, 2, "a")
    story.read(1, None)


def read_before_it_was_sent(story: Story) -> None:
    story.read(1, 2, "b")
    story.replaced(1, 2, "b")


def read_as_never_written(story: Story) -> None:
    story.read(1, 1, "z")


def read_with_another_title(story: Story) -> None:
    story.read(1, 1).answer.body["title"] = "z"


def read_in_a_version_that_never_was(story: Story) -> None:
    story.read(1, 5)


def listed_without_a_note(story: Story) -> None:
    story.created(2, "b")
    story.looked("list", 1)


def listed_with_a_deleted_note(story: Story) -> None:
    former = story.text(1)
    story.deleted(1)
    story.shown("list", f"[{former}]")


def listed_in_an_old_version(story: Story) -> None:
    former = story.text(1)
    story.replaced(1, 2, "b")
    story.shown("list", f"[{former}]")


def copy_said_to_be_current(story: Story) -> None:
    former = story.text(1)
    story.replaced(1, 2, "b")
    story.shown("list", f"[{former}]", status=304)


def listed_as_two_states_at_once(story: Story) -> None:
    story.created(2, "b")
    former = story.text(1)
    story.replaced(1, 2, "c")
    story.replaced(2, 2, "d")
    story.shown("list", f"[{former},{story.text(2)}]")


def listed_in_another_order(story: Story) -> None:
    story.created(2, "b")
    story.looked("list", 1, 2, sort="-id")


def listed_by_old_times(story: Story) -> None:
    story.created(2, "b")
    story.replaced(1, 2, "c")
    story.looked("list", 1, 2, sort="updated")


def listed_with_another_title(story: Story) -> None:
    story.shown("list", f"[{story.text(1)}]".replace('"title":"', '"title":"z'))


def listed_beside_its_prefix(story: Story) -> None:
    story.looked("list", 1, prefix="zz")


def listed_before_the_cursor(story: Story) -> None:
    story.created(2, "b")
    story.looked("list", 1, 2, place=("", 1))


def listed_with_too_many(story: Story) -> None:
    story.created(2, "b")
    story.looked("list", 1, 2, limit=1, link='</notes>; rel="next"')


def counted_wrongly(story: Story) -> None:
    story.looked("list", 1, is_counted=True, total="2")


def last_page_that_is_not_the_last(story: Story) -> None:
    story.created(2, "b")
    story.looked("list", 1, limit=1)


def missing_in_the_trash(story: Story) -> None:
    story.deleted(1)
    story.looked("trash")


def listed_in_the_trash_after_its_restoration(story: Story) -> None:
    story.deleted(1)
    former = story.text(1, in_trash=True)
    story.restored(1, 2, "a")
    story.shown("trash", f"[{former}]")


def trash_in_another_order(story: Story) -> None:
    story.created(2, "b")
    story.deleted(1)
    story.deleted(2)
    story.looked("trash", 1, 2)


def version_missing(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.shown("versions", f"[{story.text(1)}]", note=1)


def last_versions_that_are_not_the_last(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.shown("versions", f"[{story.text(1)}]", note=1, limit=1)


def version_with_another_text(story: Story) -> None:
    story.shown("versions", f"[{story.text(1)}]".replace('"a"', '"z"'), note=1)


def versions_not_found(story: Story) -> None:
    story.shown("versions", "", status=404, note=1).answer.code = "note_not_found"


def versions_of_a_deleted_note(story: Story) -> None:
    former = story.text(1)
    story.deleted(1)
    story.shown("versions", f"[{former}]", note=1)


def search_without_a_match(story: Story) -> None:
    story.searched("a")


def search_that_found_another(story: Story) -> None:
    story.created(2, "b")
    story.searched("a", 2)


def search_that_found_the_former_text(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.searched("a", 1)


def search_with_another_total(story: Story) -> None:
    story.searched("a", 1, total=2)


def search_that_found_something_similar_instead(story: Story) -> None:
    story.searched("a", 1, matched="similar")


def export_without_a_note(story: Story) -> None:
    story.created(2, "b")
    story.exported(1)


def export_of_another_revision(story: Story) -> None:
    story.exported(1, revision=5)


def export_of_an_old_state(story: Story) -> None:
    story.exported(1)
    former = story.history.looks.pop().answer.body.decode()
    story.replaced(1, 2, "b")
    story.shown("export", former)


BROKEN = {
    not_seen: "I5",
    not_seen_when_a_copy_was_said_to_be_current: "I5",
    not_seen_after_another_read_had_seen_it: "I5",
    seen_and_gone: "I5",
    still_seen_after_its_deletion: "I5",
    not_seen_in_the_trash: "I5",
    seen_in_the_trash_after_its_restoration: "I5",
    not_seen_after_its_restoration: "I5",
    listed_without_a_note: "I5",
    listed_with_a_deleted_note: "I5",
    listed_in_an_old_version: "I5",
    copy_said_to_be_current: "I5",
    missing_in_the_trash: "I5",
    listed_in_the_trash_after_its_restoration: "I5",
    version_missing: "I4",
    versions_not_found: "I5",
    versions_of_a_deleted_note: "I5",
    search_without_a_match: "I5",
    search_that_found_the_former_text: "I4",
    export_without_a_note: "I4",
    export_of_an_old_state: "I5",
    read_before_it_was_sent: "I4",
    read_as_never_written: "I4",
    read_with_another_title: "I4",
    read_in_a_version_that_never_was: "I4",
    listed_as_two_states_at_once: "I4",
    listed_in_another_order: "I4",
    listed_by_old_times: "I4",
    listed_with_another_title: "I4",
    listed_beside_its_prefix: "I4",
    listed_before_the_cursor: "I4",
    listed_with_too_many: "I4",
    counted_wrongly: "I4",
    last_page_that_is_not_the_last: "I5",
    trash_in_another_order: "I4",
    last_versions_that_are_not_the_last: "I4",
    version_with_another_text: "I4",
    search_that_found_another: "I4",
    search_with_another_total: "I4",
    search_that_found_something_similar_instead: "I5",
    export_of_another_revision: "I4",
}


@pytest.mark.parametrize(("break_it", "promise"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_promise_is_found(break_it: Break, promise: str) -> None:
    story = good()
    break_it(story)

    assert promise in promises(story.found)
