"""The SQL that applies a batch: statements over arrays, compiled once, the same for every batch size."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    CTE,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    case,
    cast,
    column,
    delete,
    false,
    func,
    literal_column,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.elements import ColumnElement, Grouping
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.sql.type_api import TypeEngine

from shared.contracts import Outcome
from shared.database import Statement
from shared.tables import (
    NOTE_FIELDS,
    Expression,
    commands,
    note_json,
    note_versions,
    notes,
    personal_tokens,
    tombstones,
    users,
)

Columns = dict[str, TypeEngine[Any]]


def _any(named: Expression, name: str) -> ColumnElement[bool]:
    return named == func.any(bindparam(name, type_=ARRAY(named.type)))


def _elements(name: str, columns: Columns, row_id: ColumnElement[int]) -> dict[str, Expression]:
    """Return a row's elements of the array parameters `<name>_<column>`; `<name>_id` has the rows' ids.

    A join with the arrays would leave the planner a choice: a plan made while the table was small could scan all of it
    for each element, and would still be used when the table has grown.
    """
    position = func.array_position(bindparam(f"{name}_id", type_=ARRAY(row_id.type)), row_id)
    arrays = {key: bindparam(f"{name}_{key}", type_=ARRAY(type_)) for key, type_ in columns.items()}
    return {key: Grouping(array)[position] for key, array in arrays.items()}


def _rows(name: str, columns: Columns) -> TableValuedAlias:
    """Return a FROM clause over array parameters, one for each column, `<name>_<column>`."""
    arrays = [bindparam(f"{name}_{key}", type_=ARRAY(type_)) for key, type_ in columns.items()]
    values = func.unnest(*arrays).table_valued(*(column(key, type_) for key, type_ in columns.items()))
    return values.render_derived(name=name)


NOTE = {c.name: c.type for c in notes.c if not c.computed}
PRINTED = ("title", "description", "created_date", "updated_date")
OUTCOME: Columns = {
    "position": Integer(),
    **{c.name: c.type for c in commands.c if c.name not in ("decided_at", "body", "command")},
    **{name: notes.c[name].type for name in PRINTED},
    "body": Text(),
    "command": Text(),
}
USER: Columns = {c.name: c.type for c in users.c if c.name not in ("deleted_date", "purged_revision")}
KNOWN_USER = tuple(name for name in USER if name != "password_hash")
TOKEN: Columns = {c.name: c.type for c in personal_tokens.c} | {"scopes": Text()}  # unnest() flattens nested arrays
OWNER: Columns = {
    **{name: users.c[name].type for name in ("revision", "credentials_version")},
    "decisions": Integer(),
}
COMPARED: Columns = {"version": notes.c.version.type}
TRASHED: Columns = {name: tombstones.c[name].type for name in ("version", "mod_revision")}
VERSION: Columns = {name: NOTE[name] for name in (*NOTE_FIELDS, "owner_id")}
CHANGED = {name: NOTE[name] for name in ("title", "description", "updated_date", "version", "mod_revision")}
_COUNT = bindparam("new_ids", type_=Integer())
_FAILED: ColumnElement[str] = literal_column("'failed'")
_STORED_COLUMNS = tuple(commands.c[name] for name in Outcome.model_fields)


def _values(rows: Select[Any]) -> Expression:
    """Return an array of the only column's values."""
    return func.array(rows.scalar_subquery())


def _array(rows: Select[Any]) -> Expression:
    """Return an array of the rows, each a tuple."""
    return _values(rows.with_only_columns(func.row(*rows.selected_columns)))


def _read(*, trash: bool) -> ClauseElement:
    """Select in one row the time, and the owners, outcomes and notes that a batch needs; with `trash`, tombstones, too.

    The outcomes are locked: that is a write, so the statement waits for the synchronous standby. After an interrupted
    commit only the primary may have an outcome, and its command must not be acknowledged.
    """
    known = select(*_STORED_COLUMNS).where(_any(commands.c.id, "ids")).order_by(commands.c.id)
    known_outcomes = known.with_for_update(key_share=True).cte("known")
    owners = select(*(users.c[name] for name in KNOWN_USER))
    targets = select(*(notes.c[name] for name in NOTE)).where(_any(notes.c.id, "target_id"))
    # After a restore of the sequence, a new note may have the id of a deleted one, which cannot be restored then.
    is_used = select(notes.c.id).where(notes.c.id == tombstones.c.id).exists()
    # No index serves the condition on the owner: that by owner would list all notes that an owner has deleted.
    is_owned = _any(tombstones.c.owner_id + literal_column("0"), "owners")
    deleted = select(*(tombstones.c[name] for name in NOTE)).where(
        _any(tombstones.c.id, "trash_id"), is_owned, ~is_used
    )
    return select(
        func.now().label("now"),
        _array(owners.where(_any(users.c.id, "owners"), users.c.deleted_date.is_(None))).label("owners"),
        _array(select(known_outcomes)).label("outcomes"),
        _array(targets.where(_any(notes.c.owner_id, "owners"))).label("notes"),
        _draw_ids().label("new_ids"),
        *([_array(deleted).label("tombstones")] if trash else []),
    )


