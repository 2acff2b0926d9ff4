"""Applies batches of commands: read, fold in memory, store. Nothing else writes notes, users or personal tokens.

Optimistic: nothing is locked between read and store. The store compares the owners' revisions with those that the
fold saw, and writes everything or nothing; after a conflict the batch is read again. A batch that one statement
cannot store runs in a transaction.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from shared.clock import elapsed_seconds
from shared.connections import Connections
from shared.contracts import (
    AccountCommand,
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
from shared.database import Session, start_begin_span, start_commit_span
from worker.cache import Cache
from worker.decisions import Decision, Failed, Note, PersonalToken, User
from worker.fold import Fold, Rows, Seen
from worker.handlers import Change, targets_of
from worker.replays import ReplayedWrite, replayed_writes
from worker.statements import (
    CHANGED,
    CLEAR_MARKS,
    COUNT_OTHER_MARKS,
    DRAW_USER_IDS,
    FIND_LOCKED,
    FIND_NAMES,
    FIND_REPLAYED,
    FIND_TOKENS,
    KNOWN_USER,
    LOCK_NAMES,
    LOCK_OWNERS,
    MARK_ATTEMPT,
    NOTE,
    OUTCOME,
    READ,
    STORE,
    STORE_ACCOUNTS,
    STORE_CREATIONS,
    STORE_REPLAYS,
    TOKEN,
    UNMARK_ATTEMPT,
    USER,
)

TIMEOUT_SECONDS = 10.0
SESSION_SETTINGS = {
    # Every statement finds its rows by an index. A plan made while the tables are small may read a whole one for its
    # join, and is cached while they grow.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    # A session that holds an owner's row for longer delays that owner only.
    "lock_timeout": "250",
    # No plan depends on the values, but for arrays of other lengths Postgres would plan each execution anew.
    "plan_cache_mode": "force_generic_plan",
}
"""Settings of the sessions that apply batches."""
COMPARED_KEYS = ("commands_pkey", "notes_pkey")
"""A violation of one of these means that another writer was first."""
WARNING = "01000"
FOREVER = timedelta(days=20_000)
Row = Mapping[str, object]


class HandlerError(Exception):
    """A handler raised; the cause is its exception."""


class ConflictError(Exception):
    """Another writer has changed the rows that the fold saw; nothing is stored."""


@contextmanager
def waiting_for_standby(session: Session) -> Iterator[None]:
    """Raise ConnectionError if the block's commit stopped waiting for the synchronous standby.

    Postgres then reports success with a warning. The warning's text is translated, so any warning counts.
    """
    warnings = list[object]()

    def hear(_: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.sqlstate == WARNING:
            warnings.append(message)

    session.add_log_listener(hear)
    try:
        yield
    finally:
        session.remove_log_listener(hear)
    if warnings:
        raise ConnectionError(f"Postgres warned: {warnings[0]}")


@asynccontextmanager
async def transaction(connections: Connections) -> AsyncIterator[Session]:
    """Open a transaction with one deadline for all of it; any failure drops its connection, too."""
    async with asyncio.timeout(TIMEOUT_SECONDS), connections.acquire() as session:
        transaction = session.transaction()
        with start_begin_span():
            await transaction.start()
        yield session
        with start_commit_span(), waiting_for_standby(session):
            await transaction.commit()


async def apply_batch(
    connections: Connections,
    batch: Sequence[Command | BadCommand],
    max_age: timedelta = FOREVER,
    cache: Cache | None = None,
) -> list[Outcome]:
    """Return the committed outcome of each command, in order; all of them are committed at once.

    A command older than `max_age` by Postgres' clock fails. Raises ConflictError, HandlerError, or an exception of
    Postgres or the driver; then nothing is committed, except perhaps if the connection was lost. In every case the
    batch may be applied again.
    """
    cache = cache or Cache()
    if any(isinstance(command, AccountCommand) or replayed_at(command) for command in batch):
        return await apply_in_transaction(connections, batch, max_age, cache)
    async with asyncio.timeout(TIMEOUT_SECONDS), connections.acquire() as session:
        cache.use(session)
        while True:
            try:
                with waiting_for_standby(session):
                    seen = cache.find(batch) or await read(session, batch, cache)
                    fold = fold_batch(batch, Fold.of(seen, seen.now - max_age), cache)
                    stored = await store(session, fold)
            except ConflictError:
                cache.forget()
            else:
                cache.keep(fold.users.changed)
                return told(batch, {**seen.outcomes, **stored})


async def apply_in_transaction(
    connections: Connections,
    batch: Sequence[Command | BadCommand],
    max_age: timedelta = FOREVER,
    cache: Cache | None = None,
) -> list[Outcome]:
    """Like `apply_batch`, but with the names and the owners locked until the commit."""
    cache = cache or Cache()
    good = [command for command in batch if not isinstance(command, BadCommand)]
    owners = owners_of(batch)
    async with transaction(connections) as session:
        cache.use(session)
        names = await lock_names(session, good)
        await LOCK_OWNERS.fetch(session, owners=sorted(owners))
        seen = await read(session, batch, cache)
        cache.drop(owners)
        fold = Fold.of(seen, seen.now - max_age)
        fold.names, fold.tokens = Rows(names), Rows(await find_tokens(session, good))
        fold.replayed = await find_replayed(session, good)
        await draw_user_ids(session, good, cache)
        stored = await store(session, fold_batch(batch, fold, cache))
    return told(batch, {**seen.outcomes, **stored})


def fold_batch(batch: Sequence[Command | BadCommand], fold: Fold, cache: Cache) -> Fold:
    """Decide the commands of the batch that have no outcome; returns the fold. Raises HandlerError."""
    fold.note_ids, fold.user_ids = cache.take_note_ids(), cache.take_user_ids()
    with handling():
        fold.run(first_deliveries(c for c in batch if may_decide(c, fold.known.get(c.id))))
    return fold


def told(batch: Sequence[Command | BadCommand], outcomes: Mapping[UUID, Outcome]) -> list[Outcome]:
    """What the sender of each delivery is told."""
    return [outcomes[c.id] if isinstance(c, BadCommand) else outcome_for(c.fingerprint, outcomes[c.id]) for c in batch]


@contextmanager
def handling() -> Iterator[None]:
    """Raise HandlerError for any exception of the block, so that it is not taken for a Postgres error."""
    try:
        yield
    except Exception as error:
        raise HandlerError from error


async def record_failure(connections: Connections, command: Command | BadCommand, reason: str) -> Outcome:
    """Store a `failed` outcome for a command that cannot be applied, with the whole command for an operator."""
    async with transaction(connections) as session:
        await LOCK_OWNERS.fetch(session, owners=sorted(owners_of([command])))
        fold = Fold.of(await read(session, [command], Cache()))
        fold.fail(command, reason)
        return (await store(session, fold))[command.id]


async def mark_attempt(connections: Connections, command_id: UUID, process_id: UUID) -> int:
    """Commit a mark that this process is about to try the command; return the number of other processes' marks."""
    mark = {"command_id": command_id, "process_id": process_id}
    async with transaction(connections) as session:
        await MARK_ATTEMPT.fetch(session, **mark)
        [marks] = await COUNT_OTHER_MARKS.fetch(session, **mark)
        return int(marks[0])


