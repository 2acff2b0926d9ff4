"""Availability is what clients saw while each fault lasted."""

from tests.faults.availability import NONE, TWO_AT_ONCE, Share, availabilities
from tests.faults.history import Answer, Disturbance, History, Read, Write

OWNER = 7


def answer(asked: float, status: int, *, seconds: float = 0.5, code: str | None = None) -> Answer:
    return Answer(0, asked, 3.0, asked + seconds, status, code)


def written(history: History, *attempts: Answer, polls: tuple[Answer, ...] = ()) -> None:
    history.writes.append(Write(OWNER, "create", None, "text", None, attempts=list(attempts), polls=list(polls)))


def disturbed(history: History, name: str, began: float, ended: float, *, number: int = 1) -> None:
    history.disturbances.append(Disturbance(name, "", began, number, ended))


def test_requests_in_flight_while_a_fault_lasts_count_for_it() -> None:
    history = History(recoveries=[2.0])
    disturbed(history, "postgres-kill", 10, 20)
    written(history, answer(5, 201), answer(9.8, 503, code="not_accepted"))
    written(history, answer(12, 202), answer(25, 201))
    written(history, answer(13, 412), answer(14, 0), polls=(answer(15, 503), answer(16, 200)))
    history.reads.append(Read(OWNER, 1, answer(17, 404)))

    found = availabilities(history)["postgres-kill"]

    assert found.writes == Share(good=2, all=4)
    assert found.reads == Share(good=2, all=3)


def test_list_counts_once_whatever_is_on_it() -> None:
    history = History(recoveries=[2.0])
    disturbed(history, "postgres-kill", 10, 20)
    history.reads += [Read(OWNER, note, answer(17, 200)) for note in range(5)]

    assert availabilities(history)["postgres-kill"].reads == Share(good=1, all=1)


def test_faults_that_overlap_count_for_two_at_once_alone() -> None:
    history = History(recoveries=[2.0])
    disturbed(history, "postgres-kill", 10, 20)
    disturbed(history, "link-cut", 15, 25)
    written(history, answer(22, 201))

    assert {name: found.writes for name, found in availabilities(history).items()} == {TWO_AT_ONCE: Share(1, 1)}


def test_time_until_everything_is_served_again_counts_as_recovery_and_the_rest_as_no_fault() -> None:
    history = History(recoveries=[2.0, 1.0])
    disturbed(history, "link-cut", 10, 20)
    disturbed(history, "link-slow", 30, 40, number=2)
    written(history, answer(21, 503))
    written(history, answer(25, 201))
    written(history, answer(29.8, 503))

    found = availabilities(history)

    assert found["link-cut"].recovering == Share(0, 1)
    assert found[NONE].writes == Share(1, 1)
    assert found["link-slow"].writes == Share(0, 1)


def test_round_from_which_nothing_has_recovered_yet_does_not_count() -> None:
    history = History()
    disturbed(history, "link-cut", 10, 20)
    written(history, answer(12, 201))

    assert not availabilities(history)