def _draw_ids() -> Expression:
    """Return an array of new ids for notes, without those in use after a restore has set the sequence back."""
    next_id = func.nextval(literal_column("'notes_id_seq'"))
    numbers = func.generate_series(literal_column("1"), _COUNT)
    drawn = select(_values(select(next_id).select_from(numbers)).label("ids")).cte("drawn")
    ids = cast(select(drawn.c.ids).scalar_subquery(), ARRAY(notes.c.id.type))
    taken = [_values(select(table.c.id).where(table.c.id == func.any(ids))) for table in (notes, tombstones)]
    new_id = func.unnest(ids).column_valued("new_id")
    return _values(select(new_id).where(*(new_id != func.all(each) for each in taken)))


def _store(*, changes: bool, trash: bool = False, replays: bool = False) -> ClauseElement:
    """Store the changes to notes and the outcomes: all of them, or nothing if rows have changed since they were read.

    Without `changes`, notes are only created. With `trash`, deleted notes are restored or purged, and versions are
    stored. With `replays`, outcomes of failed commands are replaced as well; a part of the batch may be stored then,
    so a transaction has to compare the number of rows.
    """
    created = _rows("created", NOTE)
    unchanged = _match(changes=changes, trash=trash, replays=replays)
    decisions = _elements("owner", OWNER, users.c.id)["decisions"]
    raise_revisions = (
        update(users)
        .where(_any(users.c.id, "owner_id"), unchanged)
        .values(revision=users.c.revision + decisions)
        .cte("raised")
    )
    create_notes = insert(notes).from_select(list(NOTE), select(created).where(unchanged)).cte("created_notes")
    change_notes = _change_notes(unchanged) if changes else ()
    change_trash = _change_trash(unchanged) if trash else ()
    insert_outcomes = _insert_outcomes(unchanged, replays=replays).returning(*_STORED_COLUMNS)
    return insert_outcomes.add_cte(raise_revisions, create_notes, *change_notes, *change_trash)


def _match(*, changes: bool, trash: bool, replays: bool) -> ColumnElement[bool]:
    """Lock the rows that were read; true if none of them has changed, and none of the commands has an outcome."""
    owner = _elements("owner", OWNER, users.c.id)
    compared = _elements("compared", COMPARED, notes.c.id)
    trashed = _elements("trashed", TRASHED, tombstones.c.id)
    matched_owners = (
        select(users.c.id)
        .where(
            _any(users.c.id, "owner_id"),
            users.c.revision == owner["revision"],
            users.c.credentials_version == owner["credentials_version"],
            users.c.deleted_date.is_(None),
        )
        .order_by(users.c.id)
        .with_for_update(key_share=True)
        .cte("matched_owners")
    )
    matched_notes = (
        select(notes.c.id)
        .where(_any(notes.c.id, "compared_id"), notes.c.version == compared["version"])
        .order_by(notes.c.id)
        .with_for_update()
        .cte("matched_notes")
    )
    matched_tombstones = (
        select(tombstones.c.title)  # null if housekeeping has erased it; a condition would let Postgres walk the trash
        .where(
            _any(tombstones.c.id, "trashed_id"),
            tombstones.c.version == trashed["version"],
            tombstones.c.mod_revision == trashed["mod_revision"],
        )
        .order_by(tombstones.c.id)
        .with_for_update()
        .cte("matched_tombstones")
    )
    known = select(commands.c.id).where(_any(commands.c.id, "outcome_id"))
    conditions = [_is_complete(matched_owners, "owner_id", users.c.id)]
    conditions += [_is_complete(matched_notes, "compared_id", notes.c.id)] if changes else []
    texts = func.count(matched_tombstones.c.title)
    conditions += [_is_complete(matched_tombstones, "trashed_id", tombstones.c.id, texts)] if trash else []
    conditions += [] if replays else [~known.exists()]
    return select(select(literal_column("true").label("is")).where(*conditions).cte("unchanged")).exists()


