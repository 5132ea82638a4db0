"""The tables. A comment on a table or column is its documentation (`docs/reference/database.md`).

What stands here is what the newest migration makes; a test compares them on both databases.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
    true,
)

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)
USER_ID_LENGTH = 50
TIER_LENGTH = 20
ROUTE_ID_LENGTH = 64


def _text(name: str, comment: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="", comment=comment)


def _count(name: str, comment: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0", comment=comment)


def _limits(unset: str) -> list[Column[int]]:
    """The columns of `domain.quota.Limits`, under its names. *unset*: what NULL means."""
    return [
        Column(name, BigInteger, comment=f"{what} at most; 0: no limit; NULL: {unset}.")
        for name, what in (
            ("requests_per_minute", "Requests in a minute"),
            ("requests_per_day", "Requests in a day of UTC"),
            ("requests_per_month", "Requests in a month of UTC"),
            ("tokens_per_minute", "Tokens in a minute"),
            ("tokens_per_day", "Tokens in a day of UTC"),
            ("tokens_per_month", "Tokens in a month of UTC"),
            ("concurrency", "Requests that run at once"),
        )
    ]


users = Table(
    "users",
    METADATA,
    Column("user_id", String(USER_ID_LENGTH), primary_key=True, comment="Who it is."),
    _text("name", "What people call them."),
    _text("email", "Where they are written to."),
    Column("created_at", Double, nullable=False, comment="When the user was added."),
    Column(
        "active", Boolean, nullable=False, server_default=true(), comment="False: none of their keys opens."
    ),
    comment="Who keys belong to, and who is charged.",
)

quotas = Table(
    "quotas",
    METADATA,
    Column("quota_id", Integer, primary_key=True, comment="A number of its own."),
    Column(
        "user_id",
        String(USER_ID_LENGTH),
        ForeignKey("users.user_id", ondelete="CASCADE"),
        nullable=False,
        unique=True,
        comment="Whose quota it is; each user has at most one.",
    ),
    Column(
        "tier",
        String(TIER_LENGTH),
        nullable=False,
        server_default="",
        comment="Name of a configured tier; empty: none.",
    ),
    Column(
        "request_limit",
        BigInteger,
        comment="Requests in the period that reset_frequency names at most; 0: no limit; NULL: what its tier says.",
    ),
    Column(
        "token_limit",
        BigInteger,
        comment="Tokens in the period that reset_frequency names at most; 0: no limit; NULL: what its tier says.",
    ),
    Column(
        "reset_frequency",
        String(10),
        CheckConstraint("reset_frequency IN ('daily', 'monthly')", name="reset_frequency"),
        nullable=False,
        server_default="monthly",
        comment="Which period request_limit and token_limit bind: `daily` or `monthly`. The columns below that name a period "
        "win over them.",
    ),
    *_limits("what its tier says"),
    comment="What a user may use; what its tier says holds where nothing is said here.",
)

keys = Table(
    "keys",
    METADATA,
    Column("key_id", String(50), primary_key=True, comment="Its public name: safe to log."),
    Column(
        "user_id",
        String(USER_ID_LENGTH),
        ForeignKey("users.user_id", ondelete="CASCADE"),
        nullable=False,
        comment="Whose key it is.",
    ),
    _text("prefix", "Its first characters, to tell keys apart."),
    Column(
        "digest",
        LargeBinary,
        nullable=False,
        unique=True,
        comment="SHA-256 of the key. The key is kept nowhere.",
    ),
    _text("name", "What it is for."),
    Column(
        "scopes", Text, nullable=False, server_default="[]", comment="What it may do: JSON list of scopes."
    ),
    Column(
        "models",
        Text,
        nullable=False,
        server_default="[]",
        comment="Which models it may use: JSON list of patterns; empty: all.",
    ),
    *_limits("no limit of its own"),
    Column("priority", Integer, nullable=False, server_default="0", comment="Its priority class."),
    Column("created_at", Double, nullable=False, comment="When it was made."),
    Column("expires_at", Double, comment="From when on it no longer opens; NULL: never."),
    Column("revoked_at", Double, comment="When it was revoked; NULL: it wasn't."),
    comment="Managed API keys, without the keys themselves.",
)

Index("keys_by_user", keys.c.user_id)

requests = Table(
    "requests",
    METADATA,
    Column("request_id", Text, primary_key=True, comment="The request's id, as the client was told it."),
    _text(
        "user_id",
        "Who is charged; empty: nobody that is known. Not a foreign key: records outlive their users, and none is refused "
        "because its user isn't in the table.",
    ),
    _text("key_id", "The key it came with, by its public name."),
    _text("client", "The client's address."),
    _text("path", "The path that was asked for."),
    _text("model", "The model that answered, or that was asked for."),
    _text("node", "Where it ran; empty: nowhere."),
    Column("status", String(20), nullable=False, comment="`completed`, `cancelled`, `failed` or `refused`."),
    Column("http_status", Integer, nullable=False, comment="What the client was told; 0: nothing."),
    _text("error", "The error's code; empty: none."),
    Column("created_at", Double, nullable=False, comment="When it came in."),
    Column("completed_at", Double, nullable=False, comment="When it ended."),
    Column("latency_ms", Double, nullable=False, comment="From the first to the last, in milliseconds."),
    Column(
        "first_token_ms", Double, comment="Until the first token, in milliseconds; NULL: it wasn't streamed."
    ),
    Column(
        "streamed",
        Boolean,
        nullable=False,
        server_default=false(),
        comment="Whether the answer was a stream.",
    ),
    Column(
        "executions", Integer, nullable=False, server_default="0", comment="How often a backend was asked."
    ),
    _count("estimated_tokens", "Tokens that were reserved."),
    _count("prompt_tokens", "Tokens of the prompt."),
    _count("completion_tokens", "Tokens of the answer."),
    _count("total_tokens", "Both together: what was charged."),
    Column(
        "estimated",
        Boolean,
        nullable=False,
        server_default=false(),
        comment="Whether tokens were counted here, because the backend didn't say.",
    ),
    comment="One row for each request that was answered or refused. Never its prompt or its answer.",
)
Index("requests_by_time", requests.c.created_at, requests.c.request_id)
Index("requests_by_user", requests.c.user_id, requests.c.created_at)
Index("requests_by_key", requests.c.key_id, requests.c.created_at)

windows = Table(
    "windows",
    METADATA,
    Column("subject", Text, primary_key=True, comment="Who is counted: `key:ID`, `user:ID` or `address:IP`."),
    Column("measure", String(20), primary_key=True, comment="What is counted: `requests` or `tokens`."),
    Column("period", String(10), primary_key=True, comment="How long: `minute`, `day` or `month`."),
    Column("starts_at", BigInteger, primary_key=True, autoincrement=False, comment="When it began."),
    Column("ends_at", BigInteger, nullable=False, comment="When it ends; 0: never."),
    _count("settled", "What was used: the sum of its entries in the journal, and of those that were folded."),
    _count("block", "How much more was granted in advance: after a crash, it counts as used."),
    _count("folded", "The sum of the entries that are no longer in the journal, since they are old."),
    comment="How much of each quota window is used.",
    sqlite_with_rowid=False,
)
Index("windows_by_end", windows.c.ends_at)

journal = Table(
    "journal",
    METADATA,
    Column("reservation", Text, primary_key=True, comment="The reservation that was settled."),
    Column("subject", Text, primary_key=True, comment="As in `windows`."),
    Column("measure", String(20), primary_key=True, comment="As in `windows`."),
    Column("period", String(10), primary_key=True, comment="As in `windows`."),
    Column("starts_at", BigInteger, nullable=False, comment="Which window it belongs to."),
    Column("ends_at", BigInteger, nullable=False, comment="When that window ends; 0: never."),
    Column("amount", BigInteger, nullable=False, comment="How much was used."),
    Column("at", Double, nullable=False, comment="When it was settled."),
    comment="What was settled, once for each reservation and window, for an hour or so.",
    sqlite_with_rowid=False,
)
Index("journal_by_time", journal.c["at"])

modelroutes = Table(
    "modelroutes",
    METADATA,
    Column("id", String(ROUTE_ID_LENGTH), primary_key=True, comment="Its name."),
    Column(
        "model_pattern",
        Text,
        nullable=False,
        comment="Which models it is about; `*` and `?` stand for others.",
    ),
    Column(
        "selector", Text, nullable=False, server_default="any", comment="Which backends, such as `tag:gpu`."
    ),
    Column(
        "priority",
        Integer,
        nullable=False,
        server_default="0",
        comment="The highest of those that match counts.",
    ),
    Column(
        "strategy",
        String(20),
        nullable=False,
        server_default="least-busy",
        comment="How one of the backends is chosen.",
    ),
    _text("target", "The model that the backends are asked for; empty: the one that the client asked for."),
    Column(
        "weights",
        Text,
        nullable=False,
        server_default="{}",
        comment="JSON object: name of a backend to its weight here.",
    ),
    _count("tokens_per_day", "Tokens that its own backends may take of it in a day of UTC; 0: no limit."),
    Column(
        "fallbacks",
        Text,
        nullable=False,
        server_default="[]",
        comment="Where else it goes, in order: JSON list of objects with `selector`, `model`, `strategy`, `weights`, "
        "`when_busy`, `tokens_per_day`.",
    ),
    Column(
        "reruns",
        Boolean,
        nullable=False,
        server_default=false(),
        comment="Whether an execution that was lost, and of which nothing was seen, is done again elsewhere.",
    ),
    Column("connect_s", Double, comment="Time to open a connection; NULL: the backend's own."),
    Column("first_byte_s", Double, comment="Time until the answer's first byte; NULL: the backend's own."),
    Column("idle_s", Double, comment="Longest pause within an answer; NULL: the backend's own."),
    Column("total_s", Double, comment="Time for the whole execution; NULL: the backend's own."),
    Column("created_at", Double, nullable=False, comment="When it was added."),
    comment="Where requests for models go, beside what the settings say.",
)

generations = Table(
    "generations",
    METADATA,
    Column(
        "name",
        String(20),
        primary_key=True,
        comment="What changed: `accounts` (users, keys and routes); `ledger`: which gateway counts quota.",
    ),
    Column("value", BigInteger, nullable=False, server_default=text("0"), comment="Grows with each change."),
    comment="Numbers that tell other processes to read again.",
)
