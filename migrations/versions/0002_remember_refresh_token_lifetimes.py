"""Store when refresh tokens were obtained and when they expire."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("accounts") as batch:
        batch.add_column(sa.Column("refresh_token_obtained_at", sa.Float(53)))
        batch.add_column(sa.Column("refresh_token_expires_at", sa.Float(53)))


def downgrade() -> None:
    with op.batch_alter_table("accounts") as batch:
        batch.drop_column("refresh_token_expires_at")
        batch.drop_column("refresh_token_obtained_at")
