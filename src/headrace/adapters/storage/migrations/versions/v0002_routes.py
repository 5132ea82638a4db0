"""Routes that are changed while the service runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "modelroutes",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("model_pattern", sa.Text, nullable=False),
        sa.Column("selector", sa.Text, nullable=False, server_default="any"),
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("strategy", sa.String(20), nullable=False, server_default="least-busy"),
        sa.Column("target", sa.Text, nullable=False, server_default=""),
        sa.Column("weights", sa.Text, nullable=False, server_default="{}"),
        sa.Column("tokens_per_day", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("fallbacks", sa.Text, nullable=False, server_default="[]"),
        sa.Column("reruns", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("connect_s", sa.Double),
        sa.Column("first_byte_s", sa.Double),
        sa.Column("idle_s", sa.Double),
        sa.Column("total_s", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_modelroutes")),
    )
