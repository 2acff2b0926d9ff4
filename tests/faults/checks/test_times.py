"""A late answer, or one that is refused for want of a server that it does not need, is found in a made-up history."""

import pytest

from tests.faults.history import Disturbance, Read
from tests.faults.story import OWNER, Break, Story, good, promises


def late(story: Story) -> None:
    story.history.reads.append(Read(OWNER, 1, story.answered(503, seconds=5.5, code="database_unavailable")))


def a_page_late(story: Story) -> None:
    story.looked("list", 1)
    story.history.looks[-1].answer.answered += 5.5


def cut_off(story: Story) -> None:
    story.history.reads.append(Read(OWNER, 1, story.answered(0, seconds=2.0, error="RemoteProtocolError")))


def not_accepted_without_postgres(story: Story) -> None:
    story.history.disturbances.append(Disturbance("postgres-kill", "postgres", story.now, ended=story.now + 9))
    story.written("create", None, "b", story.answered(503, code="not_accepted"))


def unread_without_the_broker(story: Story) -> None:
    story.history.disturbances.append(Disturbance("broker-kill", "rabbitmq", story.now, ended=story.now + 9))
    story.history.reads.append(Read(OWNER, 1, story.answered(503, code="database_unavailable")))


def a_page_unread_without_the_broker(story: Story) -> None:
    story.history.disturbances.append(Disturbance("broker-kill", "rabbitmq", story.now, ended=story.now + 9))
    story.shown("list", "", status=503).answer.code = "database_unavailable"


BROKEN = {
    late: "I7",
    a_page_late: "I7",
    cut_off: "I7",
    not_accepted_without_postgres: "I11",
    unread_without_the_broker: "I11",
    a_page_unread_without_the_broker: "I11",
}


@pytest.mark.parametrize(("break_it", "promise"), BROKEN.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_broken_promise_is_found(break_it: Break, promise: str) -> None:
    story = good()
    break_it(story)

    assert promise in promises(story.found)
