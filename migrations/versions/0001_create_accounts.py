"""Create the tables of accounts and of their refreshes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

name = sa.String(512).with_variant(sa.String(512, collation="C"), "postgresql")
number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("account_name", name, nullable=False),
        sa.Column("provider", sa.Text()),
        sa.Column("access_token", sa.Text()),
        sa.Column("refresh_token", sa.Text()),
        sa.Column("expires_at", sa.Float(53)),
        sa.Column("extra", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("refreshed_at", sa.Float(53)),
        sa.Column("refresh_id", number),
        sa.Column("failure", sa.Text()),
        sa.PrimaryKeyConstraint("account_name", name="pk_accounts"),
    )
    op.create_table(
        "refreshes",
        sa.Column("id", number, nullable=False),
        sa.Column("account_name", name, nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Float(53), nullable=False),
        sa.Column("sent", sa.Text(), nullable=False),
        sa.Column("finished_at", sa.Float(53)),
        sa.Column("outcome", sa.Text()),
        sa.Column("received", sa.Text()),
        sa.Column("status_code", sa.Integer()),
        sa.Column("error", sa.Text()),
        sa.Column("maybe_spent", sa.Boolean()),
        sa.PrimaryKeyConstraint("id", name="pk_refreshes"),
        sqlite_autoincrement=True,  # so that ids increase with time
    )
    op.create_index("ix_refreshes_account_name_id", "refreshes", ["account_name", "id"])


def downgrade() -> None:
    destroy = op.get_context().opts.get("destroy", False)
    accounts = op.get_bind().scalar(sa.text("SELECT count(*) FROM accounts"))
    if accounts and not destroy:
        raise CommandError(
            f"the database holds the tokens of {accounts} accounts, and a downgrade to base drops "
            "them; export them first, then repeat with -x destroy=yes"
        )
    op.drop_index("ix_refreshes_account_name_id", "refreshes")
    op.drop_table("refreshes")
    op.drop_table("accounts")
