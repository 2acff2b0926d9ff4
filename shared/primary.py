"""Tracks the primary: which of the process's sessions are still trusted to be connected to it.

A session that fails, or that has a newer timeline than the others, makes all older ones untrusted: after a failover
they may lead to the former primary, whose rows are stale and whose new writes are lost.
"""

import re
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakKeyDictionary, WeakSet

import asyncpg
import structlog

from shared.database_url import DatabaseUrl

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InternalClientError,  # raised if the server's shutdown message arrives during a statement
)
"""The errors that concern the server, not only the statement."""
TIMELINE_HEADER = "inkwell-timeline"
"""The header of a reply with the timeline of the worker's sessions, from which a gateway learns of a failover."""
# The timeline is part of the WAL file's name, which any role may read on a primary.
IDENTIFY = """
select system_identifier::text, case when not pg_is_in_recovery()
    then ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int end
from pg_control_system()
"""
TIMELINE_PATTERN = "([0-9]{1,20})/([0-9]{1,10})"
_TIMELINE = re.compile(TIMELINE_PATTERN)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Timeline:
    """A timeline of a Postgres cluster; each promotion of a standby begins one with a greater number."""

    system: str
    number: int

    @classmethod
    def parse(cls, text: str) -> "Timeline | None":
        """Return the timeline parsed from the form that `str` returns, or None."""
        found = _TIMELINE.fullmatch(text)
        return cls(found[1], int(found[2])) if found else None

    def __str__(self) -> str:
        return f"{self.system}/{self.number}"

    def is_after(self, other: "Timeline | None") -> bool:
        """Whether this timeline is newer; False for timelines of different clusters."""
        return other is not None and self.system == other.system and self.number > other.number


class FormerPrimaryError(ConnectionError):
    """The server was the primary before another one was promoted."""

    def __init__(self) -> None:
        super().__init__(
            "this server's timeline is older than one that was seen before: it is a former primary. "
            "If an older backup was restored on purpose, restart the services"
        )


class Primary:
    """The state of a URL's primary, shared by all sessions of the process."""

    def __init__(self) -> None:
        self._timelines: WeakKeyDictionary[Session, Timeline | None] = WeakKeyDictionary()
        self._trusted: WeakSet[Session] = WeakSet()
        self.timeline: Timeline | None = None
        """The newest timeline seen; None if no server has reported one."""

    @classmethod
    def of(cls, url: DatabaseUrl) -> "Primary":
        """Return the process's only state of the URL's primary, new if this is the first call."""
        return _primaries.setdefault(url.text, cls())

    def is_trusted(self, session: Session) -> bool:
        """Whether the session is open and still counts as connected to the primary."""
        return session in self._trusted and not session.is_closed()

    def timeline_of(self, session: Session) -> Timeline | None:
        """Return the timeline of a session; None if its server did not report one, or is a former primary."""
        return self._timelines.get(session)

    def distrust(self, session: Session) -> None:
        """Stop trusting a session whose server has failed, and all others on its timeline."""
        timeline = self._timelines.get(session)
        for each in [each for each in self._trusted if self._timelines.get(each) == timeline]:
            self._trusted.discard(each)

    def observe(self, timeline: Timeline | None) -> None:
        """Record a timeline, seen on a session here or reported by a worker.

        A newer one closes all sessions on older timelines, even those in use: they would return stale rows, or wait
        for a commit that never returns.
        """
        self.timeline = self.timeline or timeline
        if timeline and timeline.is_after(self.timeline):
            log.warning("Postgres has failed over; dropping the sessions to the former primary", timeline=str(timeline))
            self.timeline = timeline
            self._close_all()

    def admit(self, session: Session, timeline: Timeline | None) -> None:
        """Trust a new session; raises FormerPrimaryError if its server is a former primary."""
        if timeline and self.timeline and self.timeline.is_after(timeline):
            raise FormerPrimaryError
        self.observe(timeline)
        if timeline and self.timeline and timeline.system != self.timeline.system:
            self._close_all()  # another cluster, such as a restored backup
        self.timeline = timeline or self.timeline
        self._timelines[session] = timeline
        self._trusted.add(session)

    def _close_all(self) -> None:
        for session in list(self._timelines):
            session.terminate()
        self._timelines.clear()
        self._trusted.clear()


_primaries: dict[str, Primary] = {}
"""By URL."""


async def identify(session: Session, timeout_seconds: float) -> Timeline | None:
    """Return the timeline of the session's server; None if the server does not reveal it."""
    try:
        [(system, number)] = await session.fetch(IDENTIFY, timeout=timeout_seconds)
    except asyncpg.PostgresError:  # not every server with Postgres' protocol has a write-ahead log
        return None
    return Timeline(system, number) if number else None
