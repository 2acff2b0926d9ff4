"""The SQL with which a batch is applied: compiled once, over sets, so it does not grow with the batch."""

from typing import Any

from sqlalchemy import (
    Integer,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    literal_column,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.sql.type_api import TypeEngine

from shared.contracts import Outcome
from shared.database import Statement
from shared.tables import attempt_marks, commands, note_json, notes, personal_tokens, users

Columns = dict[str, TypeEngine[Any]]


def _any(named: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    return named == func.any(bindparam(name, type_=ARRAY(named.type)))


def _rows(name: str, columns: Columns) -> TableValuedAlias:
    """A FROM clause that reads one array parameter for each column, `<name>_<column>`."""
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
USER: Columns = {c.name: c.type for c in users.c if c.name != "deleted_date"}
TOKEN: Columns = {c.name: c.type for c in personal_tokens.c} | {"scopes": Text()}  # arrays of arrays do not unnest
_FAILED: ColumnElement[str] = literal_column("'failed'")
_STORED_COLUMNS = tuple(commands.c[name] for name in Outcome.model_fields)


def _lock_notes() -> ClauseElement:
    target = _rows("target", {"id": notes.c.id.type, "owner_id": notes.c.owner_id.type})
    mine = (notes.c.id == target.c.id) & (notes.c.owner_id == target.c.owner_id)
    return (
        select(*(notes.c[name] for name in NOTE))
        .join_from(notes, target, mine)
        .order_by(notes.c.id)
        .with_for_update(of=notes)
    )


def _store() -> ClauseElement:
    created, changed, outcome = _rows("created", NOTE), _rows("changed", NOTE), _rows("outcome", OUTCOME)
    insert_notes = insert(notes).from_select(list(NOTE), select(created))
    new_text = {name: changed.c[name] for name in ("title", "description", "updated_date", "version")}
    update_notes = update(notes).where(notes.c.id == changed.c.id).values(new_text)
    delete_notes = delete(notes).where(_any(notes.c.id, "deleted"))
    printed = {name: outcome.c[name] for name in PRINTED}
    body = note_json({**printed, "id": outcome.c.note_id, "version": outcome.c.note_version})
    columns = {name: outcome.c[name] for name in OUTCOME if name in commands.c} | {
        # The order of a batch's commands, which share `now()`, is that of their times.
        "decided_at": func.now() + outcome.c.position * literal_column("interval '1 microsecond'"),
        "command": cast(outcome.c.command, commands.c.command.type),
        "body": case((outcome.c.title.is_not(None), body), else_=outcome.c.body),
    }
    insert_outcomes = insert(commands).from_select(list(columns), select(*columns.values()))
    replayed = insert_outcomes.excluded
    new_values: dict[str, ColumnElement[Any]] = {name: replayed[name] for name in columns if name != "id"}
    # What fails again keeps its place among the dead letters.
    new_values["decided_at"] = case((replayed.status == _FAILED, commands.c.decided_at), else_=replayed.decided_at)
    return (
        insert_outcomes.on_conflict_do_update(
            index_elements=[commands.c.id],
            set_=new_values,
            where=(commands.c.status == _FAILED) & replayed.replayed_at.is_not(None),
        )
        .returning(*_STORED_COLUMNS)
        .add_cte(
            insert_notes.cte("created_notes"), update_notes.cte("changed_notes"), delete_notes.cte("deleted_notes")
        )
    )


def _store_accounts() -> ClauseElement:
    """The insertion of tokens, with everything else about users and tokens before it."""
    registered, changed, created = _rows("registered", USER), _rows("changed", USER), _rows("created", TOKEN)
    new_values: dict[str, ColumnElement[Any]] = {
        name: changed.c[name] for name in ("credentials_version", "name", "folded_name", "updated_date")
    }
    new_values["password_hash"] = func.coalesce(changed.c.password_hash, users.c.password_hash)
    deleted_values = {"name": null(), "folded_name": null(), "password_hash": null(), "deleted_date": func.now()}
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


_MARKED_COMMAND = attempt_marks.c.command_id == bindparam("command_id", type_=Uuid())
_MARKING_PROCESS = bindparam("process_id", type_=Uuid())

# Two names that share a lock only wait for each other. A lock of two numbers is none of those of one number, which
# are held for long: anybody can choose a name that hashes to a given number.
LOCK_NAMES = Statement.compile(
    text(
        "select pg_advisory_xact_lock(hashtext('inkwell names'), key) from "
        "(select distinct hashtext(name) as key from unnest(:names) as name order by key) as keys"
    ).bindparams(bindparam("names", type_=ARRAY(Text())))
)
FIND_NAMES = Statement.compile(select(users.c.folded_name, users.c.id).where(_any(users.c.folded_name, "names")))
LOCK_OWNERS = Statement.compile(
    select(*(users.c[name] for name in USER if name != "password_hash"))
    .where(_any(users.c.id, "ids"), users.c.deleted_date.is_(None))
    .order_by(users.c.id)
    .with_for_update(key_share=True)
)
_TRANSACTION = select(func.now().label("started_at")).subquery("transaction")
FIND_OUTCOMES = Statement.compile(  # at least one row, for Postgres' clock
    select(_TRANSACTION.c.started_at, *_STORED_COLUMNS).join_from(
        _TRANSACTION, commands, _any(commands.c.id, "ids"), isouter=True
    )
)
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
LOCK_NOTES = Statement.compile(_lock_notes())
FIND_TOKENS = Statement.compile(select(personal_tokens).where(_any(personal_tokens.c.id, "ids")))
DRAW_NOTE_IDS = Statement.compile(text("select nextval('notes_id_seq') from generate_series(1, :count)"))
DRAW_USER_IDS = Statement.compile(text("select nextval('users_id_seq') from generate_series(1, :count)"))
STORE_ACCOUNTS = Statement.compile(_store_accounts())
STORE = Statement.compile(_store())
MARK_ATTEMPT = Statement.compile(insert(attempt_marks).on_conflict_do_nothing())
COUNT_OTHER_MARKS = Statement.compile(
    select(func.count()).where(_MARKED_COMMAND, attempt_marks.c.process_id != _MARKING_PROCESS)
)
UNMARK_ATTEMPT = Statement.compile(
    delete(attempt_marks).where(_MARKED_COMMAND, attempt_marks.c.process_id == _MARKING_PROCESS)
)
CLEAR_MARKS = Statement.compile(delete(attempt_marks).where(_any(attempt_marks.c.command_id, "ids")))
