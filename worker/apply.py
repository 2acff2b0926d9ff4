"""Applies a batch of commands in one transaction: the only SQL that writes notes.

Lock, look up, fold in memory, store. The owners' rows are locked before the inbox is read, so nobody else can
decide a command of theirs in between; after the locks nothing in the store can fail for a reason of the data.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import (
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.sql.type_api import TypeEngine

from shared.connections import Connections
from shared.contracts import BadCommand, Command, CreateNote, Outcome, OutcomeStatus, outcome_for
from shared.database import Session, Statement
from shared.tables import attempt_marks, commands, note_json, notes, users
from worker.handlers import NEVER, Decision, Fold, Note

Decided = tuple[Command | BadCommand, Decision]


TRANSACTION_TIMEOUT_SECONDS = 10.0
Row = dict[str, object]
Columns = dict[str, TypeEngine[Any]]


class HandlerError(Exception):
    """A handler raised; the cause tells what."""


class ConflictError(Exception):
    """Another transaction decided one of the commands first; running the batch again sees its outcome."""


@asynccontextmanager
async def transaction(connections: Connections) -> AsyncIterator[Session]:
    """A transaction with a deadline for the whole of it; whatever goes wrong, its connection is dropped with it."""
    async with asyncio.timeout(TRANSACTION_TIMEOUT_SECONDS), connections.one() as session:
        transaction = session.transaction()
        await transaction.start()
        yield session
        await transaction.commit()


async def apply_batch(
    connections: Connections, batch: Sequence[Command | BadCommand], expired_before: datetime = NEVER
) -> list[Outcome]:
    """The committed outcome of each command of the batch, in order; all of them in one transaction.

    A command that was issued before `expired_before` fails. Raises ConflictError, HandlerError, or whatever Postgres
    or the driver raised; then nothing is committed, unless it was the COMMIT itself that failed. Running the batch
    again settles which.
    """
    async with transaction(connections) as session:
        good = [command for command in batch if not isinstance(command, BadCommand)]
        owners = await lock_owners(session, good)
        known = await find_outcomes(session, batch)
        before = await lock_notes(session, good)
        fresh = first_deliveries(command for command in batch if may_decide(command, known.get(command.id)))
        fold = Fold(owners, before, known, expired_before)
        fold.new_ids = await draw_note_ids(session, sum(fold.creates(command) for command in fresh))
        try:
            fold.run(fresh)
        except Exception as error:  # a handler may raise anything; it must not pass for a fault of Postgres
            raise HandlerError from error
        outcomes = known | await store(session, fold)
    return [told(command, outcomes[command.id]) for command in batch]


async def record_failure(connections: Connections, command: Command | BadCommand, reason: str) -> Outcome:
    """Gives a command that cannot be applied its `failed` row, with the whole command for an operator."""
    async with transaction(connections) as session:
        known = await find_outcomes(session, [command])
        fold = Fold({}, await lock_notes(session, [] if isinstance(command, BadCommand) else [command]), known)
        fold.decided[command.id] = command, fold.failed(command, reason)
        return (await store(session, fold))[command.id]


async def mark_attempt(connections: Connections, command_id: UUID, process_id: UUID) -> int:
    """Commits that this process is about to try the command; how many others left such a mark and no outcome."""
    mark = {"command_id": command_id, "process_id": process_id}
    async with transaction(connections) as session:
        await MARK_ATTEMPT.fetch(session, **mark)
        [marks] = await COUNT_OTHER_MARKS.fetch(session, **mark)
        return int(marks[0])


async def unmark_attempt(connections: Connections, command_id: UUID, process_id: UUID) -> None:
    """Takes this process's mark back: it has survived its attempt."""
    async with transaction(connections) as session:
        await UNMARK_ATTEMPT.fetch(session, command_id=command_id, process_id=process_id)


async def clear_marks(connections: Connections, command_ids: Sequence[UUID]) -> None:
    """Forgets the marks of commands that have their outcome."""
    async with transaction(connections) as session:
        await CLEAR_MARKS.fetch(session, ids=command_ids)


def may_decide(command: Command | BadCommand, outcome: Outcome | None) -> bool:
    """Whether the command has no outcome yet, or is the replay of one that failed."""
    return outcome is None or (outcome.status is OutcomeStatus.FAILED and replayed_at(command) is not None)


