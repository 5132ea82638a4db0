"""Which schema a database has, and bringing it to this program's."""

from __future__ import annotations

import time
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect
from sqlalchemy.exc import DBAPIError

from headrace.adapters.storage import schema
from headrace.adapters.storage.backend import Backend
from headrace.adapters.storage.inbox import reason
from headrace.kernel.errors import HeadraceError, StartupError

log = structlog.get_logger(__name__)

_FOLDER = Path(__file__).with_name("migrations")
VERSION_TABLE = "headrace_schema"
MIGRATION_S = 3600.0
"""How long one statement of a migration may take."""


class Migrations:
    """The steps from one schema to the next, forward only. Every call blocks: none is for the event loop."""

    def __init__(
        self,
        backend: Backend,
        *,
        startup_s: float = 15.0,
        folder: Path | None = None,
    ) -> None:
        self._backend = backend
        self._startup_s = startup_s
        self._config = Config()
        self._config.set_main_option("script_location", str(folder or _FOLDER).replace("%", "%%"))
        self._config.set_main_option("path_separator", "os")
        self._steps = ScriptDirectory.from_config(self._config)

    @property
    def newest(self) -> str:
        """The schema that this program wants."""
        newest = self._steps.get_current_head()
        assert newest is not None
        return newest

    def upgrade(self) -> tuple[str | None, str]:
        """Bring the database to `newest`, all or nothing; what it was (None: empty), and what it is.

        Several processes may do so at once. A database in a file is copied beside itself first, unless it is empty.

        Raises:
            StartupError: it can't be reached, is damaged, holds another program's tables, or is newer than this program.
        """
        was = self._wait_for()
        if was == self.newest:
            return was, was
        self._save_copy(was)
        engine = self._backend.engine(connections=1, writes=True, limit_s=MIGRATION_S)
        try:
            with engine.begin() as connection:
                self._backend.lock_schema(connection)
                was = self._check(connection)  # another process may have been first
                self._config.attributes["connection"] = connection
                command.upgrade(self._config, "head")
            log.info("the database has a new schema", action="storage.migrated", before=was, now=self.newest)
            return was, self.newest
        except DBAPIError as error:
            raise StartupError(
                f"The {self._backend.name} database {self._backend.shown} can't be brought to schema {self.newest}: "
                f"{reason(error)}. Nothing in it was changed."
            ) from error
        finally:
            self._config.attributes.clear()
            engine.dispose()

    def knows(self, revision: str) -> bool:
        """Whether this program has a step to that schema."""
        return any(step.revision == revision for step in self._steps.walk_revisions())

    def current(self, connection: Connection) -> str | None:
        """The database's schema; None: it has none of our tables."""
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()

    def _wait_for(self) -> str | None:
        """The current schema, once the database can be asked: services of one machine start in any order."""
        end = time.monotonic() + self._startup_s
        engine = self._backend.engine(connections=1, writes=True, limit_s=min(self._startup_s, 5.0))
        try:
            while True:
                try:
                    return self._current(engine)
                except DBAPIError as error:
                    if self._backend.file or time.monotonic() >= end:
                        raise StartupError(unusable(self._backend, error)) from error
                time.sleep(min(0.25, self._startup_s))
        finally:
            engine.dispose()

    def _current(self, engine: Engine) -> str | None:
        with engine.begin() as connection:
            return self._check(connection)

    def _check(self, connection: Connection) -> str | None:
        """The current schema, which this program can go on from.

        Raises:
            StartupError: it can't.
        """
        current = self.current(connection)
        if current is not None and not self.knows(current):
            raise StartupError(
                f"The database {self._backend.shown} has schema {current}, and this program knows none above {self.newest}: a "
                "newer Headrace has used it. Install that version again, or put a backup from before in its place."
            )
        if current is None:
            ours = set(schema.METADATA.tables) & set(inspect(connection).get_table_names())
            if ours:
                raise StartupError(
                    f"The database {self._backend.shown} holds tables of another program ({', '.join(sorted(ours))}). Give "
                    "Headrace a database of its own with [storage] url."
                )
        return current

    def _save_copy(self, was: str | None) -> None:
        path = self._backend.file
        if was is None or path is None:
            return
        target = path.with_name(f"{path.name}.{was}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.bak")
        try:
            self._backend.save_copy(target)
        except HeadraceError as error:
            raise StartupError(f"{error.message} Its schema was not changed.") from error
        log.info(
            "the database was copied before its schema changes", action="storage.copied", path=str(target)
        )


def unusable(backend: Backend, error: DBAPIError) -> str:
    """The sentence for a database that can't be used, and what to do about it."""
    told = reason(error)
    if backend.file is None:
        advice = "Is it running, and is [storage] url right?"
    elif "malformed" in told or "not a database" in told:
        advice = "Move it aside, and put the last backup in its place."
    else:
        advice = "Its folder and its file have to be writable, and the disk not full."
    return f"The database {backend.shown} can't be used: {told}. {advice}"