def _change_notes(unchanged: ColumnElement[bool]) -> tuple[CTE, ...]:
    """Update notes, delete notes, and store the tombstones of deleted ones."""
    tombstone = _rows("tombstone", NOTE)
    new_text = _elements("changed", CHANGED, notes.c.id)
    bury = insert(tombstones).from_select(list(NOTE), select(tombstone).where(unchanged))
    new_values: dict[str, Expression] = {name: bury.excluded[name] for name in NOTE if name != "id"}
    new_values |= {"deleted_date": func.now(), "erased": false()}
    return (
        update(notes).where(_any(notes.c.id, "changed_id"), unchanged).values(new_text).cte("changed_notes"),
        delete(notes).where(_any(notes.c.id, "deleted"), unchanged).cte("deleted_notes"),
        bury.on_conflict_do_update(index_elements=[tombstones.c.id], set_=new_values).cte("stored_tombstones"),
    )


def _change_trash(unchanged: ColumnElement[bool]) -> tuple[CTE, ...]:
    """Erase tombstones, remove those of restored notes, and store versions."""
    version = _rows("version", VERSION)
    columns = {
        "note_id": version.c.id,
        "version": version.c.version,
        "owner_id": version.c.owner_id,
        "body": note_json({name: version.c[name] for name in NOTE_FIELDS}),
    }
    keep = insert(note_versions).from_select(list(columns), select(*columns.values()).where(unchanged))
    keep = keep.on_conflict_do_update(  # after a restore, a version may have another text than before
        index_elements=[note_versions.c.note_id, note_versions.c.version],
        set_={"body": keep.excluded.body, "owner_id": keep.excluded.owner_id, "stored_date": func.now()},
    )
    erase = update(tombstones).where(_any(tombstones.c.id, "erased"), unchanged)
    return (
        erase.values(title=null(), description=null()).cte("erased_tombstones"),
        delete(tombstones).where(_any(tombstones.c.id, "restored"), unchanged).cte("restored_tombstones"),
        keep.cte("kept_versions"),
    )


def _insert_outcomes(unchanged: ColumnElement[bool], *, replays: bool) -> Insert:
    outcome = _rows("outcome", OUTCOME)
    printed = {name: outcome.c[name] for name in PRINTED}
    body = note_json({**printed, "id": outcome.c.note_id, "version": outcome.c.note_version})
    columns = {name: outcome.c[name] for name in OUTCOME if name in commands.c} | {
        # `now()` is the same for the whole batch; the offset records the order in it.
        "decided_at": func.now() + outcome.c.position * literal_column("interval '1 microsecond'"),
        "command": cast(outcome.c.command, commands.c.command.type),
        "body": case((outcome.c.title.is_not(None), body), else_=outcome.c.body),
    }
    insert_outcomes = insert(commands).from_select(list(columns), select(*columns.values()).where(unchanged))
    return _replacing_failed(insert_outcomes, columns) if replays else insert_outcomes


def _is_complete(
    matched: CTE, name: str, key: Expression, count: ColumnElement[int] | None = None
) -> ColumnElement[bool]:
    """Whether as many rows were matched as the array parameter has."""
    number = select(func.count() if count is None else count).select_from(matched).scalar_subquery()
    return number == func.cardinality(bindparam(name, type_=ARRAY(key.type)))


def _replacing_failed(insert_outcomes: Insert, columns: Collection[str]) -> Insert:
    """Return the insert, which also replaces the outcome of a failed command that is replayed."""
    replayed = insert_outcomes.excluded
    new_values: dict[str, Expression] = {name: replayed[name] for name in columns if name != "id"}
    # A command that fails again keeps its place among the dead letters.
    new_values["decided_at"] = case((replayed.status == _FAILED, commands.c.decided_at), else_=replayed.decided_at)
    return insert_outcomes.on_conflict_do_update(
        index_elements=[commands.c.id],
        set_=new_values,
        where=(commands.c.status == _FAILED) & replayed.replayed_at.is_not(None),
    )