def replayed_at(command: Command | BadCommand) -> datetime | None:
    """When an operator sent the command again."""
    envelope = command.envelope if isinstance(command, BadCommand) else command
    return envelope.replayed_at if envelope else None


def told(command: Command | BadCommand, outcome: Outcome) -> Outcome:
    """What this delivery's sender is told."""
    return outcome if isinstance(command, BadCommand) else outcome_for(command.fingerprint, outcome)


def first_deliveries(batch: Iterable[Command | BadCommand]) -> list[Command | BadCommand]:
    """The commands without those whose id came before in the batch, which have no effect of their own."""
    first: dict[UUID, Command | BadCommand] = {}
    for command in batch:
        first.setdefault(command.id, command)
    return list(first.values())


async def lock_owners(session: Session, batch: Sequence[Command]) -> dict[int, int]:
    """The credentials version of each owner in the batch who exists; nobody else writes for them until the end."""
    ids = sorted({command.owner for command in batch})
    return {row["id"]: row["credentials_version"] for row in await LOCK_OWNERS.fetch(session, ids=ids)}


async def find_outcomes(session: Session, batch: Sequence[Command | BadCommand]) -> dict[UUID, Outcome]:
    """The outcomes that commands of the batch already have, by id."""
    rows = await FIND_OUTCOMES.fetch(session, ids=[command.id for command in batch])
    return _outcomes(rows)


async def lock_notes(session: Session, batch: Sequence[Command]) -> dict[int, Note]:
    """The notes that the batch is about, of the owners who ask, locked in id order."""
    targets = {(c.data.note_id, c.owner) for c in batch if not isinstance(c, CreateNote)}
    if not targets:
        return {}
    ids, owners = zip(*targets, strict=True)
    return {row["id"]: Note(*row) for row in await LOCK_NOTES.fetch(session, target_id=ids, target_owner_id=owners)}


async def draw_note_ids(session: Session, count: int) -> Iterator[int]:
    """So many ids for new notes, ascending."""
    return iter([row[0] for row in await DRAW_NOTE_IDS.fetch(session, count=count)] if count else [])


async def store(session: Session, fold: Fold) -> dict[UUID, Outcome]:
    """Writes what the fold changed and decided, in one statement; raises ConflictError for a decided command."""
    decided = [fold.decided[command_id] for command_id in sorted(fold.decided)]
    rows = await STORE.fetch(
        session,
        **_arrays("created", _NOTE, [_note_row(note) for note in fold.created]),
        **_arrays("changed", _NOTE, [_note_row(note) for note in fold.changed]),
        **_arrays("outcome", _OUTCOME, [_outcome_row(*each) for each in decided]),
        deleted=fold.deleted,
    )
    if len(rows) != len(decided):
        raise ConflictError
    return _outcomes(rows)


def _outcomes(rows: Iterable[asyncpg.Record]) -> dict[UUID, Outcome]:
    return {row["id"]: Outcome.model_validate(dict(row)) for row in rows}


def _note_row(note: Note) -> Row:
    return {name: getattr(note, name) for name in _NOTE}


def _outcome_row(command: Command | BadCommand, decision: Decision) -> Row:
    row: Row = dict.fromkeys(_OUTCOME) | {
        "id": command.id,
        "status": decision.status,
        "reason": decision.reason,
        "http_status": decision.http_status,
        "note_id": decision.note_id,
        "note_version": decision.note_version,
        "replayed_at": replayed_at(command),
    }
    if envelope := command.envelope if isinstance(command, BadCommand) else command:
        row |= {
            "owner_id": envelope.owner,
            "fingerprint": envelope.fingerprint,
            "attempt_id": envelope.attempt_id,
            "issued_at": envelope.time,
        }
    if isinstance(command, BadCommand):
        return row | {"command": command.content}
    row["type"] = command.type
    if decision.status is OutcomeStatus.FAILED:
        row["command"] = command.model_dump_json(exclude_none=True)
    if decision.note:
        row |= {name: getattr(decision.note, name) for name in _PRINTED}
    return row


def _arrays(name: str, columns: Columns, rows: list[Row]) -> dict[str, list[object]]:
    return {f"{name}_{key}": [row[key] for row in rows] for key in columns}


