"""Dead letters: failed commands, each kept whole in its row, which an operator lists, replays or discards.

A replay is the stored command published once more; the worker decides it, and only where the row is still `failed`,
so that two replays have one effect. A discarded command keeps a row, so that no later delivery is taken for a first.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelNotFoundEntity, PublishError
from sqlalchemy import DateTime, bindparam, func, literal_column, null, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY

from shared.contracts import COMMANDS_CONTENT_TYPE, REJECTION_STATUS, OutcomeStatus, Rejection, encode_batch
from shared.database import Session, Statement
from shared.errors import describe
from shared.messaging import BROKER_ERRORS, SETUP_TIMEOUT_SECONDS, Topology, broker_call, open_connection, user_of
from shared.tables import commands, notes
from worker.settings import WorkerSettings

PUBLISH_TIMEOUT_SECONDS = 5.0
QUIET_SECONDS = 10.0
"""How long replays are waited for while none of them is decided."""
POLL_SECONDS = 0.2

Row = dict[str, Any]
"""What is told of a command, by the names of its columns."""


class NotSentError(Exception):
    """The broker did not take a replay."""


async def list_failed(session: Session) -> list[Row]:
    """Every failed command without its content, the one that failed first at the top."""
    return [dict(row) for row in await LIST_FAILED.fetch(session)]


async def find_commands(session: Session, ids: Sequence[UUID]) -> dict[UUID, Row]:
    """The rows of these commands, and the versions that their notes have now."""
    return {row["id"]: dict(row) for row in await FIND_COMMANDS.fetch(session, ids=ids)}


async def discard(session: Session, ids: Sequence[UUID]) -> set[UUID]:
    """Rejects those of the commands that are still failed and forgets their content; which ones these were."""
    return {row["id"] for row in await DISCARD.fetch(session, ids=ids)}


def why_not_failed(row: Row | None) -> str | None:
    """Why the command is no dead letter, if so."""
    if row is None:
        return "there is no such command, or it has no outcome"
    if row["status"] != OutcomeStatus.FAILED:
        return f"it is {row['status']}, not failed"
    return None


def why_not_replay(row: Row | None, *, force: bool) -> str | None:
    """Why the command must not be sent again, if so."""
    if row is None or why_not_failed(row):
        return why_not_failed(row)
    if row["owner"] is None:
        return "its owner cannot be read, so nobody knows which queue it belongs to"
    if row["note_version"] != row["note_version_now"] and not force:
        then, now = (f"version {row[name] or 'none'}" for name in ("note_version", "note_version_now"))
        return f"note {row['note_id']} was touched since ({then} then, {now} now); --force replays it all the same"
    return None


def replay_of(content: str, at: datetime, *, force: bool) -> bytes:
    """The stored command as a replay that an operator asked for at that time."""
    event = json.loads(content) | {"replayedat": at.isoformat(), "replayforced": force}
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))  # no longer than what the gateway sent
    return text.encode(errors="backslashreplace")  # writes lone surrogates as JSON escapes


async def send(settings: WorkerSettings, rows: Iterable[Row], at: datetime, *, force: bool) -> int:
    """Publishes the failed commands again, in order; how many, once the broker has confirmed each of them.

    Raises NotSentError at the first one that it does not take.
    """
    topology, user, sent = Topology.of(settings), user_of(settings.broker_url), 0
    try:
        async with confirming_channel(settings) as channel:
            for row in rows:
                event = replay_of(row["command"], at, force=force)
                await publish(channel, topology, topology.partition_of(row["owner"]), event, user)
                sent += 1
    except BROKER_ERRORS as error:
        has_no_queue = isinstance(error, (PublishError, ChannelNotFoundEntity))
        why = "has no queue for it" if has_no_queue else f"did not take it ({describe(error)})"
        raise NotSentError(f"the broker {why}; {sent} were sent before") from error
    return sent


@asynccontextmanager
async def confirming_channel(settings: WorkerSettings) -> AsyncIterator[AbstractChannel]:
    """A channel on which a publish returns when the broker has the message, and raises where it has not."""
    async with open_connection(settings.broker_url, "inkwell-worker replaying") as connection:
        async with asyncio.timeout(SETUP_TIMEOUT_SECONDS):
            with broker_call():
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        yield channel


async def publish(channel: AbstractChannel, topology: Topology, partition: int, event: bytes, user: str) -> None:
    """Returns when the broker has confirmed the command, in a message of its own; raises a broker error otherwise.

    The broker verifies `user_id`; a worker accepts replays only from its own user.
    """
    message = Message(
        encode_batch([event]),
        content_type=COMMANDS_CONTENT_TYPE,
        delivery_mode=DeliveryMode.PERSISTENT,
        user_id=user,
    )
    async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
        await topology.publish(channel, message, partition)


async def decided(session: Session, ids: Iterable[UUID], at: datetime) -> AsyncIterator[Row]:
    """What the replays became, as they are decided; ends when all are, or none was for QUIET_SECONDS."""
    now = asyncio.get_running_loop().time
    waiting, quiet_ends = set(ids), now() + QUIET_SECONDS
    while waiting and now() < quiet_ends:
        rows = await FIND_DECIDED.fetch(session, ids=list(waiting), replayed_at=at)
        for row in rows:
            waiting.remove(row["id"])
            quiet_ends = now() + QUIET_SECONDS
            yield dict(row)
        if not rows:
            await asyncio.sleep(POLL_SECONDS)


_NAMED = commands.c.id == func.any(bindparam("ids", type_=ARRAY(commands.c.id.type)))
_FAILED = commands.c.status == literal_column("'failed'")
_ABOUT = (commands.c.id, commands.c.type, commands.c.owner_id.label("owner"), commands.c.reason)
_NOTE_VERSION_NOW = (
    select(notes.c.version)
    .where(notes.c.id == commands.c.note_id, notes.c.owner_id == commands.c.owner_id)
    .scalar_subquery()
    .label("note_version_now")
)

DISCARDED = {
    "status": literal_column("'rejected'"),
    "reason": literal_column(f"'{Rejection.DISCARDED}'"),
    "http_status": literal_column(str(int(REJECTION_STATUS[Rejection.DISCARDED]))),
    "note_version": null(),
    "body": null(),
    "command": null(),
    "decided_at": func.now(),
}
"""What makes a failed command one that an operator has given up."""

LIST_FAILED = Statement.compiled(
    select(
        *_ABOUT,
        commands.c.decided_at.label("failed_at"),
        func.date_trunc(literal_column("'second'"), func.now() - commands.c.issued_at).label("age"),
        commands.c.note_id,
        commands.c.replayed_at,
    )
    .where(_FAILED)
    .order_by(commands.c.decided_at, commands.c.id)
)
FIND_COMMANDS = Statement.compiled(
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
FIND_DECIDED = Statement.compiled(
    select(commands.c.id, commands.c.status, commands.c.reason).where(
        _NAMED, or_(~_FAILED, commands.c.replayed_at >= bindparam("replayed_at", type_=DateTime(timezone=True)))
    )
)
DISCARD = Statement.compiled(update(commands).where(_NAMED, _FAILED).values(DISCARDED).returning(commands.c.id))
