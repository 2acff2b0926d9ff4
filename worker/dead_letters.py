"""Dead letters: failed commands, kept in their rows, which an operator lists, replays or discards.

A replay publishes the stored command again. A worker applies it only if the row is still `failed`, so two replays have
one effect. A discarded command keeps its row, so that a later delivery is not taken for the first.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any
from uuid import UUID

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError
from sqlalchemy import (
    ColumnElement,
    DateTime,
    ScalarSelect,
    Table,
    bindparam,
    case,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from shared.broker import BROKER_ERRORS, SETUP_TIMEOUT_SECONDS, broker_call, open_connection, user_of
from shared.contracts import (
    COMMANDS_CONTENT_TYPE,
    REJECTION_STATUS,
    OutcomeStatus,
    PurgeNote,
    Rejection,
    RestoreNote,
    encode_batch,
)
from shared.database import Session, Statement
from shared.errors import describe_error
from shared.partitions import require_partitions
from shared.tables import commands, notes, tombstones, users
from shared.topology import Topology
from worker.replays import Letter, ReplayedWrite, parse_replayed_writes
from worker.settings import WorkerSettings
from worker.statements import FIND_REPLAYED

PUBLISH_TIMEOUT_SECONDS = 5.0
TRASH_TYPES = (RestoreNote.type_name(), PurgeNote.type_name())
"""The commands whose note has to be in the trash, and whose dead letters have its version there."""
QUIET_SECONDS = 10.0
"""How long to wait for the next outcome of a replay."""
POLL_SECONDS = 0.2

Row = dict[str, Any]
"""What is printed about a command, by column name."""


class NotSentError(Exception):
    """The broker accepted no replay."""


async def list_failed(session: Session) -> list[Row]:
    """Return all failed commands without their content, in the order of first failure, which is also each owner's."""
    return [dict(row) for row in await LIST_FAILED.fetch(session)]


async def find_commands(session: Session, ids: Sequence[UUID]) -> dict[UUID, Row]:
    """Return the rows of these commands, with the current versions of their notes."""
    return {row["id"]: dict(row) for row in await FIND_COMMANDS.fetch(session, ids=ids)}


async def discard(session: Session, ids: Sequence[UUID]) -> set[UUID]:
    """Reject those of the commands that are still failed, and delete their content; returns their ids."""
    async with session.transaction():
        await RAISE_OWNERS.fetch(session, ids=ids)  # locks the owners before the commands, as a worker does
        return {row["id"] for row in await DISCARD.fetch(session, ids=ids)}


def explain_not_failed(row: Row | None) -> str | None:
    """Return why the command is not a dead letter; None if it is one."""
    if row is None:
        return "there is no such command, or it has no outcome"
    if row["status"] != OutcomeStatus.FAILED:
        return f"it is {row['status']}, not failed"
    return None


async def find_replayed(session: Session, rows: Iterable[Row | None]) -> list[ReplayedWrite]:
    """Return the writes of applied replays, of those owners who have a dead letter whose note has changed since."""
    owners = {row["owner"] for row in rows if row and row["note_version"] != row["note_version_now"]}
    replayed = await FIND_REPLAYED.fetch(session, owners=sorted(owners - {None})) if owners else []
    return [write for row in replayed for write in parse_replayed_writes(dict(row))]


def explain_not_replayable(row: Row | None, replayed: Sequence[ReplayedWrite], *, force: bool) -> str | None:
    """Return why the command must not be replayed; None if it may be."""
    if row is None or explain_not_failed(row):
        return explain_not_failed(row)
    if row["owner"] is None:
        return "its owner cannot be read, so its queue is unknown"
    if not force and is_superseded(row, replayed):
        then, now = (f"version {row[name] or 'none'}" for name in ("note_version", "note_version_now"))
        return f"note {row['note_id']} has changed since ({then} then, {now} now); --force replays it nevertheless"
    return None


def is_superseded(row: Row, replayed: Sequence[ReplayedWrite]) -> bool:
    """Whether the letter's note has changed since the failure, other than by replays of earlier letters."""
    letter = Letter(row["owner"], row["issued_at"])
    if row["type"] in TRASH_TYPES and row["note_version"] is None:
        return False  # the worker decides: an earlier letter may have deleted the note
    return letter.is_superseded(row["note_id"], row["note_version"], row["note_version_now"], replayed)


def build_replay(content: str, at: datetime, *, force: bool) -> bytes:
    """Return the stored command as a replay requested at this time."""
    event = json.loads(content) | {"replayedat": at.isoformat(), "replayforced": force}
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))  # not longer than the original
    return text.encode(errors="backslashreplace")  # writes lone surrogates as JSON escapes


async def send(settings: WorkerSettings, rows: Iterable[Row], at: datetime, *, force: bool) -> dict[UUID, str]:
    """Publish the failed commands again, in order; returns why some were not sent, by id.

    If one is not accepted, later ones of its owner are not sent either, which preserves their order.
    Raises NotSentError if none is sent.
    """
    refused = dict[UUID, str]()
    owners = set[int]()
    sent = 0
    async with AsyncExitStack() as exits:
        sender = Sender(settings, exits)
        for row in rows:
            if row["owner"] in owners:
                refused[row["id"]] = "an earlier command of its owner was not sent"
            elif why := await sender.send(row["owner"], build_replay(row["command"], at, force=force)):
                refused[row["id"]] = why
                owners.add(row["owner"])
            else:
                sent += 1
    if refused and not sent:
        raise NotSentError(next(iter(refused.values())))
    return refused


