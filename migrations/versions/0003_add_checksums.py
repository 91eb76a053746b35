"""Add checksums, which detect damaged tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("accounts") as batch:
        batch.add_column(sa.Column("access_checksum", sa.BigInteger()))
        batch.add_column(sa.Column("checksum", sa.BigInteger()))


def downgrade() -> None:
    with op.batch_alter_table("accounts") as batch:
        batch.drop_column("checksum")
        batch.drop_column("access_checksum")
