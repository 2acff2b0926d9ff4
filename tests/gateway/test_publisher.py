"""How a backlog becomes messages."""

from gateway.publisher import take
from gateway.replies import Attempt
from shared.contracts import MAX_MESSAGE_BYTES, MAX_MESSAGE_COMMANDS
from tests.commands import create


async def test_message_takes_the_oldest_and_no_more_than_its_limit_of_commands() -> None:
    attempts = [Attempt(create()) for _ in range(MAX_MESSAGE_COMMANDS + 1)]
    backlog = dict.fromkeys(attempts)

    assert take(backlog) == attempts[:MAX_MESSAGE_COMMANDS]
    assert list(backlog) == attempts[MAX_MESSAGE_COMMANDS:]
    assert [attempt.handed_over for attempt in attempts] == [True] * MAX_MESSAGE_COMMANDS + [False]


async def test_message_stays_within_its_limit_of_bytes() -> None:
    backlog = dict.fromkeys(Attempt(create(description="x" * 100_000)) for _ in range(30))

    while backlog:
        assert sum(len(attempt.encoded) + 1 for attempt in take(backlog)) <= MAX_MESSAGE_BYTES


async def test_command_larger_than_a_message_goes_alone() -> None:
    large, small = Attempt(create(description="x" * (MAX_MESSAGE_BYTES + 1))), Attempt(create())

    assert take({large: None, small: None}) == [large]
