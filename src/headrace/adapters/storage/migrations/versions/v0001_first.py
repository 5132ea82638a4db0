"""The first schema: accounts, records, and the quota journal."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table."""
    _accounts()
    _records()
    _ledger()
    op.create_table(
        "generations",
        sa.Column("name", sa.String(20), nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_generations")),
    )


def _text(name: str, default: str = "") -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, server_default=default)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _limits() -> list[sa.Column[int]]:
    return [
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("requests_per_day", sa.BigInteger),
        sa.Column("requests_per_month", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("tokens_per_day", sa.BigInteger),
        sa.Column("tokens_per_month", sa.BigInteger),
        sa.Column("concurrency", sa.BigInteger),
    ]


def _accounts() -> None:
    op.create_table(
        "users",
        sa.Column("user_id", sa.String(50), nullable=False),
        _text("name"),
        _text("email"),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_users")),
    )
    op.create_table(
        "quotas",
        sa.Column("quota_id", sa.Integer, nullable=False),
        sa.Column("user_id", sa.String(50), nullable=False),
        sa.Column("tier", sa.String(20), nullable=False, server_default=""),
        sa.Column("request_limit", sa.BigInteger),
        sa.Column("token_limit", sa.BigInteger),
        sa.Column("reset_frequency", sa.String(10), nullable=False, server_default="monthly"),
        *_limits(),
        sa.PrimaryKeyConstraint("quota_id", name=op.f("pk_quotas")),
        sa.UniqueConstraint("user_id", name=op.f("uq_quotas_user_id")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=op.f("fk_quotas_user_id"), ondelete="CASCADE"
        ),
        sa.CheckConstraint("reset_frequency IN ('daily', 'monthly')", name=op.f("ck_quotas_reset_frequency")),
    )
    op.create_table(
        "keys",
        sa.Column("key_id", sa.String(50), nullable=False),
        sa.Column("user_id", sa.String(50), nullable=False),
        _text("prefix"),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        _text("name"),
        _text("scopes", "[]"),
        _text("models", "[]"),
        *_limits(),
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_keys_digest")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=op.f("fk_keys_user_id"), ondelete="CASCADE"
        ),
    )
    op.create_index("keys_by_user", "keys", ["user_id"])


def _records() -> None:
    op.create_table(
        "requests",
        sa.Column("request_id", sa.Text, nullable=False),
        _text("user_id"),
        _text("key_id"),
        _text("client"),
        _text("path"),
        _text("model"),
        _text("node"),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("http_status", sa.Integer, nullable=False),
        _text("error"),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("completed_at", sa.Double, nullable=False),
        sa.Column("latency_ms", sa.Double, nullable=False),
        sa.Column("first_token_ms", sa.Double),
        sa.Column("streamed", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("executions", sa.Integer, nullable=False, server_default="0"),
        _count("estimated_tokens"),
        _count("prompt_tokens"),
        _count("completion_tokens"),
        _count("total_tokens"),
        sa.Column("estimated", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_requests")),
    )
    op.create_index("requests_by_time", "requests", ["created_at", "request_id"])
    op.create_index("requests_by_user", "requests", ["user_id", "created_at"])
    op.create_index("requests_by_key", "requests", ["key_id", "created_at"])


def _ledger() -> None:
    op.create_table(
        "windows",
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("measure", sa.String(20), nullable=False),
        sa.Column("period", sa.String(10), nullable=False),
        sa.Column("starts_at", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("ends_at", sa.BigInteger, nullable=False),
        _count("settled"),
        _count("block"),
        sa.PrimaryKeyConstraint("subject", "measure", "period", "starts_at", name=op.f("pk_windows")),
        sqlite_with_rowid=False,
    )
    op.create_index("windows_by_end", "windows", ["ends_at"])
    op.create_table(
        "journal",
        sa.Column("reservation", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("measure", sa.String(20), nullable=False),
        sa.Column("period", sa.String(10), nullable=False),
        sa.Column("starts_at", sa.BigInteger, nullable=False),
        sa.Column("ends_at", sa.BigInteger, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("reservation", "subject", "measure", "period", name=op.f("pk_journal")),
        sqlite_with_rowid=False,
    )
    op.create_index("journal_by_end", "journal", ["ends_at"])
