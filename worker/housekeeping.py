"""Deletes old outcomes, versions, tombstones and tokens, erases purged notes, and removes all rows of deleted users.

Failed commands are left to an operator, unless their user is deleted. One worker at a time does this, the one with an
advisory lock, on a connection of its own. It works in small steps with long pauses, so that writes are hardly affected.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Integer,
    Interval,
    Select,
    Table,
    bindparam,
    delete,
    func,
    literal_column,
    null,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.elements import ColumnElement

from shared.database import Session, Statement, connect
from shared.tables import (
    HAS_TEXT,
    HAS_VERSION,
    attempt_marks,
    commands,
    note_versions,
    notes,
    personal_tokens,
    tombstones,
    users,
)
from worker.dead_letters import DISCARDED
from worker.failures import describe
from worker.fold import EPOCH
from worker.settings import WorkerSettings

INTERVAL_SECONDS = 60.0
ROWS_PER_STEP = 1000
TOMBSTONE_RETENTION = timedelta(days=30)
REST_PER_WORK = 19
"""The rest after a step, as a multiple of its duration: it works a twentieth of the time."""

log = structlog.get_logger()


class Housekeeping:
    """Runs in the background; the consumer neither waits for it nor fails with it."""

    def __init__(self, settings: WorkerSettings, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._database_url = settings.database_url
        self._retention = timedelta(days=settings.command_retention_days)
        self._trash_retention = timedelta(days=settings.trash_retention_days)
        self._interval_seconds = interval_seconds

    async def run(self) -> None:
        """Clean up at intervals until cancelled; logs and retries any failure.

        The first clean-up is late on purpose: commands that were applied but not acknowledged when all workers stopped
        are redelivered before it, and must find their outcomes, however old.
        """
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self._session()
            except Exception as error:  # noqa: BLE001 - transient, known or not; must not affect the consumer
                log.warning("old outcomes not pruned; Inkwell retries automatically", error=describe(error))

    async def _session(self) -> None:
        """Clean up on one connection until the first failure; returns at once if another worker does it."""
        session = await connect(self._database_url, "inkwell-worker housekeeping")
        try:
            [(is_locked,)] = await TRY_LOCK.fetch(session)
            if not is_locked:
                return
            log.info("this worker prunes old outcomes", retention_days=self._retention / timedelta(days=1))
            while True:
                await self._clean_up(session)
                await asyncio.sleep(self._interval_seconds)
        finally:
            session.terminate()

    async def _clean_up(self, session: Session) -> None:
        started = asyncio.get_running_loop().time()
        await DELETE_MARKS.fetch(session)
        await DELETE_EXPIRED_TOKENS.fetch(session, retention=self._retention)
        if users := await remove_deleted_users(session):
            log.info("deleted users removed with everything they owned", users=users)
        if notes := await erase_old_trash(session, self._trash_retention):
            log.info("notes in the trash for longer than its retention erased", notes=notes)
        if notes := await erase_copies(session):
            log.info("versions and outcomes of erased notes erased", notes=notes)
        if tombstones := await purge_tombstones(session, max(TOMBSTONE_RETENTION, self._trash_retention)):
            log.info("old tombstones purged", tombstones=tombstones)
        if versions := await prune(session, self._retention, PRUNE_VERSIONS):
            log.info("old versions of notes pruned", versions=versions)
        if rows := await prune(session, self._retention):
            seconds = asyncio.get_running_loop().time() - started
            log.info("old outcomes pruned", rows=rows, seconds=round(seconds, 1))


async def prune(session: Session, retention: timedelta, statement: Statement | None = None) -> int:
    """Delete the outcomes older than the retention, except failed ones; return their number.

    Another statement prunes other rows.
    """
    since = EPOCH

    async def delete_some() -> int:
        nonlocal since
        pruning = statement or PRUNE
        [(rows, last)] = await pruning.fetch(session, retention=retention, since=since, limit=ROWS_PER_STEP)
        since = last or since
        return int(rows)

    return await run_in_steps(delete_some)


async def erase_old_trash(session: Session, retention: timedelta) -> int:
    """Erase the text of tombstones older than the retention; return their number."""

    async def erase_some() -> int:
        return len(await ERASE_OLD_TRASH.fetch(session, retention=retention, limit=ROWS_PER_STEP))

    return await run_in_steps(erase_some)


async def erase_copies(session: Session) -> int:
    """Erase the versions and the outcomes of notes whose tombstones have no text; return the number of notes."""
    total = 0
    while ids := [row["id"] for row in await FIND_TO_ERASE.fetch(session, limit=ROWS_PER_STEP)]:
        for statement in ERASE_COPIES:
            await run_in_steps(partial(_erase_some, session, statement, ids))
        await MARK_ERASED.fetch(session, ids=ids)
        total += len(ids)
    return total


async def _erase_some(session: Session, statement: Statement, ids: list[int]) -> int:
    return len(await statement.fetch(session, ids=ids, limit=ROWS_PER_STEP))


async def purge_tombstones(session: Session, retention: timedelta) -> int:
    """Delete the tombstones older than the retention whose notes are erased; return their number."""

    async def delete_some() -> int:
        [(rows,)] = await PURGE_TOMBSTONES.fetch(session, retention=retention, limit=ROWS_PER_STEP)
        return int(rows)

    return await run_in_steps(delete_some)


async def remove_deleted_users(session: Session) -> int:
    """Delete the rows of some users that are marked as deleted; return the number of users."""
    ids = [row["id"] for row in await FIND_DELETED_USERS.fetch(session)]

    async def remove_some(statement: Statement) -> int:
        return len(await statement.fetch(session, owners=ids, limit=ROWS_PER_STEP))

    for statement in REMOVE_USERS_IN_ORDER if ids else ():
        await run_in_steps(partial(remove_some, statement))
    return len(ids)


async def run_in_steps(step: Callable[[], Awaitable[int]]) -> int:
    """Repeat the step until it finds fewer than ROWS_PER_STEP rows, resting after each; return the number of rows."""
    now = asyncio.get_running_loop().time
    total = 0
    rows = ROWS_PER_STEP
    while rows == ROWS_PER_STEP:
        started = now()
        rows = await step()
        total += rows
        await asyncio.sleep(REST_PER_WORK * (now() - started))
    return total


_RETENTION = bindparam("retention", type_=Interval())
_LIMIT = bindparam("limit", type_=Integer())
_OWNERS = func.any(bindparam("owners", type_=ARRAY(BigInteger())))
_IDS = func.any(bindparam("ids", type_=ARRAY(BigInteger())))


def _is_among(table: Table, rows: Select[Any]) -> ColumnElement[bool]:
    """Whether a row of the table is among these rows of it."""
    keys = list(table.primary_key)
    chosen = rows.with_only_columns(*keys)
    return keys[0].in_(chosen) if len(keys) == 1 else tuple_(*keys).in_(chosen)


def _limited(table: Table, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a row is among those of one step that meet the conditions."""
    return _is_among(table, select(table).where(*conditions).limit(_LIMIT))


