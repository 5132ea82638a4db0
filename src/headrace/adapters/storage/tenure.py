"""Being the one process that counts quota over a database that many may write to.

Counting in memory is right only where nobody else hands out of the same windows. Where the database is a file, the writer's
lock beside it sees to that; on a server it is a lock of the writing connection's own session. A transaction that says what is
granted in advance is done only on a connection that holds it: when that connection dies, the lock is free in the same moment,
and nothing more is granted until it is held again. A number that each new holder raises tells whether somebody else held it
meanwhile; who finds it raised has counts that are out of date, and grants nothing any more.
"""

from __future__ import annotations

import structlog
from sqlalchemy import Connection, select, text

from headrace.adapters.storage.database import Database
from headrace.adapters.storage.inbox import unavailable
from headrace.adapters.storage.schema import generations
from headrace.adapters.storage.upsert import insert_for
from headrace.kernel.clock import Clock, Timer
from headrace.kernel.errors import StartupError

log = structlog.get_logger(__name__)

NAME = "ledger"
_HELD = "headrace_tenure"
# One lock for each set of tables: several may lie in one database, in schemas of their own.
_TOUCH = text("SELECT 1")
_TAKE = text("SELECT pg_try_advisory_lock(6841697, hashtext(current_schema()))")


class Tenure:
    """Whether this process counts. Everything here runs on the writer's thread, in the transaction that it is about."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._told = False

    def begin(self, connection: Connection) -> None:
        """Be the one from now on.

        Raises:
            Taken: another process is; nothing was changed.
        """
        if _needs_none(connection):
            return
        if not connection.execute(_TAKE).scalar():
            raise Taken(
                "Another gateway counts quota over this PostgreSQL database already, and each would grant what the other has "
                'granted: give all of them [quota] url = "redis://…", so that they count together, or stop the other one.'
            )
        upsert = insert_for(connection.dialect.name, generations).values(name=NAME, value=1)
        raised = upsert.on_conflict_do_update(
            index_elements=["name"], set_={"value": generations.c.value + 1}
        ).returning(generations.c.value)
        self._number = connection.info[_HELD] = connection.execute(raised).scalar_one()

    def check(self, connection: Connection) -> None:
        """See that this process still is the one, if it ever began.

        Raises:
            Unavailable: it isn't, or that isn't known; nothing may be granted.
        """
        if self._number is None or connection.info.get(_HELD) == self._number:
            return
        held = connection.execute(_TAKE).scalar()
        query = select(generations.c.value).where(generations.c.name == NAME)
        if connection.execute(query).scalar() != self._number:
            self._tell()
            raise unavailable("is where another gateway counts quota now")
        if not held:  # by whoever is about to begin, or still by the session of our lost connection
            raise unavailable("doesn't let quota be counted again yet")
        connection.info[_HELD] = self._number

    def _tell(self) -> None:
        if not self._told:
            log.error(
                "another gateway counts quota over this database now; this one grants none until it is started again",
                action="ledger.taken",
            )
        self._told = True

    @property
    def begun(self) -> bool:
        """Whether this process is, or was, the one; on a file always False."""
        return self._number is not None


class Watch:
    """Takes a tenure up again soon after its connection was lost, also while nothing is counted: else whoever is started in
    such an hour would be the one, and the gateway that served all the time would have to be started again."""

    def __init__(self, database: Database, tenure: Tenure, clock: Clock, *, every_s: float = 2.0) -> None:
        self._database = database
        self._tenure = tenure
        self._clock = clock
        self._every_s = every_s
        self._timer: Timer | None = None
        self._closed = False

    def start(self) -> None:
        """Begin, if there is something to watch over. Needs a running loop."""
        if self._tenure.begun:
            self._again()

    def close(self) -> None:
        """Stop it; idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        if not self._closed:
            self._timer = self._clock.call_later(self._every_s, self._look)

    def _look(self) -> None:
        # What it found doesn't matter here: it is logged, and the next commit hears of it, too.
        self._database.submit(self._touch, lambda _value, _error: self._again(), repeatable=True)

    def _touch(self, connection: Connection) -> None:
        connection.execute(_TOUCH).close()  # a connection tells that it is dead only to who uses it
        self._tenure.check(connection)


class Taken(StartupError):
    """Another process counts quota over this database."""


def _needs_none(connection: Connection) -> bool:
    """A file's writer is the only one anyway."""
    return connection.dialect.name == "sqlite"
