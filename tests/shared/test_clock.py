"""A service's clock follows Postgres: the best sample counts, and the machine's clock does not."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from shared import clock
from shared.clock import Clock, Sample, elapsed_seconds
from shared.connections import Connections

START = datetime(2026, 1, 1, tzinfo=UTC)


class SystemClock(datetime):
    """The machine's clock, set by the test."""

    ahead = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + cls.ahead


@pytest.fixture
def system_clock(monkeypatch: pytest.MonkeyPatch) -> type[SystemClock]:
    monkeypatch.setattr(clock, "datetime", SystemClock)
    monkeypatch.setattr(SystemClock, "ahead", timedelta())
    return SystemClock


def sample(offset_seconds: float = 0.0, error_seconds: float = 0.001, at: float | None = None) -> Sample:
    """A sample of a Postgres whose clock is this far ahead of the machine's."""
    now = elapsed_seconds()
    seen_at = now if at is None else at
    shown = datetime.now(UTC) + timedelta(seconds=offset_seconds + seen_at - now)
    return Sample(shown, seen_at, error_seconds)


def ahead(tested: Clock) -> float:
    """How far the clock is ahead of the machine's."""
    return round((tested.now() - datetime.now(UTC)).total_seconds(), 2)


async def test_clock_shows_postgres_time_however_the_own_clock_is_set_afterwards(
    connections: Connections, system_clock: type[SystemClock]
) -> None:
    tested = Clock()
    async with connections.acquire() as session:
        await tested.synchronize(session)

    system_clock.ahead = timedelta(days=30)

    assert tested.is_synchronized
    assert abs(ahead(tested)) < 1
    assert round(tested.offset_seconds() / 86_400) == 30


def test_until_postgres_was_seen_the_own_clock_counts(system_clock: type[SystemClock]) -> None:
    system_clock.ahead = timedelta(hours=1)

    assert not Clock().is_synchronized
    assert (ahead(Clock()), Clock().offset_seconds()) == (3600, 0)


def test_slow_sample_does_not_replace_a_quick_one() -> None:
    tested = Clock()
    tested.take(sample(10, error_seconds=0.001))

    tested.take(sample(10.4, error_seconds=0.5))

    assert ahead(tested) == 10


def test_slow_sample_replaces_one_that_is_so_old_that_it_may_have_drifted_further() -> None:
    tested = Clock()
    tested.take(sample(10, error_seconds=0.001, at=elapsed_seconds() - 3600))

    tested.take(sample(10.4, error_seconds=0.5))

    assert ahead(tested) == 10.4


def test_sample_that_contradicts_the_best_one_replaces_it_since_postgres_clock_was_set() -> None:
    tested = Clock()
    tested.take(sample(10, error_seconds=0.001))

    tested.take(sample(20, error_seconds=0.5))

    assert ahead(tested) == 20


def test_wrong_clock_is_logged_once_for_each_change(system_clock: type[SystemClock]) -> None:
    tested = Clock()
    tested.take(sample())

    with capture_logs() as logs:
        for seconds in (4, -4, 6, 7, 6, -6, -6, 0, 0):
            system_clock.ahead = timedelta(seconds=seconds)
            tested.report()

    assert [(log["log_level"], round(log["offset_seconds"])) for log in logs] == [
        ("warning", 6),
        ("warning", -6),
        ("info", 0),
    ]
