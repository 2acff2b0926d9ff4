"""Applies a batch of commands in one transaction: nothing else writes notes, users or personal tokens.

Lock, look up, fold in memory, store. The owners' rows are locked before the inbox is read, so nobody else can
decide a command of theirs in between; after the locks nothing in the store can fail for a reason of the data.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from shared.connections import Connections
from shared.contracts import (
    BadCommand,
    ChangeNotes,
    ChangeUser,
    Command,
    CreateToken,
    Outcome,
    OutcomeStatus,
    RegisterUser,
    RevokeToken,
    find_envelope,
    fold_name,
    outcome_for,
)
from shared.database import Session, Statement, start_begin_span, start_commit_span
from worker.fold import Fold, Rows
from worker.handlers import Change, Decision, Note, PersonalToken, User, targets_of
from worker.replays import ReplayedWrite, replayed_writes
from worker.statements import (
    CLEAR_MARKS,
    COUNT_OTHER_MARKS,
    DRAW_NOTE_IDS,
    DRAW_USER_IDS,
    FIND_NAMES,
    FIND_OUTCOMES,
    FIND_REPLAYED,
    FIND_TOKENS,
    LOCK_NAMES,
    LOCK_NOTES,
    LOCK_OWNERS,
    MARK_ATTEMPT,
    NOTE,
    OUTCOME,
    PRINTED,
    STORE,
    STORE_ACCOUNTS,
    TOKEN,
    UNMARK_ATTEMPT,
    USER,
)

TRANSACTION_TIMEOUT_SECONDS = 10.0
FOREVER = timedelta(days=20_000)
Row = Mapping[str, object]


class HandlerError(Exception):
    """A handler raised; the cause tells what."""


class ConflictError(Exception):
    """Another transaction decided one of the commands first; running the batch again sees its outcome."""


@asynccontextmanager
async def transaction(connections: Connections) -> AsyncIterator[Session]:
    """A transaction with a deadline for the whole of it; whatever goes wrong, its connection is dropped with it."""
    async with asyncio.timeout(TRANSACTION_TIMEOUT_SECONDS), connections.acquire() as session:
        transaction = session.transaction()
        with start_begin_span():
            await transaction.start()
        yield session
        with start_commit_span():
            await transaction.commit()


async def apply_batch(
    connections: Connections, batch: Sequence[Command | BadCommand], max_age: timedelta = FOREVER
) -> list[Outcome]:
    """The committed outcome of each command of the batch, in order; all of them in one transaction.

    A command that is older by Postgres' clock fails. Raises ConflictError, HandlerError, or whatever Postgres
    or the driver raised; then nothing is committed, unless it was the COMMIT itself that failed. Running the batch
    again settles which.
    """
    async with transaction(connections) as session:
        good = [command for command in batch if not isinstance(command, BadCommand)]
        names = await lock_names(session, good)
        owners = await lock_owners(session, batch)
        known, now = await find_outcomes(session, batch)
        replayed = await find_replayed(session, good)
        notes, tokens = await lock_notes(session, good), await find_tokens(session, good)
        fresh = first_deliveries(command for command in batch if may_decide(command, known.get(command.id)))
        fold = Fold(Rows(owners), Rows(notes), Rows(tokens), Rows(names), known, now - max_age, replayed)
        with handling():
            new_notes, new_users = fold.ids_needed(fresh)
        fold.note_ids = await draw_ids(session, DRAW_NOTE_IDS, new_notes)
        fold.user_ids = await draw_ids(session, DRAW_USER_IDS, new_users)
        with handling():
            fold.run(fresh)
        outcomes = known | await store(session, fold)
    return [told(command, outcomes[command.id]) for command in batch]


@contextmanager
def handling() -> Iterator[None]:
    """A handler may raise anything in the block; it must not pass for a fault of Postgres."""
    try:
        yield
    except Exception as error:
        raise HandlerError from error


async def record_failure(connections: Connections, command: Command | BadCommand, reason: str) -> Outcome:
    """Gives a command that cannot be applied its `failed` row, with the whole command for an operator."""
    async with transaction(connections) as session:
        owners = await lock_owners(session, [command])
        known, _ = await find_outcomes(session, [command])
        notes = await lock_notes(session, [] if isinstance(command, BadCommand) else [command])
        fold = Fold(Rows(owners), Rows(notes), failures=known)
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
    envelope = find_envelope(command)
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


async def lock_names(session: Session, batch: Sequence[Command]) -> dict[str, int]:
    """Whose the names are that users of the batch want; nobody else gives one of them away until the end."""
    wanted = [c.data.name for c in batch if isinstance(c, RegisterUser | ChangeUser) and c.data.name is not None]
    if not wanted:
        return {}
    with handling():
        names = list(map(fold_name, wanted))
    await LOCK_NAMES.fetch(session, names=names)
    return {row["folded_name"]: row["id"] for row in await FIND_NAMES.fetch(session, names=names)}


async def lock_owners(session: Session, batch: Sequence[Command | BadCommand]) -> dict[int, User]:
    """The owners in the batch who exist, without their passwords; nobody else writes for them until the end."""
    ids = sorted({envelope.owner for command in batch if (envelope := find_envelope(command))})
    return {row["id"]: User(**dict(row)) for row in await LOCK_OWNERS.fetch(session, ids=ids)}


async def find_outcomes(
    session: Session, batch: Sequence[Command | BadCommand]
) -> tuple[dict[UUID, Outcome], datetime]:
    """The outcomes that commands of the batch already have, by id, and what Postgres' clock shows."""
    rows = await FIND_OUTCOMES.fetch(session, ids=[command.id for command in batch])
    return _outcomes(row for row in rows if row["id"]), rows[0]["started_at"]