class Sender:
    """Publishes replays, each confirmed; reconnects once after a failure, then gives up."""

    def __init__(self, settings: WorkerSettings, exits: AsyncExitStack) -> None:
        self._settings = settings
        self._topology = Topology.of(settings)
        """It has the broker's number of partitions once there is a channel."""
        self._exits = exits
        self._channel: AbstractChannel | None = None
        self._given_up: str | None = None

    async def send(self, owner: int, event: bytes) -> str | None:
        """Publish the command and wait for the confirm; returns None, or why there is none."""
        why = self._given_up
        for _ in range(0 if why else 2):
            try:
                channel = self._channel = self._channel or await self._new_channel()
                await publish(channel, self._topology, self._topology.partition_of(owner), event, self._user)
            except DeliveryError as error:  # rejects only this command; the channel stays open
                return "the broker has no queue for it" if isinstance(error, PublishError) else "the queue is full"
            except ChannelNotFoundEntity:  # there is no exchange, for no command; the broker has closed the channel
                why = "the broker has no queue for it"
                break
            except BROKER_ERRORS as error:  # it may have been published; a second time has no second effect
                self._channel = None
                why = f"the broker did not accept it ({describe_error(error)})"
            else:
                return None
        self._given_up = why
        return why

    @property
    def _user(self) -> str:
        return user_of(self._settings.broker_url)

    async def _new_channel(self) -> AbstractChannel:
        """Open a channel with confirms that raises for returned messages."""
        opening = open_connection(self._settings.broker_url, "inkwell-worker replaying")
        connection = await self._exits.enter_async_context(opening)
        async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
            with broker_call():
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                self._topology = await require_partitions(channel, self._topology)
        return channel


async def publish(channel: AbstractChannel, topology: Topology, partition: int, event: bytes, user: str) -> None:
    """Publish the command in a message of its own, confirmed; raises a broker error.

    The broker verifies `user_id`: workers accept replays from their own user only.
    """
    message = Message(
        encode_batch([event]),
        content_type=COMMANDS_CONTENT_TYPE,
        delivery_mode=DeliveryMode.PERSISTENT,
        user_id=user,
    )
    async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
        await topology.publish(channel, message, partition)


async def wait_for_outcomes(session: Session, ids: Iterable[UUID], at: datetime) -> AsyncIterator[Row]:
    """Yield the outcomes of the replays as they are committed; ends after QUIET_SECONDS without one."""
    now = asyncio.get_running_loop().time
    waiting = set(ids)
    quiet_ends = now() + QUIET_SECONDS
    while waiting and now() < quiet_ends:
        rows = await FIND_OUTCOMES.fetch(session, ids=list(waiting), replayed_at=at)
        for row in rows:
            waiting.remove(row["id"])
            quiet_ends = now() + QUIET_SECONDS
            yield dict(row)
        if not rows:
            await asyncio.sleep(POLL_SECONDS)


_NAMED = commands.c.id == func.any(bindparam("ids", type_=ARRAY(commands.c.id.type)))
_FAILED = commands.c.status == literal_column("'failed'")
_ABOUT = (commands.c.id, commands.c.type, commands.c.owner_id.label("owner"), commands.c.reason)


def _select_version(table: Table, *conditions: ColumnElement[bool]) -> ScalarSelect[Any]:
    mine = (table.c.id == commands.c.note_id) & (table.c.owner_id == commands.c.owner_id)
    return select(table.c.version).where(mine, *conditions).scalar_subquery()


_NOTE_VERSION_NOW = case(
    (
        commands.c.type.in_([literal_column(f"'{each}'") for each in TRASH_TYPES]),
        _select_version(tombstones, tombstones.c.title.is_not(None)),
    ),
    else_=_select_version(notes),
).label("note_version_now")

DISCARDED = {
    "status": literal_column("'rejected'"),
    "reason": literal_column(f"'{Rejection.DISCARDED}'"),
    "http_status": literal_column(str(int(REJECTION_STATUS[Rejection.DISCARDED]))),
    "note_version": null(),
    "body": null(),
    "command": null(),
    "decided_at": func.now(),
}
"""The columns to update to turn a failed command into a discarded one."""

LIST_FAILED = Statement.compile(
    select(
        *_ABOUT,
        commands.c.decided_at.label("failed_at"),
        func.date_trunc(literal_column("'second'"), func.now() - commands.c.issued_at).label("age"),
        commands.c.note_id,
        commands.c.replayed_at,
    )
    .where(_FAILED)
    .order_by(commands.c.decided_at, commands.c.issued_at, commands.c.id)
)
FIND_COMMANDS = Statement.compile(
    select(
        *_ABOUT,
        commands.c.status,
        commands.c.http_status,
        commands.c.issued_at,
        commands.c.decided_at,
        commands.c.replayed_at,
        commands.c.note_id,
        commands.c.note_version,
        _NOTE_VERSION_NOW,
        commands.c.command,
    ).where(_NAMED)
)
FIND_OUTCOMES = Statement.compile(
    select(commands.c.id, commands.c.status, commands.c.reason).where(
        _NAMED, or_(~_FAILED, commands.c.replayed_at >= bindparam("replayed_at", type_=DateTime(timezone=True)))
    )
)
_OWNERS = (
    select(users.c.id)
    .where(users.c.id.in_(select(commands.c.owner_id).where(_NAMED, _FAILED)))
    .order_by(users.c.id)
    .with_for_update(key_share=True)
    .cte("owners")
)
RAISE_OWNERS = Statement.compile(
    update(users).where(users.c.id == _OWNERS.c.id).values(revision=users.c.revision + literal_column("1"))
)
DISCARD = Statement.compile(update(commands).where(_NAMED, _FAILED).values(DISCARDED).returning(commands.c.id))
