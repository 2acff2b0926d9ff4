"""What a process knows of the primary: which of its sessions are still trusted to be there.

A session that fails, or that turns out to be at a newer timeline than the others, ends the trust in all older ones:
after a failover they may lead to the former primary, which shows what it had and takes what nobody will see.
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
    asyncpg.InternalClientError,  # the driver, where a server's farewell meets a statement
)
"""Errors that say something of the server, and not only of the statement."""
TIMELINE_HEADER = "inkwell-timeline"
"""Of a reply: where the worker that sends it has its sessions, for a gateway that has not heard of a failover."""
# The timeline is in the name of the write-ahead log's file, which any role may ask for, but a standby does not tell.
IDENTIFY = """
select system_identifier::text, case when not pg_is_in_recovery()
    then ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int end
from pg_control_system()
"""
_TIMELINE = re.compile("([0-9]{1,20})/([0-9]{1,10})")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Timeline:
    """A history of a cluster's writes; each promotion of a standby begins one with a greater number."""

    system: str
    number: int

    @classmethod
    def parse(cls, text: str) -> "Timeline | None":
        """Return what `str` has made of one, or None."""
        found = _TIMELINE.fullmatch(text)
        return cls(found[1], int(found[2])) if found else None

    def __str__(self) -> str:
        return f"{self.system}/{self.number}"

    def is_after(self, other: "Timeline | None") -> bool:
        """Whether this one has begun later; of another cluster's nobody can say."""
        return other is not None and self.system == other.system and self.number > other.number


class FormerPrimaryError(ConnectionError):
    """The server was the primary before another one was promoted."""

    def __init__(self) -> None:
        super().__init__(
            "this server is on an older timeline than another one that has been seen: a former primary. "
            "If an older copy was restored on purpose, restart the services"
        )


class Primary:
    """The primary that a URL leads to, as all sessions of the process have seen it."""

    def __init__(self) -> None:
        self._timelines: WeakKeyDictionary[Session, Timeline | None] = WeakKeyDictionary()
        self._trusted: WeakSet[Session] = WeakSet()
        self.timeline: Timeline | None = None
        """The newest one that has been seen; None where no server has told one."""

    def is_trusted(self, session: Session) -> bool:
        """Whether nothing speaks against the session."""
        return session in self._trusted and not session.is_closed()

    def distrust(self, session: Session) -> None:
        """End the trust in a session whose server has failed, and in all others that are on its timeline."""
        timeline = self._timelines.get(session)
        for each in [each for each in self._trusted if self._timelines.get(each) == timeline]:
            self._trusted.discard(each)

    def observe(self, timeline: Timeline | None) -> None:
        """Take note of a timeline that somebody has seen, such as a worker that has committed on it.

        If it is newer, close all sessions on older ones, also those in use: they would give a stale answer, or wait
        for a commit that never returns.
        """
        self.timeline = self.timeline or timeline
        if timeline and timeline.is_after(self.timeline):
            log.warning("Postgres has failed over; sessions at the former primary are dropped", timeline=str(timeline))
            self.timeline = timeline
            self._close_all()

    def admit(self, session: Session, timeline: Timeline | None) -> None:
        """Trust a new session; raises FormerPrimaryError where it is at a server that has been replaced."""
        if timeline and self.timeline and self.timeline.is_after(timeline):
            raise FormerPrimaryError
        self.observe(timeline)
        if timeline and self.timeline and timeline.system != self.timeline.system:
            self._close_all()  # another cluster has taken its place, a restored one for instance
        self.timeline = timeline or self.timeline
        self._timelines[session] = timeline
        self._trusted.add(session)

    def _close_all(self) -> None:
        for session in list(self._timelines):
            session.terminate()
        self._timelines.clear()
        self._trusted.clear()


_primaries: dict[str, Primary] = {}


def find_primary(url: DatabaseUrl) -> Primary:
    """What this process knows of the primary that the URL leads to: all its sessions share it."""
    return _primaries.setdefault(url.text, Primary())


async def identify(session: Session, timeout_seconds: float) -> Timeline | None:
    """Return the timeline that the session's server writes, or None where it does not tell."""
    try:
        [(system, number)] = await session.fetch(IDENTIFY, timeout=timeout_seconds)
    except asyncpg.PostgresError:  # not every service that speaks Postgres's protocol has a write-ahead log
        return None
    return Timeline(system, number) if number else None