async def unmark_attempt(connections: Connections, command_id: UUID, process_id: UUID) -> None:
    """Remove this process's mark, since it has survived the attempt."""
    async with transaction(connections) as session:
        await UNMARK_ATTEMPT.fetch(session, command_id=command_id, process_id=process_id)


async def clear_marks(connections: Connections, command_ids: Sequence[UUID]) -> None:
    """Remove the marks of commands that have an outcome."""
    async with transaction(connections) as session:
        await CLEAR_MARKS.fetch(session, ids=command_ids)


def may_decide(command: Command | BadCommand, outcome: Outcome | None) -> bool:
    """Whether the command has no outcome yet, or is the replay of one that failed."""
    return outcome is None or (outcome.status is OutcomeStatus.FAILED and replayed_at(command) is not None)


def replayed_at(command: Command | BadCommand) -> datetime | None:
    """Return when an operator replayed the command, or None."""
    envelope = find_envelope(command)
    return envelope.replayed_at if envelope else None


def first_deliveries(batch: Iterable[Command | BadCommand]) -> list[Command | BadCommand]:
    """Return the commands without those whose id occurs earlier in the batch, which have no effect of their own."""
    first: dict[UUID, Command | BadCommand] = {}
    for command in batch:
        first.setdefault(command.id, command)
    return list(first.values())


