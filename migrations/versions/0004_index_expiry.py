"""Index due accounts, so that listing them reads no others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_accounts_expires_at_account_name", "accounts", ["expires_at", "account_name"]
    )
    tokenless = sa.text("access_token IS NULL")
    op.create_index(
        "ix_accounts_tokenless",
        "accounts",
        ["account_name"],
        sqlite_where=tokenless,
        postgresql_where=tokenless,
    )


def downgrade() -> None:
    op.drop_index("ix_accounts_tokenless", "accounts")
    op.drop_index("ix_accounts_expires_at_account_name", "accounts")
