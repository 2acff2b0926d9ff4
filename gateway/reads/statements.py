"""The SELECTs of the gateway except searches, compiled once: those of lists on first use, all others at import.

A caller's read starts from the caller's row in `users`: if it returns no row, the credentials are outdated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    Select,
    Table,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    null,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from shared.contracts import Outcome, PublicToken, PublicUser
from shared.database import Statement
from shared.tables import (
    HAS_VERSION,
    NOTE_FIELDS,
    SORTED_TITLE,
    Expression,
    commands,
    note_json,
    note_versions,
    notes,
    personal_tokens,
    tombstones,
    users,
)

_OWNER = bindparam("owner", type_=BigInteger)
SKIP = bindparam("skip", type_=BigInteger)
LIMIT = bindparam("limit", type_=BigInteger)
_FOLDED_NAME = bindparam("folded_name", type_=Text)
_IS_LIVE = users.c.deleted_date.is_(None)
IS_CALLER = (
    (users.c.id == _OWNER) & (users.c.credentials_version == bindparam("credentials_version", type_=Integer)) & _IS_LIVE
)
PRINTED_NOTE = note_json({name: notes.c[name] for name in NOTE_FIELDS})
_WANTED = (
    func.unnest(
        bindparam("owners", type_=ARRAY(BigInteger)),
        bindparam("credentials_versions", type_=ARRAY(Integer)),
        bindparam("note_ids", type_=ARRAY(BigInteger)),
    )
    .table_valued("owner", "credentials_version", "note_id", with_ordinality="place", name="wanted")
    .render_derived()
)
_IS_ITS_CALLER = (
    (users.c.id == _WANTED.c.owner) & (users.c.credentials_version == _WANTED.c.credentials_version) & _IS_LIVE
)
_IS_ITS_NOTE = (notes.c.owner_id == users.c.id) & (notes.c.id == _WANTED.c.note_id)
# The limit keeps the subquery from being joined, so it is two index lookups for each wanted note. A plan that was made
# while `users` was small might read the whole of it, and is kept while it grows.
_FOUND = (
    select(
        case((notes.c.id.is_not(None), PRINTED_NOTE)).label("note"),
        notes.c.version,
        users.c.revision,
    )
    .select_from(users.outerjoin(notes, _IS_ITS_NOTE))
    .where(_IS_ITS_CALLER)
    .limit(literal_column("1"))
    .lateral("found")
)
# No row: the credentials are outdated. A row without a note: the caller has no such note.
FIND_NOTES = Statement.compile(select(_WANTED.c.place, *_FOUND.c).select_from(_WANTED.join(_FOUND, true())))
_OUTCOME = select(*(commands.c[name] for name in Outcome.model_fields))
_CURRENT_VERSION = select(users.c.credentials_version).where(users.c.id == _OWNER, _IS_LIVE).scalar_subquery()
_OUTCOME_FOR_OWNER = _OUTCOME.add_columns(_CURRENT_VERSION.label("current_version"))
_IS_COMMAND = commands.c.id == bindparam("command_id", type_=Uuid)
FIND_OUTCOME = Statement.compile(_OUTCOME_FOR_OWNER.where(_IS_COMMAND, commands.c.owner_id == _OWNER))
_IS_MY_COMMAND = (commands.c.owner_id == users.c.id) & _IS_COMMAND
POLL_OUTCOME = Statement.compile(_OUTCOME.select_from(users.outerjoin(commands, _IS_MY_COMMAND)).where(IS_CALLER))
# A registration has no owner until it is applied; then its user owns it.
_IS_REGISTRATION = (commands.c.owner_id == _OWNER) | (commands.c.type == literal_column("'user.register'"))
FIND_REGISTRATION = Statement.compile(_OUTCOME.where(_IS_COMMAND, _IS_REGISTRATION))

GET_USER = Statement.compile(select(*(users.c[name] for name in PublicUser.model_fields)).where(IS_CALLER))
FIND_PASSWORD = Statement.compile(select(users.c.password_hash).where(IS_CALLER))
FIND_LOGIN = Statement.compile(
    select(users.c.id, users.c.credentials_version, users.c.password_hash).where(
        users.c.folded_name == _FOLDED_NAME, _IS_LIVE
    )
)
FIND_CREDENTIALS_VERSION = Statement.compile(select(users.c.credentials_version).where(users.c.id == _OWNER, _IS_LIVE))
FIND_TOKEN_HOLDER = Statement.compile(
    select(users.c.id, users.c.credentials_version, personal_tokens.c.scopes, personal_tokens.c.expires_date)
    .join_from(personal_tokens, users)
    .where(
        personal_tokens.c.secret_digest == bindparam("digest", type_=Text),
        personal_tokens.c.credentials_version == users.c.credentials_version,
        personal_tokens.c.expires_date > func.now(),
        personal_tokens.c.created_date < func.now() + literal_column("interval '1 day'"),  # a later one is forged
        _IS_LIVE,
    )
)
_MY_TOKEN = (personal_tokens.c.owner_id == users.c.id) & (
    personal_tokens.c.credentials_version == users.c.credentials_version
)
_TOKEN = [personal_tokens.c[name] for name in PublicToken.model_fields]
_TOKEN_ID = bindparam("token_id", type_=Uuid())
FIND_TOKEN = Statement.compile(
    select(*_TOKEN)
    .join_from(users, personal_tokens, _MY_TOKEN & (personal_tokens.c.id == _TOKEN_ID), isouter=True)
    .where(IS_CALLER)
)
_TOKENS = (
    select(*_TOKEN)
    .where(_MY_TOKEN)
    .correlate(users)
    .order_by(personal_tokens.c.created_date, personal_tokens.c.id)
    .offset(SKIP)
    .limit(LIMIT)
    .lateral()
)
LIST_TOKENS = Statement.compile(
    select(*_TOKENS.c)
    .join_from(users, _TOKENS, true(), isouter=True)
    .where(IS_CALLER)
    .order_by(_TOKENS.c.created_date, _TOKENS.c.id)
)

_NOTE_ID = bindparam("note_id", type_=BigInteger)
_PRINTED_TRASH = note_json({name: tombstones.c[name] for name in (*NOTE_FIELDS, "deleted_date")})
_IS_IN_TRASH = tombstones.c.title.is_not(None)
# Only the id is a condition for an index: with the others, Postgres may walk all that the owner has deleted.
FIND_TRASHED = Statement.compile(
    select(case((_IS_IN_TRASH, _PRINTED_TRASH)).label("note"), tombstones.c.version)
    .select_from(
        users.outerjoin(
            tombstones, (tombstones.c.id == _NOTE_ID) & (tombstones.c.owner_id + literal_column("0") == users.c.id)
        )
    )
    .where(IS_CALLER)
)
# An owner's revision rises with each deletion, so this is the order of the deletions.
_DELETIONS = (tombstones.c.owner_id, tombstones.c.mod_revision, tombstones.c.id)
_BEFORE_DELETION = (
    _OWNER,
    bindparam("before_revision", type_=BigInteger),
    bindparam("before_id", type_=BigInteger),
)
_DELETED = (
    select(*(tombstones.c[name] for name in (*NOTE_FIELDS, "deleted_date", "mod_revision")))
    .where(tombstones.c.owner_id.between(_OWNER, _OWNER), _IS_IN_TRASH, tuple_(*_DELETIONS) < tuple_(*_BEFORE_DELETION))
    .order_by(*(each.desc() for each in _DELETIONS))
    .limit(LIMIT)
    .subquery()
)
_TRASH = select(
    func.array_agg(note_json({name: _DELETED.c[name] for name in (*NOTE_FIELDS, "deleted_date")})).label("notes"),
    func.array_agg(_DELETED.c.mod_revision).label("revisions"),
    func.array_agg(_DELETED.c.id).label("ids"),
).subquery()
LIST_TRASH = Statement.compile(select(*_TRASH.c).join_from(users, _TRASH, true()).where(IS_CALLER))


def _select_version(version: Expression, note: Table, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Select the newest of the note's versions in a table that fulfil the conditions, and its text."""
    return (
        select(cast(version, BigInteger).label("version"), note.c.body)
        .where(
            note.c.note_id == _NOTE_ID,
            note.c.owner_id.is_not_distinct_from(
                _OWNER
            ),  # no index serves this: one by owner may have millions of rows
            *conditions,
        )
        .order_by(version.desc())
        .limit(literal_column("1"))
    )


