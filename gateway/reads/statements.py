"""Every SELECT of the gateway, compiled once: those of lists on first use, all others at import.

A caller's read starts from the caller's row in `users`: if it returns no row, the credentials are outdated.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Float,
    Integer,
    Text,
    Uuid,
    bindparam,
    case,
    column,
    func,
    literal_column,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by

from shared.contracts import Outcome, PublicToken, PublicUser
from shared.database import Statement
from shared.tables import NOTE_FIELDS, SORTED_TITLE, commands, note_json, notes, personal_tokens, users

_OWNER = bindparam("owner", type_=BigInteger)
_SKIP = bindparam("skip", type_=BigInteger)
_LIMIT = bindparam("limit", type_=BigInteger)
_FOLDED_NAME = bindparam("folded_name", type_=Text)
_IS_LIVE = users.c.deleted_date.is_(None)
_IS_CALLER = (
    (users.c.id == _OWNER) & (users.c.credentials_version == bindparam("credentials_version", type_=Integer)) & _IS_LIVE
)
_PRINTED_NOTE = note_json({name: notes.c[name] for name in NOTE_FIELDS})
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
        case((notes.c.id.is_not(None), _PRINTED_NOTE)).label("note"),
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
_IS_COMMAND = commands.c.id == bindparam("command_id", type_=Uuid)
FIND_OUTCOME = Statement.compile(_OUTCOME.where(_IS_COMMAND, commands.c.owner_id == _OWNER))
_IS_MY_COMMAND = (commands.c.owner_id == users.c.id) & _IS_COMMAND
POLL_OUTCOME = Statement.compile(_OUTCOME.select_from(users.outerjoin(commands, _IS_MY_COMMAND)).where(_IS_CALLER))
# A registration has no owner until it is applied; then its user owns it.
_IS_REGISTRATION = (commands.c.owner_id == _OWNER) | (commands.c.type == literal_column("'user.register'"))
FIND_REGISTRATION = Statement.compile(_OUTCOME.where(_IS_COMMAND, _IS_REGISTRATION))

GET_USER = Statement.compile(select(*(users.c[name] for name in PublicUser.model_fields)).where(_IS_CALLER))
FIND_PASSWORD = Statement.compile(select(users.c.password_hash).where(_IS_CALLER))
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
    .where(_IS_CALLER)
)
_TOKENS = (
    select(*_TOKEN)
    .where(_MY_TOKEN)
    .correlate(users)
    .order_by(personal_tokens.c.created_date, personal_tokens.c.id)
    .offset(_SKIP)
    .limit(_LIMIT)
    .lateral()
)
LIST_TOKENS = Statement.compile(
    select(*_TOKENS.c)
    .join_from(users, _TOKENS, true(), isouter=True)
    .where(_IS_CALLER)
    .order_by(_TOKENS.c.created_date, _TOKENS.c.id)
)

PING = Statement.compile(select(literal_column("1")))


SORTED_BY: dict[str, ColumnElement[Any]] = {
    "id": notes.c.id,
    "created": notes.c.created_date,
    "updated": notes.c.updated_date,
    "title": literal_column(SORTED_TITLE, Text),
}
"""The sort keys of a list; each has an index, with the id as the tie-breaker."""


def _bind_time(name: str) -> ColumnElement[Any]:
    return bindparam(name, type_=DateTime(timezone=True))


FILTERS = {
    "created_from": notes.c.created_date >= _bind_time("created_from"),
    "created_until": notes.c.created_date < _bind_time("created_until"),
    "updated_from": notes.c.updated_date >= _bind_time("updated_from"),
    "updated_until": notes.c.updated_date < _bind_time("updated_until"),
    "title_prefix": func.starts_with(SORTED_BY["title"], bindparam("title_prefix", type_=Text)),
}
"""The filters of a list."""


# The best index depends on the parameters.
_CUSTOM_PLAN = "set local plan_cache_mode = force_custom_plan"
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
    rows = page.order_by(*in_order).offset(_SKIP).limit(_LIMIT).subquery()
    selected = select(
        func.array_agg(note_json({name: rows.c[name] for name in NOTE_FIELDS})).label("notes"),
        func.array_agg(rows.c.id).label("ids"),
        *(() if key is notes.c.id else (func.array_agg(rows.c.key).label("keys"),)),
    ).subquery()
    counted = select(func.count()).where(mine, *conditions).scalar_subquery()
    columns = (users.c.revision, *selected.c, *([counted.label("total")] if shape.is_counted else []))
    query = select(*columns).join_from(users, selected, true()).where(_IS_CALLER)
    return Statement.compile(query, settings=f"{_CUSTOM_PLAN}; {_SORTED}" if conditions else "")


# Samples the newest notes. If 3 % of them match, the words are common, and walking back from the newest note soon finds
# enough matches (`walked`); otherwise they are rare enough for the index to find all of them (`looked_up`), as it does
# if the walk ends early because the words became common only recently. See docs/decisions/0015.
_MATCHES_OF_WORDS = """
with newest as (
  select words from notes where owner_id between :owner and :owner order by owner_id desc, id desc limit 1000
),
tried as materialized (
  select count(*) filter (where words @@ websearch_to_tsquery(inkwell_search_language(), :q)) >= 30 as is_common
  from newest
),
recent as (
  select owner_id, id, words from notes
  where owner_id between :owner and :owner order by owner_id desc, id desc limit 50 * :bound
),
walked as materialized (
  select id from recent
  where (select is_common from tried) and words @@ websearch_to_tsquery(inkwell_search_language(), :q)
  order by owner_id desc, id desc limit :bound + 1
),
looked_up as materialized (
  select id from notes
  where owner_id = :owner and (select count(*) from walked) <= :bound
    and words @@ websearch_to_tsquery(inkwell_search_language(), :q)
),
matches as materialized (
  select id from walked where (select count(*) from walked) > :bound
  union all (select id from looked_up order by id desc limit :bound + 1)
),
ranked as materialized (select id from matches order by id desc limit :bound)
select id, ts_rank(words, websearch_to_tsquery(inkwell_search_language(), :q)) as rank,
  (select count(*) from matches) as total
