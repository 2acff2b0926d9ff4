"""The gateway reads the columns that it prints or compares, and not the commands that failed."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

READ = {
    "users": "id, credentials_version, name, folded_name, password_hash, created_date, updated_date, deleted_date",
    "personal_tokens": ("id, owner_id, name, scopes, secret_digest, credentials_version, created_date, expires_date"),
    "commands": (
        "id, type, owner_id, fingerprint, attempt_id, status, reason, http_status, note_id, note_version, body"
    ),
}


def upgrade() -> None:
    for table, columns in READ.items():
        op.execute(f"revoke select on {table} from inkwell_gateway")  # noqa: S608 - constants
        op.execute(f"grant select ({columns}) on {table} to inkwell_gateway")


def downgrade() -> None:
    for table in READ:
        op.execute(f"grant select on {table} to inkwell_gateway")