def _prune(date: Column[datetime], *conditions: ColumnElement[bool]) -> ClauseElement:
    """Delete some rows with an old date, the oldest first; return their number and the last date."""
    since = bindparam("since", type_=DateTime(timezone=True))
    old = (
        select(date.table)
        .where(
            *conditions,
            date >= since,  # or each step would scan the rows that earlier ones deleted
            date < func.now() - _RETENTION,
        )
        .order_by(date)
        .limit(_LIMIT)
    )
    pruned = delete(date.table).where(_is_among(date.table, old)).returning(date).cte("pruned")
    return select(func.count(), func.max(pruned.c[date.name]))


TRY_LOCK = Statement.compile(text("select pg_try_advisory_lock(hashtext('inkwell housekeeping'))"))
PRUNE = Statement.compile(_prune(commands.c.decided_at, commands.c.status != literal_column("'failed'")))
PRUNE_VERSIONS = Statement.compile(_prune(note_versions.c.stored_date))
# A failed command keeps its marks: its replay may be crashing workers at this moment.
DELETE_MARKS = Statement.compile(
    delete(attempt_marks).where(
        select(commands.c.id)
        .where(commands.c.id == attempt_marks.c.command_id, commands.c.status != literal_column("'failed'"))
        .exists()
    )
)

