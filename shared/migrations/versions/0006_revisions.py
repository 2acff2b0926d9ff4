"""Each owner's writes are numbered, deleted notes leave tombstones, and triggers number what others write.

Rewrites nothing: `users` and `notes` are locked for as long as it takes to change the catalog.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)

# The previous version sets no revisions, and neither do corrections by hand. A note gets the number that its owner's
# row got in the same transaction, so a statement that changes a million notes updates their owner once.
NUMBER_NOTE = """
create function inkwell_number_note() returns trigger language plpgsql set search_path = public, pg_temp as $$
begin
  if tg_op = 'UPDATE' and new.owner_id <> old.owner_id then
    update users set revision = revision + 1, purged_revision = revision + 1 where id = old.owner_id;
  end if;
  select revision into new.mod_revision from users
  where id = new.owner_id and revision > 0 and xmin = pg_current_xact_id()::xid;
  if not found then
    update users set revision = revision + 1 where id = new.owner_id returning revision into new.mod_revision;
  end if;
  return new;
end $$
"""
NUMBER_DELETIONS = """
create function inkwell_number_deletions() returns trigger language plpgsql set search_path = public, pg_temp as $$
begin
  update users set revision = revision + 1, purged_revision = revision + 1
  where id = any(array( -- not `in`: a plan from when the table was small would read the whole of it
    select distinct deleted.owner_id from deleted
    where not exists (
      select from tombstones
      where tombstones.id = deleted.id and tombstones.owner_id = deleted.owner_id
        and tombstones.mod_revision > deleted.mod_revision
    )
  ));
  return null;
end $$
"""
NUMBER_TRUNCATION = """
create function inkwell_number_truncation() returns trigger language plpgsql set search_path = public, pg_temp as $$
begin
  update users set revision = revision + 1, purged_revision = revision + 1;
  return null;
end $$
"""
NUMBER_USER = """
create function inkwell_number_user() returns trigger language plpgsql as $$
begin
  if new.revision < old.revision then
    raise exception 'the revision of user % cannot go back from % to %', old.id, old.revision, new.revision
      using errcode = 'check_violation';
  end if;
  new.revision := old.revision + 1;
  return new;
end $$
"""
TRIGGERS = {
    "inkwell_number_inserted": "before insert on notes for each row when (new.mod_revision = 0) "
    "execute function inkwell_number_note()",
    "inkwell_number_updated": "before update on notes for each row when (new.mod_revision = old.mod_revision) "
    "execute function inkwell_number_note()",
    "inkwell_number_deleted": "after delete on notes referencing old table as deleted for each statement "
    "execute function inkwell_number_deletions()",
    "inkwell_number_truncated": "after truncate on notes for each statement "
    "execute function inkwell_number_truncation()",
    "inkwell_number_user": "before update on users for each row "
    "when (new.revision <= old.revision) "
    "execute function inkwell_number_user()",
}


USER_COMMENTS = {
    "folded_name": ("what no two users share", "unique key of the name"),
    "deleted_date": (
        "from then on the user and all that is theirs are gone",
        "when the user was deleted; their data is hidden from then on",
    ),
}
"""Before and after."""


def upgrade() -> None:
    for column, (_, comment) in USER_COMMENTS.items():
        op.execute(f"comment on column users.{column} is '{comment}'")
    for name, comment in (
        ("revision", "how many commands of the user were decided, corrections by hand included"),
        ("purged_revision", "deletions of notes up to this revision may have no tombstone"),
    ):
        op.add_column("users", sa.Column(name, sa.BigInteger, nullable=False, server_default="0", comment=comment))
    op.execute("alter table users set (fillfactor = 80)")
    op.add_column(
        "notes",
        sa.Column(
            "mod_revision",
            sa.BigInteger,
            nullable=False,
            server_default="0",
            comment="the owner's revision when it was last changed; 0 before there were any",
        ),
    )
    op.create_table(
        "tombstones",
        sa.Column("id", sa.BigInteger, nullable=False, autoincrement=False, comment="of the note"),
        sa.Column("owner_id", sa.BigInteger, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_date", TIME, nullable=False),
        sa.Column("updated_date", TIME, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("mod_revision", sa.BigInteger, nullable=False, comment="the owner's when the note was deleted"),
        sa.Column("deleted_date", TIME, nullable=False, server_default=sa.func.now(), comment="by Postgres' clock"),
        sa.PrimaryKeyConstraint("id", name="tombstones_pkey"),
        # The previous version removes users, and does not know of tombstones.
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="tombstones_owner_id_fkey", ondelete="CASCADE"),
    )
    op.create_index("tombstones_owner_id_mod_revision_id_idx", "tombstones", ["owner_id", "mod_revision", "id"])
    op.create_index("tombstones_deleted_date_idx", "tombstones", ["deleted_date"])
    op.execute("grant select, insert, update, delete on tombstones to inkwell_worker")
    op.execute("grant select (id, owner_id, mod_revision, deleted_date) on tombstones to inkwell_gateway")
    op.execute("grant select (revision, purged_revision) on users to inkwell_gateway")
    for function in (NUMBER_NOTE, NUMBER_DELETIONS, NUMBER_TRUNCATION, NUMBER_USER):
        op.execute(function)
    for name, trigger in TRIGGERS.items():
        op.execute(f"create trigger {name} {trigger}")


def downgrade() -> None:
    for column, (comment, _) in USER_COMMENTS.items():
        op.execute(f"comment on column users.{column} is '{comment}'")
    for name, trigger in TRIGGERS.items():
        op.execute(f"drop trigger {name} on {'users' if ' on users ' in trigger else 'notes'}")
    for function in ("note", "deletions", "truncation", "user"):
        op.execute(f"drop function inkwell_number_{function}()")
    op.drop_table("tombstones")
    op.drop_column("notes", "mod_revision")
    op.execute("alter table users reset (fillfactor)")
    for name in ("purged_revision", "revision"):
        op.drop_column("users", name)
