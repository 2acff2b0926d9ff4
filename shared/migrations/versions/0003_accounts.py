"""Users with names and passwords, and their personal tokens."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

DELETED = "from then on the user and all that is theirs are gone"
VERSION = "the owner's when it was created; outdated with it"
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    for column in (
        sa.Column("name", sa.Text, comment="as its user writes it"),
        sa.Column("folded_name", sa.Text, comment="what no two users share"),
        sa.Column("password_hash", sa.Text),
        sa.Column("created_date", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("updated_date", TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("deleted_date", TIME, comment=DELETED),
    ):
        op.add_column("users", column)
    op.create_unique_constraint(
        "users_folded_name_key", "users", ["folded_name"], deferrable=True, initially="DEFERRED"
    )
    op.create_index("users_deleted_idx", "users", ["id"], postgresql_where=sa.text("deleted_date is not null"))
    op.create_table(
        "personal_tokens",
        sa.Column("id", sa.Uuid, nullable=False, comment="of the command that created it"),
        sa.Column("owner_id", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("scopes", ARRAY(sa.Text), nullable=False),
        sa.Column("secret_digest", sa.Text, nullable=False, comment="SHA-256 of the secret, in hexadecimal"),
        sa.Column("credentials_version", sa.Integer, nullable=False, comment=VERSION),
        sa.Column("created_date", TIME, nullable=False),
        sa.Column("expires_date", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="personal_tokens_pkey"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="personal_tokens_owner_id_fkey"),
    )
    for column in ("owner_id", "secret_digest"):
        op.create_index(f"personal_tokens_{column}_idx", "personal_tokens", [column])
    op.create_index("commands_owner_id_idx", "commands", ["owner_id"])
    op.execute("grant select on personal_tokens to inkwell_gateway, inkwell_worker")
    op.execute("grant insert, delete on personal_tokens to inkwell_worker")
    op.execute("grant usage on sequence users_id_seq to inkwell_worker")


def downgrade() -> None:
    op.drop_index("commands_owner_id_idx", "commands")
    op.drop_table("personal_tokens")
    op.drop_index("users_deleted_idx", "users")
    for name in ("deleted_date", "updated_date", "created_date", "password_hash", "folded_name", "name"):
        op.drop_column("users", name)
