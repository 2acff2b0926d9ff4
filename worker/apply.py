"""Applies batches of commands: read, fold, store. Nothing else writes notes, users or personal tokens.

Concurrency control is optimistic: nothing is locked between reading and storing. The statement that stores compares
the owners' revisions with those that were read, and writes everything or nothing; after a conflict the batch is read
and folded again. A batch that one statement cannot store correctly runs in a transaction.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

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
    TrashCommand,
    find_envelope,
    fold_name,
    outcome_for_attempt,
)
from shared.database import Session
from worker.cache import Cache
from worker.decisions import Note, PersonalToken, Tombstone, User
from worker.fold import Fold
from worker.handlers import Change, target_ids, trash_ids, wrap_handler_errors
from worker.replays import ReplayedWrite, parse_replayed_writes, replayed_at
from worker.rows import Rows, Snapshot
from worker.sessions import TIMEOUT_SECONDS, ensure_replicated, transaction
from worker.settings import WorkerSettings
from worker.statements import (
    DRAW_USER_IDS,
    FIND_LOCKED,
    FIND_NAMES,
    FIND_REPLAYED,
    FIND_TOKENS,
    KNOWN_USER,
    LOCK_NAMES,
    LOCK_OWNERS,
    READ,
    READ_WITH_TRASH,
)
from worker.store import ConflictError, store


def ignore(_: Mapping[int, int]) -> None:
    """Announce nothing."""


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """How batches are applied."""

    max_age: timedelta = timedelta(days=20_000)
    """A command older than this by Postgres' clock fails.

    The default lets every command pass, and can be subtracted from a time, as `timedelta.max` cannot.
    """
    keeps_trash: bool = True
    """Whether a deleted note keeps its text, so that it can be restored."""
    announce: Callable[[Mapping[int, int]], None] = ignore
    """Receives the revisions of a committed batch's owners."""

    @classmethod
    def of(cls, settings: WorkerSettings, announce: Callable[[Mapping[int, int]], None] = ignore) -> "ApplyOptions":
        """Return the options of a worker with these settings."""
        max_age = timedelta(days=settings.command_max_age_days)
        return cls(max_age, settings.trash_retention_days > 0, announce)


DEFAULTS = ApplyOptions()


async def apply_batch(
    connections: Connections,
    batch: Sequence[Command | BadCommand],
    options: ApplyOptions = DEFAULTS,
    cache: Cache | None = None,
) -> list[Outcome]:
    """Return the committed outcome of each command, in order; all of them are committed at once.

    Raises HandlerError, ConflictError, or an error of asyncpg or the connection. Then nothing is committed, or, if the
    connection was lost, perhaps all of it; in either case the batch can be applied again.
    """
    cache = cache or Cache()
    if any(isinstance(command, AccountCommand) or replayed_at(command) for command in batch):
        return await apply_in_transaction(connections, batch, options, cache)
    async with asyncio.timeout(TIMEOUT_SECONDS), connections.acquire() as session:
        cache.use(session)
        while True:  # until the timeout: each conflict means that another writer has made progress
            try:
                with ensure_replicated(session):
                    snapshot = cache.find(batch) or await read(session, batch, cache)
                    fold = Fold.of(snapshot, snapshot.now - options.max_age, keeps_trash=options.keeps_trash)
                    fold_batch(batch, fold, cache)
                    stored = await store(session, fold)
            except ConflictError:
                cache.clear()
            else:
                cache.keep(fold.users.changed)
                options.announce(list_revisions(fold))
                return match_outcomes(batch, fold, stored)


async def apply_in_transaction(
    connections: Connections,
    batch: Sequence[Command | BadCommand],
    options: ApplyOptions = DEFAULTS,
    cache: Cache | None = None,
) -> list[Outcome]:
    """Like `apply_batch`, but lock the owners and any requested names until the commit."""
    cache = cache or Cache()
    async with transaction(connections) as session:
        cache.use(session)
        fold = await read_locked(session, batch, options, cache)
        fold_batch(batch, fold, cache)
        stored = await store(session, fold)
    options.announce(list_revisions(fold))
    return match_outcomes(batch, fold, stored)


