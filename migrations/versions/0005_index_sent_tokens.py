"""Index refreshes by the token that was sent, to know at once whether a refresh token is spent."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_refreshes_sent", "refreshes", ["sent"])


def downgrade() -> None:
    op.drop_index("ix_refreshes_sent", "refreshes")