def _list_versions() -> Expression:
    """Return an array of the note's versions below `before`, each version and its text, the newest first.

    Looks up one after the other, since many outcomes may have the same version.
    """
    before = bindparam("before", type_=BigInteger)
    is_current = notes.c.version < before
    newest = select(
        case((is_current, cast(notes.c.version, BigInteger)), else_=before).label("version"),
        case((is_current, PRINTED_NOTE)).label("body"),
    ).where(notes.c.id == _NOTE_ID, notes.c.owner_id == _OWNER)
    versions = newest.cte("versions", recursive=True)
    below = versions.c.version
    written = _select_version(commands.c.note_version, commands, _HAS_VERSION, commands.c.note_version < below)
    kept = _select_version(note_versions.c.version, note_versions, note_versions.c.version < below)
    either = union_all(written.correlate(versions), kept.correlate(versions)).subquery()
    older = select(either).order_by(either.c.version.desc()).limit(literal_column("1")).lateral("older")
    versions = versions.union_all(select(*older.c).select_from(versions.join(older, true())))
    page = select(versions).where(versions.c.body.is_not(None)).limit(LIMIT).subquery()
    return func.array(select(func.row(*page.c)).select_from(page).scalar_subquery())


_HAS_VERSION = literal_column(HAS_VERSION, Boolean)
_IS_MY_NOTE = (notes.c.owner_id == users.c.id) & (notes.c.id == _NOTE_ID)
# Without a note there are no versions: those of a deleted one come back with it.
LIST_VERSIONS = Statement.compile(
    select(notes.c.id.is_not(None).label("is_found"), _list_versions().label("versions"))
    .select_from(users.outerjoin(notes, _IS_MY_NOTE))
    .where(IS_CALLER)
)
_VERSION = bindparam("version", type_=BigInteger)
# A range, because with `=` any index has the rows in order, and Postgres may walk one of all commands.
_WRITTEN = _select_version(
    commands.c.note_version, commands, _HAS_VERSION, commands.c.note_version.between(_VERSION, _VERSION)
).subquery()
_KEPT = _select_version(
    note_versions.c.version, note_versions, note_versions.c.version.between(_VERSION, _VERSION)
).subquery()
_FORMER = func.coalesce(select(_WRITTEN.c.body).scalar_subquery(), select(_KEPT.c.body).scalar_subquery())
FIND_VERSION = Statement.compile(
    select(
        notes.c.id.is_not(None).label("is_found"),
        case((notes.c.id.is_(None), null()), (notes.c.version == _VERSION, PRINTED_NOTE), else_=_FORMER).label("body"),
    )
    .select_from(users.outerjoin(notes, _IS_MY_NOTE))
    .where(IS_CALLER)
)