from ranked join notes using (id)
"""
# Only for queries that have words and exclude none. Limits the comparisons, for very many titles may be similar.
_MATCHES_OF_TRIGRAMS = """
with query as materialized (select websearch_to_tsquery(inkwell_search_language(), :q) as words),
similar_titles as materialized (
  select id, title from notes
  where owner_id = :owner and title %> :q and show_trgm(:q) <> '{}'
    and (select numnode(words) > 0 and querytree(words) = words::text from query)
  limit 2 * :bound
),
compared as materialized (select id, word_similarity(:q, title) as rank from similar_titles),
matches as materialized (select id, rank from compared order by rank desc, id desc limit :bound + 1)
select id, rank, (select count(*) from matches) as total from matches order by rank desc, id desc limit :bound
"""


def _search(matches: str) -> Statement:
    """Build the statement of a search: the best matches as JSON, and their number, which exceeds `bound` if limited.

    Sorting and index access are separate CTEs: with `enable_sort` off, Postgres sorts only where it has to.
    """
    numbers = [bindparam(name, type_=BigInteger) for name in ("owner", "bound")]
    columns = (column("id", BigInteger), column("rank", Float), column("total", BigInteger))
    found = text(matches).bindparams(bindparam("q", type_=Text), *numbers).columns(*columns).cte("found")
    in_order = select(found).order_by(found.c.rank.desc(), found.c.id.desc()).offset(_SKIP).limit(_LIMIT)
    best = in_order.cte("best").prefix_with("materialized", dialect="postgresql")
    printed = aggregate_order_by(_PRINTED_NOTE, best.c.rank.desc(), best.c.id.desc())
    page = select(func.array_agg(printed)).join_from(best, notes, notes.c.id == best.c.id).scalar_subquery()
    total = select(func.coalesce(func.max(found.c.total), literal_column("0"))).scalar_subquery()
    query = select(page.label("notes"), total.label("total")).select_from(users).where(_IS_CALLER)
    return Statement.compile(query, settings=_CUSTOM_PLAN)


SEARCH_WORDS = _search(_MATCHES_OF_WORDS)
SEARCH_TRIGRAMS = _search(_MATCHES_OF_TRIGRAMS)