async def record_failure(connections: Connections, command: Command | BadCommand, reason: str) -> Outcome:
    """Store the failure of a command that cannot be applied, and keep the command; raises what `apply_batch` raises."""
    async with transaction(connections) as session:
        await LOCK_OWNERS.fetch(session, owners=sorted(find_owners([command])))
        fold = Fold.of(await read(session, [command], Cache()))
        fold.fail(command, reason)
        return (await store(session, fold))[command.id]


def list_revisions(fold: Fold) -> dict[int, int]:
    """Return the revisions of the batch's owners, including those whose commands were already decided.

    If the commit that decided them was in doubt, it was never announced.
    """
    deleted = {user_id: fold.users.before[user_id].revision + 1 for user_id in fold.users.deleted}
    return {user.id: user.revision for user in fold.users.now.values()} | deleted


async def read(session: Session, batch: Sequence[Command | BadCommand], cache: Cache) -> Snapshot:
    """Read the rows that the batch needs, and refill the cache.

    The synchronous standby has every outcome that this returns. If an owner is not cached, the ids drawn before are
    dropped: another worker may have given greater ones to that owner's notes, and ids must ascend.
    """
    if not cache.knows(find_owners(batch)):
        cache.clear_note_ids()
    statement = READ_WITH_TRASH if any(map(trash_ids, batch)) else READ
    while True:
        asked_at = elapsed_seconds()
        [row] = await statement.fetch(
            session,
            **_row_parameters(batch),
            ids=[command.id for command in batch],
            new_ids=cache.missing_note_ids(batch),
        )
        snapshot = Snapshot(
            now=row["now"],
            owners={user[0]: User(**dict(zip(KNOWN_USER, user, strict=True))) for user in row["owners"]},
            outcomes={
                each[0]: Outcome(**dict(zip(Outcome.model_fields, each, strict=True))) for each in row["outcomes"]
            },
            notes={note[0]: Note(*note) for note in row["notes"]},
            tombstones={each[0]: Tombstone(*each) for each in row.get("tombstones", ())},
        )
        cache.refill(snapshot, row["new_ids"], asked_at)
        if not cache.missing_note_ids(batch):  # some of those drawn may have been in use
            return snapshot


async def find_locked(connections: Connections, batch: Sequence[Command | BadCommand]) -> set[int]:
    """Return the owners with rows of the batch locked by another session; does not wait for locks."""
    async with asyncio.timeout(TIMEOUT_SECONDS), connections.acquire() as session:
        return {row[0] for row in await FIND_LOCKED.fetch(session, **_row_parameters(batch))}


async def read_locked(
    session: Session, batch: Sequence[Command | BadCommand], options: ApplyOptions, cache: Cache
) -> Fold:
    """Lock the batch's names and owners until the transaction ends; return a fold over all that the batch needs."""
    good = [command for command in batch if not isinstance(command, BadCommand)]
    owners = find_owners(batch)
    names = await lock_names(session, good)
    await LOCK_OWNERS.fetch(session, owners=sorted(owners))
    snapshot = await read(session, batch, cache)
    cache.drop(owners)  # whom the transaction may change or delete
    fold = Fold.of(snapshot, snapshot.now - options.max_age, keeps_trash=options.keeps_trash)
    fold.names = Rows(names)
    fold.tokens = Rows(await find_tokens(session, good))
    fold.replayed = await find_replayed(session, good)
    await draw_user_ids(session, good, cache)
    return fold


async def lock_names(session: Session, batch: Sequence[Command]) -> dict[str, int]:
    """Lock the names that the batch asks for; return the user id of each that is taken, by folded name."""
    wanted = [c.data.name for c in batch if isinstance(c, RegisterUser | ChangeUser) and c.data.name is not None]
    if not wanted:
        return {}
    with wrap_handler_errors():
        names = list(map(fold_name, wanted))
    await LOCK_NAMES.fetch(session, names=names)
    return {row["folded_name"]: row["id"] for row in await FIND_NAMES.fetch(session, names=names)}