PING = Statement.compile(select(literal_column("1")))


SORTED_BY: dict[str, Expression] = {
    "id": notes.c.id,
    "created": notes.c.created_date,
    "updated": notes.c.updated_date,
    "title": literal_column(SORTED_TITLE, Text),
}
"""The sort keys of a list; each has an index, with the id as the tie-breaker."""


def _bind_time(name: str) -> Expression:
    return bindparam(name, type_=DateTime(timezone=True))


FILTERS = {
    "created_from": notes.c.created_date >= _bind_time("created_from"),
    "created_until": notes.c.created_date < _bind_time("created_until"),
    "updated_from": notes.c.updated_date >= _bind_time("updated_from"),
    "updated_until": notes.c.updated_date < _bind_time("updated_until"),
    "title_prefix": notes.c.folded_text.like(
        func.inkwell_pattern(bindparam("title_prefix", type_=Text)) + literal_column("'%'", Text)
    ),
}
"""The filters of a list."""


# The best index depends on the parameters.
CUSTOM_PLAN = "set local plan_cache_mode = force_custom_plan"
_SORTED = "set local enable_sort = on"


@dataclass(frozen=True, slots=True)
class ListShape:
    """The parts of a list request that decide its SQL; the others are parameters."""

    sorted_by: str = "id"
    descending: bool = False
    filters: frozenset[str] = frozenset()
    is_continued: bool = False
    """Whether it begins after a position, given by the parameters `after_key` and `after_id`."""
    is_counted: bool = False


