"""SQLite: one file, write-ahead log, one writing process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event

from headrace.adapters.storage.backend import Backend
from headrace.kernel.errors import HeadraceError, StartupError

OLDEST = (3, 35, 0)  # RETURNING
BUSY_S = 10.0
"""How long another process's transaction (somebody's SQLite shell) is waited for at most."""
_STEPS = 100_000  # of SQLite's machine between two looks at the clock: a few milliseconds
_ASIDE = ("-wal", "-shm")


class Sqlite(Backend):
    """The database in one file. `hold` takes the lock of the one writer, beside that file."""

    name = "SQLite"
    file: Path

    def __init__(self, path: Path) -> None:
        self.file = path
        self.shown = str(path)
        self._lock: int | None = None

    def hold(self) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            raise StartupError(
                f"This Python's SQLite is {sqlite3.sqlite_version}; 3.35 or newer is needed. Use a newer Python, or PostgreSQL."
            )
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
            # Made here, so that it never exists with other rights; SQLite gives its side files the same.
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            self.let_go()
            raise StartupError(f"The database {self.file} can't be used: {error.strerror}.") from error

    def _take_lock(self) -> None:
        """The kernel frees it when this process dies, however it dies."""
        path = self.file.with_name(self.file.name + ".lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise StartupError(
                f"Another Headrace (process {holder}) is using the database {self.file}. Stop it, or give this one another data "
                "folder with HEADRACE_HOME."
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def engine(self, *, connections: int, writes: bool, limit_s: float) -> Engine:
        def connect() -> sqlite3.Connection:
            # Transactions are begun by us, below: the module's own way of it knows no savepoints.
            connection = sqlite3.connect(
                self.file.absolute().as_uri() + "?mode=rw",
                uri=True,
                timeout=min(limit_s, BUSY_S),
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                _configure(connection, writes)
            except BaseException:  # nobody else knows of the connection yet
                connection.close()
                raise
            return connection

        # No password and no prompt is ever in a parameter, but error texts are for the log.
        engine = create_engine(
            "sqlite://",
            creator=connect,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=limit_s,
            hide_parameters=True,
            poolclass=QueuePool,
        )

        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
            if not writes:
                _bound(connection, limit_s)

        event.listen(engine, "begin", begin)
        return engine

    def lock_schema(self, connection: Connection) -> None:
        """The transaction itself is the lock: it began with `IMMEDIATE`."""

    def save_copy(self, target: Path) -> None:
        partial = target.with_name(target.name + ".part")
        try:
            os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600))
            with (
                contextlib.closing(
                    sqlite3.connect(self.file.absolute().as_uri() + "?mode=rw", uri=True)
                ) as source,
                contextlib.closing(sqlite3.connect(partial)) as copy,
            ):
                source.backup(copy)  # in one step: one of several begins anew whenever somebody writes
                copy.execute("PRAGMA journal_mode = DELETE")  # one file that is whole by itself
            _make_durable(partial)
            os.link(partial, target)  # unlike a rename, never over another file
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise HeadraceError(f"The database {self.file} can't be copied to {target}: {why}.") from error
        finally:
            for aside in ("", "-journal", *_ASIDE):
                partial.with_name(partial.name + aside).unlink(missing_ok=True)

    def examine(self, connection: Connection) -> list[str]:
        found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(20)")]
        found = [] if found == ["ok"] else found
        for table, rowid, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
            found.append(f"row {rowid} of {table} belongs to a row of {parent} that isn't there")
        return found


def _configure(connection: sqlite3.Connection, writes: bool) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    if writes:
        connection.execute("PRAGMA journal_mode = WAL")
        # Each commit is on the disk before it is told: quota that was granted in advance must survive a power cut, too.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
    else:
        connection.execute("PRAGMA query_only = ON")


def _bound(connection: Connection, limit_s: float) -> None:
    """Let a query that takes too long end with an error: a lost reader thread would be missing for the others."""
    end = time.monotonic() + limit_s
    driver: Any = connection.connection.driver_connection
    driver.set_progress_handler(lambda: time.monotonic() > end, _STEPS)


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
