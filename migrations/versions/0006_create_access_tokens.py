"""Store further access tokens of a login, each for a scope or resource.

A downgrade drops them: a refresh gives others.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

name = sa.String(512).with_variant(sa.String(512, collation="C"), "postgresql")
number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "access_tokens",
        sa.Column("account_name", name, nullable=False),
        sa.Column("target_digest", sa.String(32), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("access_token", sa.Text()),
        sa.Column("token_type", sa.Text()),
        sa.Column("scope", sa.Text()),
        sa.Column("expires_at", sa.Float(53)),
        sa.Column("refreshed_at", sa.Float(53)),
        sa.Column("refresh_id", number),
        sa.Column("failure", sa.Text()),
        sa.Column("checksum", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_name", "target_digest", name="pk_access_tokens"),
    )
    op.add_column("refreshes", sa.Column("target", sa.Text()))


def downgrade() -> None:
    # Not in a batch, which would make the table anew, and the numbers of refreshes start again.
    op.drop_column("refreshes", "target")
    op.drop_table("access_tokens")