async def lock_names(session: Session, batch: Sequence[Command]) -> dict[str, int]:
    """Lock the names that the batch asks for until the transaction ends; return the user id of each taken one."""
    wanted = [c.data.name for c in batch if isinstance(c, RegisterUser | ChangeUser) and c.data.name is not None]
    if not wanted:
        return {}
    with handling():
        names = list(map(fold_name, wanted))
    await LOCK_NAMES.fetch(session, names=names)
    return {row["folded_name"]: row["id"] for row in await FIND_NAMES.fetch(session, names=names)}


def owners_of(batch: Iterable[Command | BadCommand]) -> set[int]:
    """Return the owners of the commands, as far as they can be read."""
    return {envelope.owner for command in batch if (envelope := find_envelope(command))}


async def read(session: Session, batch: Sequence[Command | BadCommand], cache: Cache) -> Seen:
    """Read what the batch needs, all of one moment, and refill the cache.

    The synchronous standby has every outcome that this returns. For an owner who is not cached, new ids are drawn:
    another worker may have given that owner greater ids than those drawn before.
    """
    if not cache.knows(owners_of(batch)):
        cache.forget_note_ids()
    while True:
        asked_at = elapsed_seconds()
        [row] = await READ.fetch(
            session,
            **_rows_of(batch),
            ids=[command.id for command in batch],
            new_ids=cache.missing_note_ids(batch),
        )
        seen = Seen(
            now=row["now"],
            owners={user[0]: User(**dict(zip(KNOWN_USER, user, strict=True))) for user in row["owners"]},
            outcomes={
                each[0]: Outcome(**dict(zip(Outcome.model_fields, each, strict=True))) for each in row["outcomes"]
            },
            notes={note[0]: Note(*note) for note in row["notes"]},
        )
        cache.take(seen, row["new_ids"], asked_at)
        if not cache.missing_note_ids(batch):  # fewer may be free than were drawn
            return seen


async def find_locked(connections: Connections, batch: Sequence[Command | BadCommand]) -> set[int]:
    """Return the owners for whom another session holds a row that the batch needs; waits for no lock."""
    async with asyncio.timeout(TIMEOUT_SECONDS), connections.acquire() as session:
        return {row[0] for row in await FIND_LOCKED.fetch(session, **_rows_of(batch))}


async def find_replayed(session: Session, batch: Sequence[Command]) -> list[ReplayedWrite]:
    """Return the writes to notes by applied replays, for the owners of replays in the batch."""
    owners = {c.owner for c in batch if c.replayed_at and isinstance(c, Change | ChangeNotes)}
    rows = await FIND_REPLAYED.fetch(session, owners=sorted(owners)) if owners else []
    return [write for row in rows for write in replayed_writes(dict(row))]


async def find_tokens(session: Session, batch: Sequence[Command]) -> dict[UUID, PersonalToken]:
    """Return the personal tokens that the batch names; their owners are locked."""
    ids = [c.id for c in batch if isinstance(c, CreateToken)]
    ids += [c.data.token_id for c in batch if isinstance(c, RevokeToken)]
    rows = await FIND_TOKENS.fetch(session, ids=ids) if ids else []
    return {row["id"]: PersonalToken(**dict(row)) for row in rows}


async def draw_user_ids(session: Session, batch: Sequence[Command], cache: Cache) -> None:
    """Draw as many ids as the registrations may need."""
    missing = sum(isinstance(command, RegisterUser) for command in batch) - len(cache.user_ids)
    if missing > 0:
        cache.user_ids.extend(row[0] for row in await DRAW_USER_IDS.fetch(session, count=missing))


