"""When a failed command was sent again, and the indexes that dead letters and pruning read."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    replayed_at = sa.Column("replayed_at", sa.DateTime(timezone=True), comment="when an operator last sent it again")
    op.add_column("commands", replayed_at)
    for name, condition in (("decided_at", "status <> 'failed'"), ("failed", "status = 'failed'")):
        op.create_index(f"commands_{name}_idx", "commands", ["decided_at"], postgresql_where=sa.text(condition))


def downgrade() -> None:
    for name in ("decided_at", "failed"):
        op.drop_index(f"commands_{name}_idx", "commands")
    op.drop_column("commands", "replayed_at")