async def find_replayed(session: Session, batch: Sequence[Command]) -> list[ReplayedWrite]:
    """What applied replays have made of notes, for the owners of replays in the batch."""
    owners = {c.owner for c in batch if c.replayed_at and isinstance(c, Change | ChangeNotes)}
    rows = await FIND_REPLAYED.fetch(session, owners=sorted(owners)) if owners else []
    return [write for row in rows for write in replayed_writes(dict(row))]


async def lock_notes(session: Session, batch: Sequence[Command]) -> dict[int, Note]:
    """The notes that the batch is about, of the owners who ask, locked in id order."""
    targets = {(note_id, command.owner) for command in batch for note_id in targets_of(command)}
    if not targets:
        return {}
    ids, owners = zip(*targets, strict=True)
    return {row["id"]: Note(*row) for row in await LOCK_NOTES.fetch(session, target_id=ids, target_owner_id=owners)}


async def find_tokens(session: Session, batch: Sequence[Command]) -> dict[UUID, PersonalToken]:
    """The personal tokens that the batch is about; their owners are locked."""
    ids = [c.id for c in batch if isinstance(c, CreateToken)]
    ids += [c.data.token_id for c in batch if isinstance(c, RevokeToken)]
    rows = await FIND_TOKENS.fetch(session, ids=ids) if ids else []
    return {row["id"]: PersonalToken(**dict(row)) for row in rows}


async def draw_ids(session: Session, statement: Statement, count: int) -> Iterator[int]:
    """So many ids for new rows, ascending."""
    return iter([row[0] for row in await statement.fetch(session, count=count)] if count else [])


async def store(session: Session, fold: Fold) -> dict[UUID, Outcome]:
    """Writes what the fold changed and decided; raises ConflictError for a decided command."""
    users, tokens = fold.users, fold.tokens
    if users.created or users.changed or users.deleted or tokens.created or tokens.deleted:
        await STORE_ACCOUNTS.fetch(
            session,
            **_arrays("registered", USER, [asdict(user) for user in users.created]),
            **_arrays("changed", USER, [asdict(user) for user in users.changed]),
            **_arrays("created", TOKEN, [_token_row(token) for token in tokens.created]),
            deleted=users.deleted,
            revoked=tokens.deleted,
        )
    positions = {command_id: position for position, command_id in enumerate(fold.decided)}
    outcomes = [_outcome_row(*fold.decided[each]) | {"position": positions[each]} for each in sorted(fold.decided)]
    rows = await STORE.fetch(
        session,
        **_arrays("created", NOTE, [_note_row(note) for note in fold.notes.created]),
        **_arrays("changed", NOTE, [_note_row(note) for note in fold.notes.changed]),
        **_arrays("outcome", OUTCOME, outcomes),
        deleted=fold.notes.deleted,
    )
    if len(rows) != len(outcomes):
        raise ConflictError
    return _outcomes(rows)


def _outcomes(rows: Iterable[asyncpg.Record]) -> dict[UUID, Outcome]:
    return {row["id"]: Outcome.model_validate(dict(row)) for row in rows}


def _note_row(note: Note) -> Row:
    return {name: getattr(note, name) for name in NOTE}


def _token_row(token: PersonalToken) -> Row:
    return asdict(token) | {"scopes": " ".join(token.scopes)}


def _outcome_row(command: Command | BadCommand, decision: Decision) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(OUTCOME) | {
        "id": command.id,
        "status": decision.status,
        "reason": decision.reason,
        "http_status": decision.http_status,
        "note_id": decision.note_id,
        "note_version": decision.note_version,
        "body": decision.body,
        "replayed_at": replayed_at(command),
    }
    if envelope := find_envelope(command):
        row |= {
            "owner_id": envelope.owner,
            "fingerprint": envelope.fingerprint,
            "attempt_id": envelope.attempt_id,
            "issued_at": envelope.time,
        }
    if decision.status is OutcomeStatus.FAILED:
        row["command"] = (
            command.content if isinstance(command, BadCommand) else command.model_dump_json(exclude_none=True)
        )
    if isinstance(command, BadCommand):
        return row
    row["type"] = command.type
    if decision.user:  # of a registration too, though nobody was its owner
        row["owner_id"] = decision.user.id
    if decision.note:
        row |= {name: getattr(decision.note, name) for name in PRINTED}
    return row


def _arrays(name: str, columns: Collection[str], rows: Sequence[Row]) -> dict[str, list[object]]:
    return {f"{name}_{key}": [row[key] for row in rows] for key in columns}
