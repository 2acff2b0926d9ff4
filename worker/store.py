"""Stores what a fold has changed: one statement compares the owners' revisions and writes everything or nothing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from uuid import UUID

import asyncpg

from shared.contracts import BadCommand, Command, Outcome, find_envelope
from shared.database import Session, Statement
from worker.decisions import Decision, Failed, Note, Tombstone
from worker.fold import Fold
from worker.handlers import wrap_handler_errors
from worker.replays import replayed_at
from worker.statements import (
    CHANGED,
    NOTE,
    OUTCOME,
    STORE,
    STORE_ACCOUNTS,
    STORE_CREATIONS,
    STORE_REPLAYS,
    STORE_WITH_TRASH,
    TOKEN,
    TRASHED,
    USER,
    VERSION,
)

COMPARED_KEYS = ("commands_pkey", "notes_pkey")
"""A violation of one of these is a conflict: another writer was first."""
Row = Mapping[str, object]


class ConflictError(Exception):
    """Another writer has changed the rows since they were read; nothing is stored."""


async def store(session: Session, fold: Fold) -> dict[UUID, Outcome]:
    """Write the fold's changes and outcomes.

    Raises ConflictError if rows have changed since they were read, and HandlerError if a response cannot be printed.
    """
    if not fold.decisions:
        return {}
    accounts = await store_accounts(session, fold)
    raised = [user for user in fold.users.changed if user.id not in accounts]
    before = [fold.users.before[user.id] for user in raised]
    touched = [*fold.notes.changed, *(fold.notes.before[note_id] for note_id in fold.notes.deleted)]
    positions = {command_id: position for position, command_id in enumerate(fold.decisions)}
    with wrap_handler_errors():  # a response is printed here
        rows = {each: _outcome_row(*decided) for each, decided in fold.decisions.items()}
    outcomes = [rows[each] | {"position": positions[each]} for each in sorted(rows)]
    replays = any(outcome["replayed_at"] for outcome in outcomes)
    has_trash = bool(fold.versions or fold.tombstones.changed or fold.tombstones.deleted)
    has_changes = bool(touched or fold.tombstones.created)
    statement = choose_store(replays=replays, trash=has_trash, changes=has_changes)
    values = {
        "owner_id": [user.id for user in raised],
        "owner_revision": [user.revision for user in before],
        "owner_credentials_version": [user.credentials_version for user in before],
        "owner_decisions": [new.revision - old.revision for old, new in zip(before, raised, strict=True)],
        "compared_id": [note.id for note in touched],
        "compared_version": [fold.notes.before[note.id].version for note in touched],
        **_arrays("created", NOTE, [_note_row(note) for note in fold.notes.created]),
        **_arrays("changed", ("id", *CHANGED), [_note_row(note) for note in fold.notes.changed]),
        **_arrays("tombstone", NOTE, [_note_row(each) for each in list_buried(fold)]),
        **_arrays("outcome", OUTCOME, outcomes),
        "deleted": fold.notes.deleted,
        **(_trash_parameters(fold) if has_trash or replays else {}),
    }
    try:
        stored = await statement.fetch(session, **values)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name in COMPARED_KEYS:
            raise ConflictError from error
        raise
    if len(stored) != len(outcomes):  # nothing was written; of replays perhaps some, which the transaction undoes
        raise ConflictError
    return {row["id"]: Outcome.model_validate(dict(row)) for row in stored}


def choose_store(*, replays: bool, trash: bool, changes: bool) -> Statement:
    """Return the statement that stores all that the fold has changed, and does the least work."""
    if replays:
        return STORE_REPLAYS
    if trash:
        return STORE_WITH_TRASH
    return STORE if changes else STORE_CREATIONS


def list_buried(fold: Fold) -> list[Tombstone]:
    """Return the tombstones of the notes that the batch deletes; one that is only erased keeps its revision."""
    if not fold.tombstones.after:
        return []
    before = fold.tombstones.before
    changed = [each for each in fold.tombstones.changed if each.mod_revision != before[each.id].mod_revision]
    return sorted((*fold.tombstones.created, *changed), key=lambda each: each.id)


def _trash_parameters(fold: Fold) -> dict[str, object]:
    """Return the parameters that only STORE_WITH_TRASH and STORE_REPLAYS have."""
    trash = fold.tombstones
    buried = {each.id for each in list_buried(fold)}
    trashed = [trash.before[key] for key in (*(each.id for each in trash.changed), *trash.deleted)]
    return {
        **_arrays("trashed", ("id", *TRASHED), [_note_row(each) for each in trashed]),
        **_arrays("version", VERSION, [_note_row(note) for note in fold.versions]),
        "erased": [each.id for each in trash.changed if each.id not in buried],
        "restored": trash.deleted,
    }


async def store_accounts(session: Session, fold: Fold) -> set[int]:
    """Write the fold's changes to users and tokens; returns the ids of the users. Needs the owners' locks."""
    tokens = fold.tokens
    created = fold.users.created
    deleted = fold.users.deleted
    changed = [user for user in fold.users.changed if user != fold.users.before[user.id].with_revision(user.revision)]
    if not (created or changed or deleted or tokens.created or tokens.deleted):
        return set()
    await STORE_ACCOUNTS.fetch(
        session,
        **_arrays("registered", USER, [asdict(user) for user in created]),
        **_arrays("changed", USER, [asdict(user) for user in changed]),
        **_arrays("created", TOKEN, [asdict(token) | {"scopes": " ".join(token.scopes)} for token in tokens.created]),
        deleted=deleted,
        revoked=tokens.deleted,
    )
    return {user.id for user in (*created, *changed)} | set(deleted)


def _note_row(note: Note | Tombstone) -> Row:
    return {name: getattr(note, name) for name in NOTE}


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
