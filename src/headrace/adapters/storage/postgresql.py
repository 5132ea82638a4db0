"""PostgreSQL through psycopg, with a bound on every wait."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Connection, Engine, create_engine, text

from headrace.adapters.storage.backend import Backend
from headrace.kernel.errors import ConfigError, HeadraceError

CONNECT_S = 5
# A machine that is switched off says no goodbye: after a minute its session, and the lock of who counts quota, is free.
_KEEPALIVE = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
_SCHEMA_LOCK = 0x6865616472616365  # "headrace"


class Postgresql(Backend):
    """The database behind a libpq URL: several hosts, Unix sockets, `sslmode` and the rest as libpq knows them."""

    name = "PostgreSQL"
    file = None

    def __init__(self, url: str) -> None:
        try:
            given = conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            # Its message may quote the URL, and with it the password.
            raise ConfigError(
                "[storage] url is not a PostgreSQL address; write it like postgresql://user:password@host:5432/database "
                "(special characters in the password as %XX)."
            ) from None
        # Where several hosts are named, only the one that takes writes will do, also after they changed roles.
        self._given: dict[str, str | int | None] = {
            "application_name": "headrace",
            "connect_timeout": CONNECT_S,
            "target_session_attrs": "read-write",
            "keepalives_idle": 30,
            **given,
        }
        host = given.get("host") or given.get("hostaddr") or "the default host"
        self.shown = (
            f"{given.get('dbname') or given.get('user') or 'of the default name'} of PostgreSQL at {host}"
        )

    def hold(self) -> None:
        """Any number of processes may write."""

    def let_go(self) -> None:
        """Nothing was held."""

    def engine(self, *, connections: int, writes: bool, limit_s: float) -> Engine:
        # The server drops what takes too long, even if we are gone: the client's bound alone would leave it running.
        options = f"-c statement_timeout={int(limit_s * 1000)} -c timezone=UTC {_KEEPALIVE}"
        if not writes:
            options += " -c default_transaction_read_only=on"
        given = self._given | {"options": f"{self._given.get('options', '')} {options}".strip()}
        if not writes:
            given["target_session_attrs"] = "any"
        conninfo = make_conninfo("", **given)

        def connect() -> psycopg.Connection[Any]:
            # Prepared statements are left out: poolers between here and the server mix up whose they are.
            connection = BoundedConnection.connect(conninfo, prepare_threshold=None)
            connection.limit_s = (
                limit_s + 1.0
            )  # the server's own bound should come first: its error says more
            return connection

        return create_engine(
            "postgresql+psycopg://",
            creator=connect,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=limit_s,
            hide_parameters=True,
        )

    def lock_schema(self, connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})

    def save_copy(self, target: Path) -> None:
        raise HeadraceError(
            f"This is a {self.name} database: back it up with its own tools, for instance: pg_dump --format=custom "
            f"--file={target} DATABASE"
        )

    def examine(self, connection: Connection) -> list[str]:
        """PostgreSQL watches over its structure by itself."""
        return []


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that no call waits for longer than `limit_s`: a server that is stopped, or behind a cable that was cut,
    says nothing at all. A connection that was too slow is closed, and nobody knows what became of its transaction.
    """

    limit_s = 10.0

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """As psycopg's own, with an end."""
        return super().wait(self._bounded(gen), *args, **kwargs)

    def _bounded(self, work: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        end = time.monotonic() + self.limit_s
        try:
            wanted = next(work)
            while True:
                ready = yield wanted  # comes back without anything ready every 100 ms
                wanted = work.send(ready)
                if time.monotonic() > end:
                    work.close()
                    self.close()
                    raise psycopg.OperationalError("the server doesn't answer")
        except StopIteration as done:
            return done.value
