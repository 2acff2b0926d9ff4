"""A change that a follower misses, or gets late or in another order, is found in a made-up history."""

import pytest

from tests.faults.history import Disturbance
from tests.faults.story import Break, Story, good, promises


def missed(story: Story) -> None:
    story.created(2, "b")
    story.followed(story.seen(1, 1, 1, "a"), how="wait")


def missed_a_deletion(story: Story) -> None:
    seen = story.seen(1, 1, 1, "a")
    story.deleted(1)
    story.followed(seen)


def missed_a_restoration(story: Story) -> None:
    story.deleted(1)
    seen = story.seen(1, 2, None, None)
    story.restored(1, 3, "a")
    story.followed(seen, how="wait")


def kept_an_old_version(story: Story) -> None:
    seen = story.seen(1, 1, 1, "a")
    story.replaced(1, 2, "b")
    story.followed(seen)


def told_late_what_was_passed_over(story: Story) -> None:
    story.created(2, "b")
    story.created(3, "c")
    passed_by = story.seen(3, 3, 1, "c")
    story.replaced(2, 2, "d")
    story.followed(story.seen(1, 1, 1, "a"), passed_by, story.seen(2, 4, 2, "d"), how="wait")


def told_of_a_change_that_never_was(story: Story) -> None:
    story.created(2, "b")
    story.followed(story.seen(1, 1, 1, "a"), story.seen(2, 2, 1, "b"), story.seen(2, 3, 1, "b"), how="wait")


def told_of_another_version(story: Story) -> None:
    story.replaced(1, 2, "b")
    story.followed(story.seen(1, 1, 2, "b"), story.seen(1, 2, 2, "b"), how="wait")


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


def woken_late_long_after_a_stall(story: Story) -> None:
    story.followed(story.seen(1, 1, 1, "a", after=5.0))
    story.history.stalls.add(30.0, 60.0)


def refused_to_tell(story: Story) -> None:
    story.followed(story.seen(1, 1, 1, "a")).refusals.append("500 internal_error")


def purged_without_a_trace(story: Story) -> None:
    story.deleted(1)
    story.commit(story.row("unburied", 1, 1, revision=2))


def purged_with_too_low_a_horizon(story: Story) -> None:
    story.deleted(1)
    story.horizon = 1
    story.commit(story.row("unburied", 1, 1, revision=2))


BROKEN = {
    missed: "I12",
    missed_a_deletion: "I12",
    missed_a_restoration: "I12",
    kept_an_old_version: "I12",
    told_late_what_was_passed_over: "I12",
    told_of_a_change_that_never_was: "I12",
    told_of_another_version: "I12",
    told_in_another_order: "I12",
    told_twice: "I12",
    gone_for_no_reason: "I12",
    woken_late: "I12",
    woken_late_long_after_a_stall: "I12",
    refused_to_tell: "I12",
    purged_without_a_trace: "I12",
    purged_with_too_low_a_horizon: "I12",
}


@pytest.mark.parametrize(("break_it", "promise"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_promise_is_found(break_it: Break, promise: str) -> None:
    story = good()
    break_it(story)

    assert promise in promises(story.found)
