"""What differs between the databases, and which one a URL means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine

from headrace.kernel.errors import ConfigError

FILE_NAME = "headrace.db"


class Backend(Protocol):
    """One database, before anything is connected to it. Every call may block: none is for the event loop.

    name: `SQLite` or `PostgreSQL`. shown: where it is, without any password. file: its file, None where a server has it.
    """

    name: str
    shown: str
    file: Path | None

    def hold(self) -> None:
        """Become the one writer, where there can be only one, and make what has to be there before the first connection.

        Raises:
            StartupError: another process is the writer (it says which), or the place can't be used.
        """

    def let_go(self) -> None:
        """Undo `hold`. Idempotent."""

    def engine(self, *, connections: int, writes: bool, limit_s: float) -> Engine:
        """Connections, made when they are needed. None of their calls takes much longer than *limit_s*."""

    def lock_schema(self, connection: Connection) -> None:
        """Keep other processes from changing the schema until *connection*'s transaction ends."""

    def save_copy(self, target: Path) -> None:
        """Write a copy of everything to *target*, which doesn't exist; others may go on writing meanwhile.

        Raises:
            HeadraceError: it can't be had, and why; nothing is left at *target*.
        """

    def examine(self, connection: Connection) -> list[str]:
        """What is broken in the database's own structure, a sentence each."""


def choose(url: str, home: Path) -> Backend:
    """The database that *url* means; the data folder *home* holds the file of plain `sqlite`. Loads the driver: not for the
    event loop.

    Raises:
        ConfigError: it is none, or its driver isn't installed. The URL is never quoted: it may hold a password.
    """
    scheme, _, rest = url.partition("://")
    if url == "sqlite":
        return _sqlite(home / FILE_NAME)
    if re.fullmatch(r"sqlite(\+\w+)?", scheme):
        return _sqlite(_path(rest))
    if re.fullmatch(r"postgres(ql)?(\+\w+)?", scheme) and rest:
        # Other drivers' names for what libpq calls sslmode.
        return _postgresql("postgresql://" + re.sub(r"([?&])ssl=", r"\1sslmode=", rest))
    raise ConfigError(
        "[storage] url is not the address of a database that Headrace can use; write sqlite, sqlite:///path/to/file.db or "
        "postgresql://user:password@host/database."
    )


def _path(rest: str) -> Path:
    path = rest.partition("?")[0].removeprefix("/")
    if not rest.startswith("/") or path in ("", ":memory:"):
        raise ConfigError(
            "[storage] url has to name a file, like sqlite:///path/to/file.db: what is only in memory would be lost."
        )
    return Path(path).expanduser()


def _sqlite(path: Path) -> Backend:
    from headrace.adapters.storage.sqlite import Sqlite

    return Sqlite(path)


def _postgresql(url: str) -> Backend:
    try:
        from headrace.adapters.storage.postgresql import Postgresql
    except ImportError as error:
        raise ConfigError(
            f"PostgreSQL needs a driver that isn't installed ({error.name}): pip install 'headrace[postgresql]'."
        ) from error
    return Postgresql(url)
