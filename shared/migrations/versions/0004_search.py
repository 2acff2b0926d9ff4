"""Notes in every order that a list may have, and searchable by their words and by what resembles their titles."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LANGUAGE = "create function inkwell_search_language() returns regconfig immutable language sql return '{}'::regconfig"
WORDS = (
    "setweight(to_tsvector(inkwell_search_language(), \"left\"(title, 1000)), 'A') || "
    "setweight(to_tsvector(inkwell_search_language(), \"left\"(description, 40000)), 'B')"
)
SORTED_TITLE = sa.text('"left"(title, 200) collate "C"')


def upgrade() -> None:
    for extension in ("btree_gin", "pg_trgm"):
        op.execute(f"create extension if not exists {extension}")
    op.execute(LANGUAGE.format("pg_catalog.english"))
    op.add_column(
        "notes", sa.Column("words", TSVECTOR, sa.Computed(WORDS, persisted=True), comment="what a search finds")
    )
    op.create_index("notes_owner_id_created_date_id_idx", "notes", ["owner_id", "created_date", "id"])
    op.create_index("notes_owner_id_updated_date_id_idx", "notes", ["owner_id", "updated_date", "id"])
    op.create_index("notes_owner_id_title_idx", "notes", ["owner_id", SORTED_TITLE, "id"])
    gin = {"postgresql_using": "gin", "postgresql_with": {"gin_pending_list_limit": 256}}
    op.create_index("notes_words_idx", "notes", ["owner_id", "words"], **gin)
    op.create_index(
        "notes_trigrams_idx",
        "notes",
        ["owner_id", "title"],
        postgresql_ops={"title": "gin_trgm_ops"},
        **gin,
    )


def downgrade() -> None:
    for index in ("trigrams", "words", "owner_id_title", "owner_id_updated_date_id", "owner_id_created_date_id"):
        op.drop_index(f"notes_{index}_idx", "notes")
    op.drop_column("notes", "words")
    op.execute("drop function inkwell_search_language()")