@cache
def build_list_statement(shape: ListShape) -> Statement:
    """Build the statement of a page: notes as JSON, ids, sort keys unless sorted by id, and the total if counted."""
    key = SORTED_BY[shape.sorted_by]
    conditions = [FILTERS[name] for name in sorted(shape.filters)]
    # A range, because with `=` Postgres may scan the primary key, past the notes of all other owners.
    mine = notes.c.owner_id == _OWNER if conditions else notes.c.owner_id.between(_OWNER, _OWNER)
    place = (notes.c.owner_id, notes.c.id) if key is notes.c.id else (notes.c.owner_id, key, notes.c.id)
    page = select(*(notes.c[name] for name in NOTE_FIELDS), key.label("key")).where(mine, *conditions)
    if shape.is_continued:
        after_key = bindparam("after_key", type_=key.type)
        after_id = bindparam("after_id", type_=BigInteger)
        after = (_OWNER, after_id) if key is notes.c.id else (_OWNER, after_key, after_id)
        here = tuple_(*place)
        there = tuple_(*after)
        page = page.where(here < there if shape.descending else here > there)
    in_order = [each.desc() if shape.descending else each for each in place]
    rows = page.order_by(*in_order).offset(SKIP).limit(LIMIT).subquery()
    selected = select(
        func.array_agg(note_json({name: rows.c[name] for name in NOTE_FIELDS})).label("notes"),
        func.array_agg(rows.c.id).label("ids"),
        *(() if key is notes.c.id else (func.array_agg(rows.c.key).label("keys"),)),
    ).subquery()
    counted = select(func.count()).where(mine, *conditions).scalar_subquery()
    columns = (users.c.revision, *selected.c, *([counted.label("total")] if shape.is_counted else []))
    query = select(*columns).join_from(users, selected, true()).where(IS_CALLER)
    return Statement.compile(query, settings=f"{CUSTOM_PLAN}; {_SORTED}" if conditions else "")


def _list_changes(table: Table, fields: Sequence[Expression]) -> Select[Any]:
    """List an owner's rows after a position, in the order of the index on them."""
    place = (table.c.owner_id, table.c.mod_revision, table.c.id)
    after = (_OWNER, bindparam("after_revision", type_=BigInteger), bindparam("after_id", type_=BigInteger))
    rows = select(*place, *fields).where(table.c.owner_id.between(_OWNER, _OWNER), tuple_(*place) > tuple_(*after))
    return select(rows.order_by(*place).limit(LIMIT).subquery())


def _build_changes() -> Statement:
    """Build the statement of a page of changes: notes as JSON, null for deleted ones, with ids and revisions."""
    texts = NOTE_FIELDS[1:]
    written = _list_changes(notes, [notes.c[name] for name in texts])
    deleted = _list_changes(tombstones, [null().cast(notes.c[name].type).label(name) for name in texts])
    both = union_all(written, deleted).subquery()
    rows = select(both).order_by(both.c.owner_id, both.c.mod_revision, both.c.id).limit(LIMIT).subquery()
    selected = select(
        func.array_agg(rows.c.id).label("ids"),
        func.array_agg(rows.c.mod_revision).label("revisions"),
        func.array_agg(note_json({name: rows.c[name] for name in NOTE_FIELDS})).label("notes"),
    ).subquery()
    query = select(users.c.revision, users.c.purged_revision, *selected.c).join_from(users, selected, true())
    return Statement.compile(query.where(IS_CALLER))


LIST_CHANGES = _build_changes()

# Both run in one transaction with one snapshot.
START_EXPORT = Statement.compile(select(users.c.revision, func.now().label("time")).where(IS_CALLER))
EXPORT_NOTES = Statement.compile(
    select(notes.c.id, PRINTED_NOTE.label("note"))
    .where(
        select(users.c.id).where(IS_CALLER).exists(),
        notes.c.owner_id.between(_OWNER, _OWNER),
        tuple_(notes.c.owner_id, notes.c.id) > tuple_(_OWNER, bindparam("after_id", type_=BigInteger)),
    )
    .order_by(notes.c.owner_id, notes.c.id)
)
