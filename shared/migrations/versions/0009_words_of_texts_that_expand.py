"""The words of a note are cut after its text was normalized, which makes some characters eighteen times as long.

Uncut, their words could exceed what Postgres stores of one note, so that it could not be saved.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# The stored words of notes stay: they differ only for texts that could not be saved.
WORDS_OF = """
create or replace function inkwell_words(value text) returns tsvector immutable parallel safe language sql return case
  when octet_length(value) = length(value)
  then to_tsvector(inkwell_search_language(), inkwell_split_words(value))
  else
    to_tsvector(
      inkwell_search_language(),
      inkwell_split_words("left"(lower(normalize(value, NFKC) collate pg_c_utf8), 40000))
    )
    || to_tsvector(inkwell_search_language(), inkwell_split_words("left"(inkwell_fold(value), 40000)))
end
"""
FORMER_WORDS_OF = """
create or replace function inkwell_words(value text) returns tsvector immutable parallel safe language sql return case
  when octet_length(value) = length(value)
  then to_tsvector(inkwell_search_language(), inkwell_split_words(value))
  else
    to_tsvector(inkwell_search_language(), inkwell_split_words(lower(normalize(value, NFKC) collate pg_c_utf8)))
    || to_tsvector(inkwell_search_language(), inkwell_split_words(inkwell_fold(value)))
end
"""


def upgrade() -> None:
    op.execute(WORDS_OF)


def downgrade() -> None:
    op.execute(FORMER_WORDS_OF)