def _rows(name: str, columns: Columns) -> TableValuedAlias:
    """A FROM clause that reads one array parameter for each column, `<name>_<column>`."""
    arrays = [bindparam(f"{name}_{key}", type_=ARRAY(type_)) for key, type_ in columns.items()]
    values = func.unnest(*arrays).table_valued(*(column(key, type_) for key, type_ in columns.items()))
    return values.render_derived(name=name)


_NOTE = {c.name: c.type for c in notes.c}
_PRINTED = ("title", "description", "created_date", "updated_date")
_OUTCOME: Columns = {
    **{c.name: c.type for c in commands.c if c.name not in ("decided_at", "body", "command")},
    **{name: notes.c[name].type for name in _PRINTED},
    "command": Text(),
}
_STORED_COLUMNS = tuple(commands.c[name] for name in Outcome.model_fields)


def _lock_notes() -> ClauseElement:
    target = _rows("target", {"id": notes.c.id.type, "owner_id": notes.c.owner_id.type})
    mine = (notes.c.id == target.c.id) & (notes.c.owner_id == target.c.owner_id)
    return select(*notes.c).join_from(notes, target, mine).order_by(notes.c.id).with_for_update(of=notes)


def _store() -> ClauseElement:
    created, changed, outcome = _rows("created", _NOTE), _rows("changed", _NOTE), _rows("outcome", _OUTCOME)
    insert_notes = insert(notes).from_select(list(_NOTE), select(created))
    new_values = {name: changed.c[name] for name in ("title", "description", "updated_date", "version")}
    update_notes = update(notes).where(notes.c.id == changed.c.id).values(new_values)
    delete_notes = delete(notes).where(notes.c.id == func.any(bindparam("deleted", type_=ARRAY(notes.c.id.type))))
    printed = {name: outcome.c[name] for name in _PRINTED}
    body = note_json(outcome, {**printed, "id": outcome.c.note_id, "version": outcome.c.note_version})
    columns = {name: outcome.c[name] for name in _OUTCOME if name in commands.c} | {
        "command": cast(outcome.c.command, commands.c.command.type),
        "body": case((outcome.c.title.is_not(None), body)),
    }
    insert_outcomes = insert(commands).from_select(list(columns), select(*columns.values()))
    replayed = insert_outcomes.excluded
    return (
        insert_outcomes.on_conflict_do_update(
            index_elements=[commands.c.id],
            set_={name: replayed[name] for name in columns if name != "id"} | {"decided_at": func.now()},
            where=(commands.c.status == literal_column("'failed'")) & replayed.replayed_at.is_not(None),
        )
        .returning(*_STORED_COLUMNS)
        .add_cte(
            insert_notes.cte("created_notes"), update_notes.cte("changed_notes"), delete_notes.cte("deleted_notes")
        )
    )


_MARKED_COMMAND = attempt_marks.c.command_id == bindparam("command_id", type_=Uuid())
_MARKING_PROCESS = bindparam("process_id", type_=Uuid())

LOCK_OWNERS = Statement.compiled(
    select(users.c.id, users.c.credentials_version)
    .where(users.c.id == func.any(bindparam("ids", type_=ARRAY(users.c.id.type))))
    .order_by(users.c.id)
    .with_for_update(key_share=True)
)
FIND_OUTCOMES = Statement.compiled(
    select(*_STORED_COLUMNS).where(commands.c.id == func.any(bindparam("ids", type_=ARRAY(commands.c.id.type))))
)
LOCK_NOTES = Statement.compiled(_lock_notes())
DRAW_NOTE_IDS = Statement.compiled(text("select nextval('notes_id_seq') from generate_series(1, :count)"))
STORE = Statement.compiled(_store())
MARK_ATTEMPT = Statement.compiled(insert(attempt_marks).on_conflict_do_nothing())
COUNT_OTHER_MARKS = Statement.compiled(
    select(func.count()).where(_MARKED_COMMAND, attempt_marks.c.process_id != _MARKING_PROCESS)
)
UNMARK_ATTEMPT = Statement.compiled(
    delete(attempt_marks).where(_MARKED_COMMAND, attempt_marks.c.process_id == _MARKING_PROCESS)
)
CLEAR_MARKS = Statement.compiled(
    delete(attempt_marks).where(attempt_marks.c.command_id == func.any(bindparam("ids", type_=ARRAY(Uuid()))))
)