async def store(session: Session, fold: Fold) -> dict[UUID, Outcome]:
    """Write the fold's changes and outcomes; raises ConflictError if the rows have changed since the fold saw them."""
    if not fold.decided:
        return {}
    accounts = await store_accounts(session, fold)
    raised = [user for user in fold.users.changed if user.id not in accounts]
    seen = [fold.users.before[user.id] for user in raised]
    touched = [*fold.notes.changed, *(fold.notes.before[note_id] for note_id in fold.notes.deleted)]
    positions = {command_id: position for position, command_id in enumerate(fold.decided)}
    outcomes = [_outcome_row(*fold.decided[each]) | {"position": positions[each]} for each in sorted(fold.decided)]
    replays = any(outcome["replayed_at"] for outcome in outcomes)
    statement = STORE_REPLAYS if replays else STORE if touched or fold.buried else STORE_CREATIONS
    values = {
        "owner_id": [user.id for user in raised],
        "owner_revision": [user.revision for user in seen],
        "owner_credentials_version": [user.credentials_version for user in seen],
        "owner_decisions": [after.revision - before.revision for before, after in zip(seen, raised, strict=True)],
        "compared_id": [note.id for note in touched],
        "compared_version": [fold.notes.before[note.id].version for note in touched],
        **_arrays("created", NOTE, [_note_row(note) for note in fold.notes.created]),
        **_arrays("changed", ("id", *CHANGED), [_note_row(note) for note in fold.notes.changed]),
        **_arrays("buried", NOTE, [_note_row(note) for _, note in sorted(fold.buried.items())]),
        **_arrays("outcome", OUTCOME, outcomes),
        "deleted": fold.notes.deleted,
    }
    try:
        rows = await statement.fetch(session, **values)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name in COMPARED_KEYS:
            raise ConflictError from error
        raise
    if len(rows) != len(outcomes):
        raise ConflictError
    return _outcomes(rows)


async def store_accounts(session: Session, fold: Fold) -> set[int]:
    """Write the fold's changes to users and tokens, whose owners are locked; returns the users' ids."""
    tokens, created, deleted = fold.tokens, fold.users.created, fold.users.deleted
    changed = [user for user in fold.users.changed if user != fold.users.before[user.id].raised(to=user.revision)]
    if not (created or changed or deleted or tokens.created or tokens.deleted):
        return set()
    await STORE_ACCOUNTS.fetch(
        session,
        **_arrays("registered", USER, [asdict(user) for user in created]),
        **_arrays("changed", USER, [asdict(user) for user in changed]),
        **_arrays("created", TOKEN, [_token_row(token) for token in tokens.created]),
        deleted=deleted,
        revoked=tokens.deleted,
    )
    return {user.id for user in (*created, *changed)} | set(deleted)


def _rows_of(batch: Sequence[Command | BadCommand]) -> dict[str, object]:
    """Return the parameters that name a batch's owners and notes."""
    targets = {(note_id, envelope.owner) for c in batch for note_id in targets_of(c) if (envelope := find_envelope(c))}
    return {
        "owners": list(owners_of(batch)),
        "target_id": [note_id for note_id, _ in targets],
        "target_owner_id": [owner for _, owner in targets],
    }


def _outcomes(rows: Iterable[asyncpg.Record]) -> dict[UUID, Outcome]:
    return {row["id"]: Outcome.model_validate(dict(row)) for row in rows}


def _note_row(note: Note) -> Row:
    return {name: getattr(note, name) for name in NOTE}


def _token_row(token: PersonalToken) -> Row:
    return asdict(token) | {"scopes": " ".join(token.scopes)}


def _outcome_row(command: Command | BadCommand, decision: Decision) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(OUTCOME) | {"id": command.id, "replayed_at": replayed_at(command)}
    if envelope := find_envelope(command):
        row |= {
            "owner_id": envelope.owner,
            "fingerprint": envelope.fingerprint,
            "attempt_id": envelope.attempt_id,
            "issued_at": envelope.time,
        }
    if not isinstance(command, BadCommand):
        row["type"] = command.type
    if isinstance(decision, Failed):
        row["command"] = (
            command.content if isinstance(command, BadCommand) else command.model_dump_json(exclude_none=True)
        )
    return row | decision.outcome


def _arrays(name: str, columns: Collection[str], rows: Sequence[Row]) -> dict[str, list[object]]:
    return {f"{name}_{key}": [row[key] for row in rows] for key in columns}