async def find_tokens(session: Session, batch: Sequence[Command]) -> dict[UUID, PersonalToken]:
    """Return the personal tokens that the batch names."""
    ids = [c.id for c in batch if isinstance(c, CreateToken)]
    ids += [c.data.token_id for c in batch if isinstance(c, RevokeToken)]
    rows = await FIND_TOKENS.fetch(session, ids=ids) if ids else []
    return {row["id"]: PersonalToken(**dict(row)) for row in rows}


async def find_replayed(session: Session, batch: Sequence[Command]) -> list[ReplayedWrite]:
    """Return the writes of applied replays to notes of those owners who have a replay in the batch."""
    owners = {c.owner for c in batch if c.replayed_at and isinstance(c, Change | ChangeNotes | TrashCommand)}
    rows = await FIND_REPLAYED.fetch(session, owners=sorted(owners)) if owners else []
    return [write for row in rows for write in parse_replayed_writes(dict(row))]


async def draw_user_ids(session: Session, batch: Sequence[Command], cache: Cache) -> None:
    """Draw ids for the users that the batch may register."""
    missing = sum(isinstance(command, RegisterUser) for command in batch) - len(cache.user_ids)
    if missing > 0:
        cache.user_ids.extend(row[0] for row in await DRAW_USER_IDS.fetch(session, count=missing))


def fold_batch(batch: Sequence[Command | BadCommand], fold: Fold, cache: Cache) -> None:
    """Decide the commands that have no outcome, each id once. Raises HandlerError."""
    fold.note_ids = cache.take_note_ids()
    fold.user_ids = cache.take_user_ids()
    with wrap_handler_errors():
        fold.run(deduplicate(c for c in batch if may_decide(c, fold.known.get(c.id))))


def may_decide(command: Command | BadCommand, outcome: Outcome | None) -> bool:
    """Whether the command has no outcome yet, or is the replay of one that failed."""
    return outcome is None or (outcome.status is OutcomeStatus.FAILED and replayed_at(command) is not None)


def deduplicate(batch: Iterable[Command | BadCommand]) -> list[Command | BadCommand]:
    """Return the first command of each id: a repetition has no effect of its own."""
    first: dict[UUID, Command | BadCommand] = {}
    for command in batch:
        first.setdefault(command.id, command)
    return list(first.values())


def match_outcomes(batch: Sequence[Command | BadCommand], fold: Fold, stored: Mapping[UUID, Outcome]) -> list[Outcome]:
    """Return for each delivery what its attempt gets: the outcome, or a rejection that is not stored."""
    outcomes = {**fold.known, **stored}
    return [match_outcome(command, outcomes[command.id], fold) for command in batch]


def match_outcome(command: Command | BadCommand, outcome: Outcome, fold: Fold) -> Outcome:
    """Return what the attempt gets, with the owner's credentials as the batch leaves them."""
    if isinstance(command, BadCommand):
        return outcome
    owner = fold.users.get(command.owner)
    return outcome_for_attempt(command, outcome, owner.credentials_version if owner else None)


def _row_parameters(batch: Sequence[Command | BadCommand]) -> dict[str, object]:
    """Return the parameters for the batch's owners and notes."""
    targets = {(note_id, envelope.owner) for c in batch for note_id in target_ids(c) if (envelope := find_envelope(c))}
    trash = {(note_id, envelope.owner) for c in batch for note_id in trash_ids(c) if (envelope := find_envelope(c))}
    return {
        "owners": list(find_owners(batch)),
        "target_id": [note_id for note_id, _ in targets],
        "target_owner_id": [owner for _, owner in targets],
        "trash_id": [note_id for note_id, _ in trash],
        "trash_owner_id": [owner for _, owner in trash],
    }


def find_owners(batch: Iterable[Command | BadCommand]) -> set[int]:
    """Return the owners of the commands, apart from those that cannot be read."""
    return {envelope.owner for command in batch if (envelope := find_envelope(command))}
