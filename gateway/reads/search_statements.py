"""The SELECTs of a search, compiled at import: by words, by literal text, and by similarity."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Float,
    Text,
    TextClause,
    bindparam,
    column,
    func,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.types import TypeEngine

from gateway.reads.statements import CUSTOM_PLAN, IS_CALLER, LIMIT, PRINTED_NOTE, SKIP
from shared.database import Statement
from shared.tables import notes, users

_SEARCHED: dict[str, TypeEngine[Any]] = {
    **dict.fromkeys(("owner", "bound", "reach"), BigInteger()),
    **dict.fromkeys(("words", "text"), Text()),
    "symbols": ARRAY(Text),
}
_QUERY = "inkwell_query(:words)"
_TEXT = "nullif(inkwell_fold(:text), '')"
_CONTAINS_TEXT = "folded_text like '%' || inkwell_pattern(:text) || '%'"
# An index of trigrams finds three letters or digits in a row, of an alphabet that the database's locale knows.
_HAS_TRIGRAMS = f"coalesce(show_trgm({_TEXT}) <> '{{}}' and {_TEXT} ~ '[[:alnum:]]{{3}}', false)"
_IS_BEYOND_REACH = (
    f"{_TEXT} is not null and not {_HAS_TRIGRAMS} and exists "
    "(select from notes where owner_id between :owner and :owner order by owner_id desc, id desc offset :reach)"
)
# Samples the newest notes. If 3 % of them match, the words are common, and walking back from the newest note soon finds
# enough matches (`walked`); otherwise they are rare enough for the index to find all of them (`looked_up`), as it does
# if the walk ends early because the words became common only recently. See docs/decisions/0015.
_MATCHES_OF_WORDS = f"""
with newest as (
  select words from notes where owner_id between :owner and :owner order by owner_id desc, id desc limit 1000
),
tried as materialized (select count(*) filter (where words @@ {_QUERY}) >= 30 as is_common from newest),
recent as (
  select owner_id, id, words from notes
  where owner_id between :owner and :owner order by owner_id desc, id desc limit :reach
),
walked as materialized (
  select id from recent where (select is_common from tried) and words @@ {_QUERY}
  order by owner_id desc, id desc limit :bound + 1
),
looked_up as materialized (
  select id from notes where owner_id = :owner and (select count(*) from walked) <= :bound and words @@ {_QUERY}
),
matches as materialized (
  select id from walked where (select count(*) from walked) > :bound
  union all (select id from looked_up order by id desc limit :bound + 1)
),
ranked as materialized (select id from matches order by id desc limit :bound)
select id,
  ts_rank(words, {_QUERY}) + (
    select count(*) from unnest(:symbols) as symbol where strpos(folded_text, nullif(inkwell_fold(symbol), '')) > 0
  ) as rank,
  (select count(*) from matches) as total
from ranked join notes using (id)
"""  # noqa: S608 - constants
# Notes that contain the text and not the words. As above, but where there are no trigrams to look up, the walk is all.
# Ranks one even if `bound` is 0, since their number comes with it.
_MATCHES_OF_TEXT = f"""
with newest as (
  select words, folded_text from notes
  where owner_id between :owner and :owner order by owner_id desc, id desc limit 1000
),
tried as materialized (
  select {_HAS_TRIGRAMS} as is_indexed,
    count(*) filter (where {_CONTAINS_TEXT} and (words @@ {_QUERY}) is not true) >= 30 as is_common
  from newest
),
recent as (
  select owner_id, id, words, folded_text from notes
  where owner_id between :owner and :owner order by owner_id desc, id desc limit :reach
),
walked as materialized (
  select id from recent
  where (select is_common or not is_indexed from tried) and {_CONTAINS_TEXT} and (words @@ {_QUERY}) is not true
  order by owner_id desc, id desc limit :bound + 1
),
looked_up as materialized (
  select id from notes
  where owner_id = :owner and (select is_indexed from tried) and (select count(*) from walked) <= :bound
    and {_CONTAINS_TEXT} and (words @@ {_QUERY}) is not true
),
matches as materialized (
  select id from walked where (select count(*) from walked) > :bound or not (select is_indexed from tried)
  union all (select id from looked_up order by id desc limit :bound + 1)
),
ranked as materialized (select id from matches order by id desc limit greatest(:bound, 1))
select id, (strpos(split_part(folded_text, chr(31), 1), {_TEXT}) > 0)::int as rank,
  (select count(*) from matches) as total
from ranked join notes using (id)
"""  # noqa: S608 - constants
# Limits the comparisons, for very many notes may be similar.
_MATCHES_OF_TRIGRAMS = f"""
with similar_notes as materialized (
  select id, folded_text from notes
  where owner_id = :owner and folded_text %> {_TEXT} and {_HAS_TRIGRAMS}
  limit 2 * :bound
),
compared as materialized (select id, word_similarity({_TEXT}, folded_text) as rank from similar_notes),
matches as materialized (select id, rank from compared order by rank desc, id desc limit :bound + 1)
select id, rank, (select count(*) from matches) as total from matches order by rank desc, id desc limit :bound
"""  # noqa: S608 - constants


def _search(matches: str, is_partial: str = "false") -> Statement:
    """Build the statement of a search: the best matches as JSON, their number, and whether there may be older ones.

    The number exceeds `bound` if there are more. Sorting and index access are separate CTEs: with `enable_sort` off,
    Postgres sorts only where it has to.
    """
    columns = (column("id", BigInteger), column("rank", Float), column("total", BigInteger))
    found = _bind(matches).columns(*columns).cte("found")
    in_order = select(found).order_by(found.c.rank.desc(), found.c.id.desc()).offset(SKIP).limit(LIMIT)
    best = in_order.cte("best").prefix_with("materialized", dialect="postgresql")
    printed = aggregate_order_by(PRINTED_NOTE, best.c.rank.desc(), best.c.id.desc())
    page = select(func.array_agg(printed)).join_from(best, notes, notes.c.id == best.c.id).scalar_subquery()
    total = select(func.coalesce(func.max(found.c.total), literal_column("0"))).scalar_subquery()
    partial = _bind(f"select {is_partial} as is_partial").columns(column("is_partial", Boolean)).scalar_subquery()
    query = select(page.label("notes"), total.label("total"), partial.label("is_partial"))
    return Statement.compile(query.select_from(users).where(IS_CALLER), settings=CUSTOM_PLAN)


def _bind(sql: str) -> TextClause:
    """Return the SQL with the types of its parameters."""
    escaped = sql.replace(":alnum:", r"\:alnum\:")
    return text(escaped).bindparams(
        *(bindparam(name, type_=type_) for name, type_ in _SEARCHED.items() if f":{name}" in sql)
    )


SEARCH_WORDS = _search(_MATCHES_OF_WORDS)
SEARCH_TEXT = _search(_MATCHES_OF_TEXT, _IS_BEYOND_REACH)
SEARCH_TRIGRAMS = _search(_MATCHES_OF_TRIGRAMS)
