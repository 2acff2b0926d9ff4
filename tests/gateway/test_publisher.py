"""How a backlog becomes messages."""

from gateway.publisher import Backlog
from gateway.replies import Attempt
from shared.contracts import MAX_MESSAGE_BYTES, MAX_MESSAGE_COMMANDS
from tests.commands import create


def backlog_of(*attempts: Attempt) -> Backlog:
    backlog = Backlog()
    for attempt in attempts:
        backlog.add(attempt)
    return backlog


async def test_message_takes_the_oldest_and_no_more_than_its_limit_of_commands() -> None:
    attempts = [Attempt(create()) for _ in range(MAX_MESSAGE_COMMANDS + 1)]
    backlog = backlog_of(*attempts)

    assert backlog.take() == attempts[:MAX_MESSAGE_COMMANDS]
    assert [attempt.handed_over for attempt in attempts] == [True] * MAX_MESSAGE_COMMANDS + [False]
    assert backlog.take() == attempts[MAX_MESSAGE_COMMANDS:]


async def test_message_stays_within_its_limit_of_bytes() -> None:
    backlog = backlog_of(*[Attempt(create(description="x" * 100_000)) for _ in range(30)])

    while backlog:
        assert sum(len(attempt.encoded) + 1 for attempt in backlog.take()) <= MAX_MESSAGE_BYTES


async def test_command_larger_than_a_message_goes_alone() -> None:
    large, small = Attempt(create(description="é" * (MAX_MESSAGE_BYTES // 2 + 1))), Attempt(create())

    assert backlog_of(large, small).take() == [large]
