"""Users, notes and commands, and what each service's role may do with them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CREATE_ROLE = """
do $$ begin
  if not exists (select from pg_roles where rolname = '{role}') then
    create role {role} nologin;
  end if;
exception when duplicate_object or unique_violation then null;
end $$
"""


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("credentials_version", sa.Integer, nullable=False, server_default="1"),
        sa.PrimaryKeyConstraint("id", name="users_pkey"),
    )
    op.create_table(
        "notes",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("owner_id", sa.BigInteger, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_date", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_date", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="notes_pkey"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="notes_owner_id_fkey"),
    )
    op.create_index("notes_owner_id_id_idx", "notes", ["owner_id", "id"])
    op.create_table(
        "commands",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("type", sa.Text),
        sa.Column("owner_id", sa.BigInteger),
        sa.Column("fingerprint", sa.Text),
        sa.Column("attempt_id", sa.Uuid, comment="the attempt whose delivery decided the outcome"),
        sa.Column("issued_at", sa.DateTime(timezone=True)),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, comment="why it was rejected or failed"),
        sa.Column("http_status", sa.SmallInteger, nullable=False),
        sa.Column("note_id", sa.BigInteger),
        sa.Column("note_version", sa.Integer),
        sa.Column("body", sa.Text, comment="the answer's body, byte for byte"),
        sa.Column("command", sa.JSON, comment="the whole command, kept where it failed"),
        sa.PrimaryKeyConstraint("id", name="commands_pkey"),
        sa.CheckConstraint("status in ('applied', 'rejected', 'failed')", name="commands_status_check"),
    )
    op.create_table(
        "attempt_marks",
        sa.Column("command_id", sa.Uuid, nullable=False),
        sa.Column("process_id", sa.Uuid, nullable=False, comment="one life of a worker process"),
        sa.PrimaryKeyConstraint("command_id", "process_id", name="attempt_marks_pkey"),
    )
    op.execute("insert into users default values")
    _grant()


def _grant() -> None:
    """The gateway cannot write; the worker cannot change the schema. An administrator lets them log in."""
    for role in ("inkwell_gateway", "inkwell_worker"):
        op.execute(CREATE_ROLE.format(role=role))
    op.execute("grant select on users, notes, commands, alembic_version to inkwell_gateway, inkwell_worker")
    op.execute("grant insert, update, delete on users, notes, commands to inkwell_worker")
    op.execute("grant select, insert, delete on attempt_marks to inkwell_worker")
    op.execute("grant usage on sequence notes_id_seq to inkwell_worker")


def downgrade() -> None:
    """Drops the tables; the roles stay, since other databases of the server may use them."""
    op.drop_table("attempt_marks")
    op.drop_table("commands")
    op.drop_table("notes")
    op.drop_table("users")
