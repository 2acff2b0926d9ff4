"""Only what a gateway of the version before does not know is left out."""

from tests.faults.history import Answer, Disturbance, History, Read, Write
from tests.faults.mixed_versions import forget_unknown_requests


def answer(gateway: int, asked: float, status: int, code: str) -> Answer:
    return Answer(gateway, asked, 3.0, asked + 0.5, status, code)


def test_requests_that_a_gateway_of_the_version_before_does_not_know_are_left_out() -> None:
    unknown, later = answer(0, 12, 404, "not_found"), answer(0, 25, 404, "not_found")
    elsewhere, known = answer(1, 12, 422, "validation_failed"), answer(0, 12, 404, "note_not_found")
    history = History(disturbances=[Disturbance("gateway-before", "gateway-1", 10, 1, 20)])
    history.writes = [
        Write(7, "restore", 1, "", None, attempts=[unknown]),
        Write(7, "restore", 1, "", None, attempts=[unknown, later]),
    ]
    history.reads = [Read(7, 1, each) for each in (unknown, elsewhere, known)]

    forget_unknown_requests(history)

    assert [write.attempts for write in history.writes] == [[later]]
    assert [read.answer for read in history.reads] == [elsewhere, known]


def test_unknown_operation_is_no_outcome_of_a_write_so_that_it_is_repeated_at_another_gateway() -> None:
    write = Write(7, "restore", 1, "", "key", attempts=[answer(0, 12, 404, "not_found")])

    assert write.status == "refused"
    assert Write(7, "restore", 1, "", "key", attempts=[answer(0, 12, 404, "note_not_found")]).status == "rejected"
