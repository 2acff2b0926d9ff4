"""Postgres' time: the last sample of Postgres' clock, advanced by this machine's monotonic clock.

Every decision that depends on the time uses it or Postgres' own `now()`, so that a service's wrong clock affects none
(docs/decisions/0026).
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import func, select

from shared.database import Session, Statement
from shared.metrics import CLOCK_OFFSET

OFFSET_LIMIT_SECONDS = 5.0
"""A clock that differs from Postgres' by more than this is reported as wrong."""
DRIFT = 0.0005
"""The maximum rate at which the two clocks may diverge: NTP slews a clock by at most 500 ppm."""
ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A monotonic clock; on Linux it includes the time during which the machine is suspended."""

log = structlog.get_logger()


def elapsed_seconds() -> float:
    """Return the seconds since the machine started."""
    return time.clock_gettime(ELAPSED)


@dataclass(frozen=True, slots=True)
class Sample:
    """A reading of Postgres' clock, with its maximum error."""

    shown: datetime
    seen_at: float
    """In seconds since the machine started."""
    error_seconds: float
    """Half of the round-trip time."""

    def time_at(self, elapsed: float) -> datetime:
        """Return Postgres' time at another moment."""
        return self.shown + timedelta(seconds=elapsed - self.seen_at)

    def error_at(self, elapsed: float) -> float:
        """Return the maximum error at that moment, in seconds."""
        return self.error_seconds + DRIFT * (elapsed - self.seen_at)


class Clock:
    """Postgres' time, from the best sample; the system's time before there is one."""

    def __init__(self) -> None:
        self._sample: Sample | None = None
        self._reported_seconds = 0.0

    @property
    def is_synchronized(self) -> bool:
        """Whether there is a sample of Postgres' clock."""
        return self._sample is not None

    def now(self) -> datetime:
        """Return Postgres' time, regardless of steps of the system's clock."""
        return self._sample.time_at(elapsed_seconds()) if self._sample else datetime.now(UTC)

    def timestamp(self) -> float:
        """Return the same in seconds since the epoch, cheap enough for each request."""
        sample = self._sample
        return sample.shown.timestamp() + elapsed_seconds() - sample.seen_at if sample else time.time()

    def offset_seconds(self) -> float:
        """Return how far the system's clock is ahead of Postgres'; 0 before the first sample."""
        return (datetime.now(UTC) - self.now()).total_seconds() if self._sample else 0.0

    async def synchronize(self, session: Session) -> None:
        """Sample Postgres' clock over the session; raises asyncpg's errors."""
        asked_at = elapsed_seconds()
        [(shown,)] = await CLOCK.fetch(session)
        answered_at = elapsed_seconds()
        self.take(Sample(shown, (asked_at + answered_at) / 2, (answered_at - asked_at) / 2))

    def take(self, sample: Sample) -> None:
        """Keep a sample that is more precise than the current one, or contradicts it: Postgres' clock was set."""
        if self._sample is None:
            self._sample = sample
            return
        error_seconds = self._sample.error_at(sample.seen_at)
        difference = abs((sample.shown - self._sample.time_at(sample.seen_at)).total_seconds())
        if sample.error_seconds <= error_seconds or difference > sample.error_seconds + error_seconds:
            self._sample = sample

    def report(self) -> None:
        """Export the offset; logs a wrong clock once, again if the offset changes, and its recovery."""
        offset = self.offset_seconds()
        CLOCK_OFFSET.set(offset)
        if abs(offset) <= OFFSET_LIMIT_SECONDS and self._reported_seconds:
            log.info("this machine's clock agrees with Postgres' again", offset_seconds=round(offset, 1))
            self._reported_seconds = 0.0
        elif abs(offset) > OFFSET_LIMIT_SECONDS and abs(offset - self._reported_seconds) > OFFSET_LIMIT_SECONDS:
            log.warning(
                "this machine's clock differs from Postgres'",
                remedy="synchronize both machines, by NTP; Inkwell uses Postgres' clock meanwhile",
                offset_seconds=round(offset, 1),
            )
            self._reported_seconds = offset


CLOCK = Statement.compile(select(func.clock_timestamp()))