def _store_accounts() -> ClauseElement:
    """Store all changes to users and tokens in one statement."""
    registered = _rows("registered", USER)
    changed = _rows("changed", USER)
    created = _rows("created", TOKEN)
    new_values: dict[str, Expression] = {
        name: changed.c[name] for name in ("credentials_version", "name", "folded_name", "updated_date", "revision")
    }
    new_values["password_hash"] = func.coalesce(changed.c.password_hash, users.c.password_hash)
    deleted_values = {
        **dict.fromkeys(("name", "folded_name", "password_hash"), null()),
        "deleted_date": func.now(),
        "revision": users.c.revision + literal_column("1"),
    }
    token_values = {name: created.c[name] for name in TOKEN} | {
        "scopes": func.string_to_array(created.c.scopes, literal_column("' '"))
    }
    return (
        insert(personal_tokens)
        .from_select(list(token_values), select(*token_values.values()))
        .add_cte(
            insert(users).from_select(list(USER), select(registered)).cte("registered_users"),
            update(users).where(users.c.id == changed.c.id).values(new_values).cte("changed_users"),
            update(users).where(_any(users.c.id, "deleted")).values(deleted_values).cte("deleted_users"),
            delete(personal_tokens).where(_any(personal_tokens.c.id, "revoked")).cte("revoked_tokens"),
        )
    )


def _select_locked() -> ClauseElement:
    """Find the owners with their own row, or that of a note of the batch, locked by another session."""
    free_users = select(users.c.id).where(_any(users.c.id, "owners")).with_for_update(key_share=True, skip_locked=True)
    free_user = free_users.cte("free_user")
    locked_users = select(users.c.id).where(
        _any(users.c.id, "owners"), ~select(free_user.c.id).where(free_user.c.id == users.c.id).exists()
    )
    return locked_users.union(_select_owners_of_locked(notes, "target"), _select_owners_of_locked(tombstones, "trash"))


def _select_owners_of_locked(table: Table, name: str) -> Select[Any]:
    """Select the owners of those rows that another session has locked; `<name>_id` and `<name>_owner_id` name them."""
    named = _rows(name, {"id": table.c.id.type, "owner_id": table.c.owner_id.type})
    is_named = (table.c.id == named.c.id) & (table.c.owner_id == named.c.owner_id)
    free_rows = select(table.c.id).join_from(table, named, is_named).with_for_update(of=table, skip_locked=True)
    free = free_rows.cte(f"free_{name}")
    is_locked = ~select(free.c.id).where(free.c.id == table.c.id).exists()
    return select(table.c.owner_id).join_from(table, named, is_named).where(is_locked)


# Names with the same hash only wait for each other. A lock of two numbers never collides with one of a single number;
# those are held for long, and a user could choose a name with the hash of one.
LOCK_NAMES = Statement.compile(
    text(
        "select pg_advisory_xact_lock(hashtext('inkwell names'), key) from "
        "(select distinct hashtext(name) as key from unnest(:names) as name order by key) as keys"
    ).bindparams(bindparam("names", type_=ARRAY(Text())))
)
FIND_NAMES = Statement.compile(select(users.c.folded_name, users.c.id).where(_any(users.c.folded_name, "names")))
LOCK_OWNERS = Statement.compile(
    select(users.c.id).where(_any(users.c.id, "owners")).order_by(users.c.id).with_for_update(key_share=True)
)
READ = Statement.compile(_read(trash=False))
READ_WITH_TRASH = Statement.compile(_read(trash=True))
FIND_LOCKED = Statement.compile(_select_locked())
FIND_REPLAYED = Statement.compile(
    select(
        *(
            commands.c[name]
            for name in ("owner_id", "type", "note_id", "note_version", "body", "issued_at", "replayed_at")
        )
    ).where(
        _any(commands.c.owner_id, "owners"),
        commands.c.status == literal_column("'applied'"),
        commands.c.replayed_at.is_not(None),
    )
)
FIND_TOKENS = Statement.compile(select(personal_tokens).where(_any(personal_tokens.c.id, "ids")))
DRAW_USER_IDS = Statement.compile(text("select nextval('users_id_seq') from generate_series(1, :count)"))
STORE_ACCOUNTS = Statement.compile(_store_accounts())
STORE_CREATIONS = Statement.compile(_store(changes=False))
STORE = Statement.compile(_store(changes=True))
STORE_WITH_TRASH = Statement.compile(_store(changes=True, trash=True))
STORE_REPLAYS = Statement.compile(_store(changes=True, trash=True, replays=True))
