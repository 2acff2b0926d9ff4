"""Changes can be followed, deleted notes restored or erased, and earlier versions of a note read.

Writes wait while two indexes are built, reads do not; docs/upgrading.md has the time for a million rows.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# `+ 0` keeps the condition from an index: a plan made for a small table walks all tombstones of the owner.
NUMBER_DELETIONS = """
create or replace function inkwell_number_deletions() returns trigger language plpgsql
set search_path = public, pg_temp as $$
begin
  update users set revision = revision + 1, purged_revision = revision + 1
  where id = any(array( -- not `in`: a plan from when the table was small would read the whole of it
    select distinct deleted.owner_id from deleted
    where not exists (
      select from tombstones
      where tombstones.id = deleted.id and tombstones.owner_id{by_id} = deleted.owner_id
        and tombstones.mod_revision{by_id} > deleted.mod_revision
    )
  ));
  return null;
end $$
"""
TEXT = ("title", "description")
TOMBSTONE_TEXT = "select (title, description, created_date, updated_date, version) on tombstones"
HAS_VERSION = "status = 'applied' and note_version is not null and body is not null"


def upgrade() -> None:
    op.create_index("notes_owner_id_mod_revision_id_idx", "notes", ["owner_id", "mod_revision", "id"])
    op.create_index(
        "commands_versions_idx", "commands", ["note_id", "note_version"], postgresql_where=sa.text(HAS_VERSION)
    )
    op.create_table(
        "note_versions",
        sa.Column("note_id", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("owner_id", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False, comment="the note as JSON, as an outcome's body has it"),
        sa.Column(
            "stored_date",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.now(),
            comment="by Postgres' clock",
        ),
        sa.PrimaryKeyConstraint("note_id", "version", name="note_versions_pkey"),
    )
    op.create_index("note_versions_owner_id_idx", "note_versions", ["owner_id"])
    op.create_index("note_versions_stored_date_idx", "note_versions", ["stored_date"])
    for column in TEXT:
        op.alter_column("tombstones", column, nullable=True)
        op.execute(f"comment on column tombstones.{column} is 'null once it is erased'")
    op.add_column(
        "tombstones",
        sa.Column(
            "erased",
            sa.Boolean,
            nullable=False,
            server_default=sa.false(),
            comment="whether its versions and outcomes have lost the text, too",
        ),
    )
    has_text = sa.text("title is not null")
    op.create_index("tombstones_trash_idx", "tombstones", ["owner_id", "mod_revision", "id"], postgresql_where=has_text)
    op.create_index("tombstones_with_text_idx", "tombstones", ["deleted_date"], postgresql_where=has_text)
    op.create_index(
        "tombstones_to_erase_idx", "tombstones", ["id"], postgresql_where=sa.text("title is null and not erased")
    )
    op.execute(NUMBER_DELETIONS.format(by_id=" + 0"))
    op.execute("grant select, insert, update, delete on note_versions to inkwell_worker")
    op.execute("grant select (note_id, version, owner_id, body) on note_versions to inkwell_gateway")
    op.execute(f"grant {TOMBSTONE_TEXT} to inkwell_gateway")


def downgrade() -> None:
    op.execute(NUMBER_DELETIONS.format(by_id=""))
    op.execute(f"revoke {TOMBSTONE_TEXT} from inkwell_gateway")
    for name in ("to_erase", "with_text", "trash"):
        op.drop_index(f"tombstones_{name}_idx", "tombstones")
    op.drop_column("tombstones", "erased")
    op.execute("update tombstones set title = '', description = '' where title is null")
    for column in TEXT:
        op.execute(f"comment on column tombstones.{column} is null")
        op.alter_column("tombstones", column, nullable=False)
    op.drop_table("note_versions")
    op.drop_index("commands_versions_idx", "commands")
    op.drop_index("notes_owner_id_mod_revision_id_idx", "notes")
