"""The journal is kept for a while only: what is older is folded into its windows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say of each window how much of it has no entries any more, and find old entries by their time."""
    op.add_column("windows", sa.Column("folded", sa.BigInteger, nullable=False, server_default="0"))
    op.drop_index("journal_by_end", "journal")
    op.create_index("journal_by_time", "journal", ["at"])