_THEIRS = commands.c.owner_id == _OWNERS
_FAILED = commands.c.status == literal_column("'failed'")
DELETE_EXPIRED_TOKENS = Statement.compile(
    delete(personal_tokens).where(personal_tokens.c.expires_date < func.now() - _RETENTION)
)
FIND_DELETED_USERS = Statement.compile(
    select(users.c.id).where(users.c.deleted_date.is_not(None)).limit(literal_column("100"))
)
REMOVE_NOTES = Statement.compile(
    delete(notes).where(_limited(notes, notes.c.owner_id == _OWNERS)).returning(notes.c.id)
)
REMOVE_TOMBSTONES = Statement.compile(
    delete(tombstones).where(_limited(tombstones, tombstones.c.owner_id == _OWNERS)).returning(tombstones.c.id)
)
REMOVE_VERSIONS = Statement.compile(
    delete(note_versions)
    .where(_limited(note_versions, note_versions.c.owner_id == _OWNERS))
    .returning(note_versions.c.note_id)
)
DISCARD_FAILURES = Statement.compile(
    update(commands).where(_limited(commands, _THEIRS & _FAILED)).values(DISCARDED).returning(commands.c.id)
)
BLANK_OUTCOMES = Statement.compile(
    update(commands)
    .where(_limited(commands, _THEIRS & commands.c.body.is_not(None)))
    .values(body=null())
    .returning(commands.c.id)
)
REMOVE_TOKENS = Statement.compile(
    delete(personal_tokens)
    .where(_limited(personal_tokens, personal_tokens.c.owner_id == _OWNERS))
    .returning(personal_tokens.c.id)
)
REMOVE_USERS = Statement.compile(delete(users).where(_limited(users, users.c.id == _OWNERS)).returning(users.c.id))
REMOVE_USERS_IN_ORDER = (
    REMOVE_NOTES,
    REMOVE_TOMBSTONES,
    REMOVE_VERSIONS,
    DISCARD_FAILURES,
    BLANK_OUTCOMES,
    REMOVE_TOKENS,
    REMOVE_USERS,
)


_OLD_TRASH = (
    select(tombstones)
    .where(text(HAS_TEXT), tombstones.c.deleted_date < func.now() - _RETENTION)
    .order_by(tombstones.c.deleted_date)
    .limit(_LIMIT)
    .with_for_update(skip_locked=True)  # a worker locks several in another order
)
ERASE_OLD_TRASH = Statement.compile(
    update(tombstones)
    .where(_is_among(tombstones, _OLD_TRASH))
    .values(title=null(), description=null())
    .returning(tombstones.c.id)
)
FIND_TO_ERASE = Statement.compile(
    select(tombstones.c.id).where(tombstones.c.title.is_(None), ~tombstones.c.erased).limit(_LIMIT)
)
MARK_ERASED = Statement.compile(
    update(tombstones).where(tombstones.c.id == _IDS, tombstones.c.title.is_(None)).values(erased=true())
)
ERASE_COPIES = (
    Statement.compile(
        delete(note_versions)
        .where(_limited(note_versions, note_versions.c.note_id == _IDS))
        .returning(note_versions.c.note_id)
    ),
    Statement.compile(
        update(commands)
        .where(_limited(commands, commands.c.note_id == _IDS, literal_column(HAS_VERSION, Boolean())))
        .values(body=null())
        .returning(commands.c.id)
    ),
)
"""Delete the versions of some notes, and the bodies of their outcomes."""


def _purge_tombstones() -> ClauseElement:
    """Delete some old tombstones of erased notes; record with their owners the last revision that was purged."""
    old = (
        select(tombstones.c.id, tombstones.c.owner_id)
        .where(tombstones.c.deleted_date < func.now() - _RETENTION, tombstones.c.erased)
        .order_by(tombstones.c.deleted_date)
        .limit(_LIMIT)
        .cte("old")
    )
    owners = (
        select(users.c.id)
        .where(users.c.id.in_(select(old.c.owner_id)))
        .order_by(users.c.id)
        .with_for_update(key_share=True, skip_locked=True)  # waiting would keep the other owners locked
        .cte("owners")
    )
    purged = (
        delete(tombstones)
        .where(tombstones.c.id.in_(select(old.c.id)), tombstones.c.owner_id.in_(select(owners.c.id)))
        .returning(tombstones.c.owner_id, tombstones.c.mod_revision)
        .cte("purged")
    )
    newest = select(purged.c.owner_id, func.max(purged.c.mod_revision).label("revision")).group_by(purged.c.owner_id)
    horizon = newest.cte("horizon")
    moved = (
        update(users)
        .where(users.c.id == owners.c.id, users.c.id == horizon.c.owner_id)
        .values(
            revision=users.c.revision + literal_column("1"),
            purged_revision=func.greatest(users.c.purged_revision, horizon.c.revision),
        )
        .cte("moved")
    )
    return select(func.count()).select_from(purged).add_cte(moved)


PURGE_TOMBSTONES = Statement.compile(_purge_tombstones())
