"""Searches find what is written: notes have their text in the form that is compared, and words by their parts.

Locks `notes` while it is rewritten and its indexes are built; docs/upgrading.md has the time for a million notes.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Removes accents, the points of Hebrew and Arabic, selectors of variants, and what is invisible; vowel signs and other
# marks that make another letter stay. NFKD, not NFKC, so that the form of a part of a text is a part of its form.
FOLD = r"""
create function inkwell_fold(value text) returns text immutable parallel safe language sql return case
  when octet_length(value) = length(value) then lower(value collate pg_c_utf8)
  else
    replace(replace(replace(replace(replace(replace(replace(replace(replace(
      lower(upper(
        regexp_replace(regexp_replace(regexp_replace(
          normalize(value, NFKD),
          '[\u00ad\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f'
          '\u0670\u1ab0-\u1aff\u1dc0-\u1dff\u200b-\u200f\u2060-\u2064\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f'
          '\ufeff]+', '', 'g'),
          '[\u2010-\u2015\u2212]', '-', 'g'),
          '[\u2018\u2019\u02bc]', '''', 'g')
        collate pg_c_utf8) collate pg_c_utf8),
      'ß', 'ss'), 'æ', 'ae'), 'œ', 'oe'), 'þ', 'th'), 'ø', 'o'), 'ł', 'l'), 'đ', 'd'), 'ħ', 'h'), 'ŧ', 't')
end
"""
# For LIKE; null instead of what would match every text.
PATTERN = r"""
create function inkwell_pattern(value text) returns text immutable parallel safe language sql return
  replace(replace(replace(nullif(inkwell_fold(value), ''), '\', '\\'), '%', '\%'), '_', '\_')
"""
# Postgres would read these signs as parts of numbers, hosts, paths, addresses and tags.
SPACES = """
create function inkwell_split_words(value text) returns text immutable parallel safe language sql return
  replace(replace(replace(replace(replace(replace(replace(replace(replace(
    value, '-', ' '), '/', ' '), '.', ' '), '@', ' '), '_', ' '), '+', ' '), '&', ' '), '<', ' '), '~', ' ')
"""
# Twice unless it is ASCII: with its accents, which stemmers know, and without.
WORDS_OF = """
create function inkwell_words(value text) returns tsvector immutable parallel safe language sql return case
  when octet_length(value) = length(value)
  then to_tsvector(inkwell_search_language(), inkwell_split_words(value))
  else
    to_tsvector(inkwell_search_language(), inkwell_split_words(lower(normalize(value, NFKC) collate pg_c_utf8)))
    || to_tsvector(inkwell_search_language(), inkwell_split_words(inkwell_fold(value)))
end
"""
# Null unless it has a word that a match must have.
QUERY = """
create function inkwell_query(value text) returns tsquery immutable parallel safe language sql return (
  select case when querytree(query) not in ('', 'T') then query end
  from (
    select case
      when octet_length(value) = length(value) then websearch_to_tsquery(inkwell_search_language(), value)
      else
        websearch_to_tsquery(inkwell_search_language(), lower(normalize(value, NFKC) collate pg_c_utf8))
        || websearch_to_tsquery(inkwell_search_language(), inkwell_fold(value))
    end as query
  ) as parsed
)
"""
WORDS = (
    "setweight(inkwell_words(\"left\"(title, 1000)), 'A') || "
    "setweight(inkwell_words(\"left\"(description, 40000)), 'B')"
)
FORMER_WORDS = (
    "setweight(to_tsvector(inkwell_search_language(), \"left\"(title, 1000)), 'A') || "
    "setweight(to_tsvector(inkwell_search_language(), \"left\"(description, 40000)), 'B')"
)
TEXT = 'inkwell_fold("left"(title, 1000) || chr(31) || "left"(description, 40000))'
GIN = {"postgresql_using": "gin", "postgresql_with": {"gin_pending_list_limit": 256}}


def upgrade() -> None:
    for function in (FOLD, PATTERN, SPACES, WORDS_OF, QUERY):
        op.execute(function)
    op.drop_index("notes_trigrams_idx", "notes")
    # In one statement, so that the table is rewritten once.
    op.execute(
        f"alter table notes add column folded_text text generated always as ({TEXT}) stored, "
        f"alter column words set expression as ({WORDS})"
    )
    op.execute("comment on column notes.folded_text is 'title and description as a search compares them'")
    op.create_index(
        "notes_trigrams_idx",
        "notes",
        ["owner_id", "folded_text"],
        postgresql_ops={"folded_text": "gin_trgm_ops"},
        **GIN,
    )
    op.execute("analyze notes (words, folded_text)")  # plans of filters depend on it, and nothing else would soon do it


def downgrade() -> None:
    op.drop_index("notes_trigrams_idx", "notes")
    op.execute(f"alter table notes drop column folded_text, alter column words set expression as ({FORMER_WORDS})")
    op.create_index(
        "notes_trigrams_idx", "notes", ["owner_id", "title"], postgresql_ops={"title": "gin_trgm_ops"}, **GIN
    )
    for function in ("query", "words", "split_words", "pattern", "fold"):
        op.execute(f"drop function inkwell_{function}(text)")
