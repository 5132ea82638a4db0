"""The quota journal in the database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial

import structlog
from sqlalchemy import Connection

from headrace.adapters.storage import journal_rows
from headrace.adapters.storage.database import Database
from headrace.adapters.storage.tenure import Taken, Tenure
from headrace.domain.quota import Window
from headrace.kernel.errors import Unavailable
from headrace.ports.ledger import Journal, JournalEntry, WindowState

log = structlog.get_logger(__name__)

_ROW_BYTES = 250
MOST = 50_000
"""Rows that wait for the batch on its way; what would come on top is refused."""
OPEN_TRIES = 12
OPEN_PAUSE_S = 0.25
"""A gateway that was killed is the one that counts until the server has noticed."""
Heard = Callable[[bool], object]


class _Batch:
    """Commits that become durable together, by who holds *tenure*. It is only looked at by the writer's thread once it flies."""

    def __init__(self, tenure: Tenure) -> None:
        self._tenure = tenure
        self._entries: list[JournalEntry] = []
        self._blocks: list[WindowState] = []
        self.heard: list[Heard] = []

    def __len__(self) -> int:
        return len(self._entries) + len(self._blocks)

    def add(self, entries: Sequence[JournalEntry], blocks: Sequence[WindowState], told: Heard) -> None:
        self._entries += entries
        self._blocks += blocks
        self.heard.append(told)

    def write(self, connection: Connection) -> None:
        self._tenure.check(connection)
        if self._entries:
            journal_rows.settle(connection, self._entries)
        if self._blocks:
            journal_rows.grant(connection, self._blocks)


class SqlJournal(Journal):
    """`Journal` over a `Database` that is open.

    One batch is on its way at a time; what is given meanwhile becomes the next one. A batch whose fate was lost with the
    connection is done again: entries are unique, and blocks are set, not added. Once it was opened, it is the only one over
    its database: while another may be, nothing is committed.
    """

    def __init__(self, database: Database, *, most: int = MOST, open_tries: int = OPEN_TRIES) -> None:
        self._database = database
        self._most = most
        self._open_tries = open_tries
        self.tenure = Tenure()
        self._next = _Batch(self.tenure)
        self._flying: _Batch | None = None

    @property
    def buffered(self) -> int:
        """Rows that aren't in the database yet."""
        return len(self._next) + (len(self._flying) if self._flying else 0)

    async def open(self, now: float) -> list[WindowState]:
        """Every window that hasn't ended at *now*, as the last commit left it.

        Raises:
            Taken: another process has opened the journal of this database, and still uses it.
            Unavailable: the database can't be asked.
        """

        def begin(connection: Connection) -> list[WindowState]:
            self.tenure.begin(connection)  # first: what is read before may be another's, and change
            return journal_rows.going_on(connection, now)

        for _ in range(self._open_tries - 1):
            with contextlib.suppress(Taken):
                return await self._database.write(begin, repeatable=True)
            await asyncio.sleep(OPEN_PAUSE_S)
        return await self._database.write(begin, repeatable=True)

    def commit(self, entries: Sequence[JournalEntry], blocks: Sequence[WindowState], told: Heard) -> None:
        if (
            len(self._next) > self._most
        ):  # the database is too slow; the loop's next turn, for nobody hears inside a call
            asyncio.get_running_loop().call_soon(told, False)
            return
        self._next.add(entries, blocks, told)
        if self._flying is None:
            self._fly()

    def _fly(self) -> None:
        batch, self._next = self._next, _Batch(self.tenure)
        self._flying = batch
        self._database.submit(
            batch.write,
            lambda _value, error: self._landed(batch, error),
            size_bytes=_ROW_BYTES * len(batch),
            repeatable=True,
        )

    def _landed(self, batch: _Batch, error: Exception | None) -> None:
        self._flying = None
        if self._next.heard:
            self._fly()
        if error is not None and not isinstance(error, Unavailable):
            log.error("quota could not be written to the journal", action="journal.failed", exc_info=error)
        for told in batch.heard:
            try:
                told(error is None)
            except Exception:  # one listener's bug must not keep the others from hearing
                log.exception("what hears of a journal's commit failed", action="journal.told")

    def look(
        self,
        windows: Sequence[tuple[Window, int]],
        told: Callable[[Sequence[WindowState] | None], object],
    ) -> None:
        places = tuple(windows)  # on the writer's thread, behind all that was committed before
        self._database.submit(
            lambda connection: journal_rows.look(connection, places),
            lambda states, error: told(None if error is not None else states),
            repeatable=True,
        )

    async def prune(self, ended_before: float, settled_before: float) -> None:
        """Fold what is old and forget what has ended, a few rows at a time, so that nobody waits long behind it.

        Raises:
            Unavailable: some of it may be left; pruning again takes the rest.
        """
        write = self._database.write
        while await write(partial(journal_rows.fold, settled_before=settled_before), repeatable=True):
            pass
        while await write(partial(journal_rows.forget, ended_before=ended_before), repeatable=True):
            pass
