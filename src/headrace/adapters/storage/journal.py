"""The quota journal in the database."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from sqlalchemy import Connection, delete, select, tuple_

from headrace.adapters.storage.database import Database
from headrace.adapters.storage.schema import journal, windows
from headrace.adapters.storage.tenure import Taken, Tenure
from headrace.adapters.storage.upsert import DIALECTS, insert_for
from headrace.domain.quota import Measure, Period
from headrace.kernel.errors import Unavailable
from headrace.ports.ledger import Journal, JournalEntry, WindowState

log = structlog.get_logger(__name__)

_ROW_BYTES = 250
MOST = 50_000
"""Rows that wait for the batch on its way; what would come on top is refused."""
_PRUNED_AT_ONCE = 2_000
OPEN_TRIES = 12
OPEN_PAUSE_S = 0.25
"""A gateway that was killed is the one that counts until the server has noticed."""
_OF_WINDOW = ("subject", "measure", "period", "starts_at", "ends_at")
_WINDOW = (windows.c.subject, windows.c.measure, windows.c.period, windows.c.starts_at)


class _Statements:
    """Built once for each dialect: building them anew costs more than running them."""

    def __init__(self, dialect: str) -> None:
        self.enter = (
            insert_for(dialect, journal)
            .on_conflict_do_nothing()
            .returning(*(journal.c[name] for name in _OF_WINDOW), journal.c.amount)
        )
        upsert = insert_for(dialect, windows)
        self.settle = upsert.on_conflict_do_update(
            index_elements=_WINDOW, set_={"settled": windows.c.settled + upsert.excluded.settled}
        )
        self.grant = upsert.on_conflict_do_update(
            index_elements=_WINDOW, set_={"block": upsert.excluded.block}
        )


_STATEMENTS = {dialect: _Statements(dialect) for dialect in DIALECTS}
Row = dict[str, Any]
Heard = Callable[[bool], object]


class _Batch:
    """Commits that become durable together, by who holds *tenure*."""

    def __init__(self, tenure: Tenure) -> None:
        self._tenure = tenure
        self.entries: list[Row] = []
        self.blocks: dict[tuple[str, str, str, int], Row] = {}  # of two for one window, the later holds
        self.heard: list[Heard] = []

    def __len__(self) -> int:
        return len(self.entries) + len(self.blocks)

    def add(self, entries: Sequence[JournalEntry], blocks: Sequence[WindowState], told: Heard) -> None:
        self.entries += map(_entry_row, entries)
        self.blocks.update((_key(state), _block_row(state)) for state in blocks)
        self.heard.append(told)

    def write(self, connection: Connection) -> None:
        self._tenure.check(connection)
        statements = _STATEMENTS[connection.dialect.name]
        if self.entries:
            _settle(connection, statements, self.entries)
        if self.blocks:
            # Sorted, so that two gateways lock the rows of the same windows in the same order.
            connection.execute(statements.grant, [self.blocks[key] for key in sorted(self.blocks)])


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

    async def open(self, now: float) -> list[WindowState]:
        """Every window that hasn't ended at *now*, as the last commit left it.

        Raises:
            Taken: another process has opened the journal of this database, and still uses it.
            Unavailable: the database can't be asked.
        """

        def begin(connection: Connection) -> list[WindowState]:
            self.tenure.begin(connection)  # first: what is read before may be another's, and change
            query = select(windows).where((windows.c.ends_at == 0) | (windows.c.ends_at > now))
            return [_state(row) for row in connection.execute(query)]

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

    async def prune(self, before: float) -> None:
        """Forget entries and windows that ended before that time, a few at a time, so that nobody waits long behind it.

        Raises:
            Unavailable: some of it may be left; pruning again takes the rest.
        """
        while await self._database.write(lambda connection: _prune(connection, before), repeatable=True):
            pass


def _settle(connection: Connection, statements: _Statements, rows: list[Row]) -> None:
    sums: Counter[tuple[Any, ...]] = Counter()
    for *window, amount in connection.execute(statements.enter, rows):
        sums[tuple(window)] += amount
    if sums:
        raised = [dict(zip(_OF_WINDOW, window, strict=True), settled=sums[window]) for window in sorted(sums)]
        connection.execute(statements.settle, raised)


def _prune(connection: Connection, before: float) -> int:
    """Entries first: a window is forgotten once it has none."""
    key = (journal.c.reservation, journal.c.subject, journal.c.measure, journal.c.period)
    some = select(*key).where(journal.c.ends_at > 0, journal.c.ends_at <= before).limit(_PRUNED_AT_ONCE)
    gone = connection.execute(delete(journal).where(tuple_(*key).in_(some))).rowcount
    if gone == 0:
        ended = select(*_WINDOW).where(windows.c.ends_at > 0, windows.c.ends_at <= before)
        gone = connection.execute(
            delete(windows).where(tuple_(*_WINDOW).in_(ended.limit(_PRUNED_AT_ONCE)))
        ).rowcount
    return gone


def _key(state: WindowState) -> tuple[str, str, str, int]:
    return state.subject, state.measure, state.period, state.starts_at


def _ends_at(of: WindowState | JournalEntry) -> int:
    return of.period.bounds(of.starts_at)[1]


def _entry_row(entry: JournalEntry) -> dict[str, Any]:
    return {
        "reservation": entry.reservation,
        "subject": entry.subject,
        "measure": entry.measure.value,
        "period": entry.period.value,
        "starts_at": entry.starts_at,
        "ends_at": _ends_at(entry),
        "amount": entry.amount,
        "at": entry.at,
    }


def _block_row(state: WindowState) -> dict[str, Any]:
    return {
        "subject": state.subject,
        "measure": state.measure.value,
        "period": state.period.value,
        "starts_at": state.starts_at,
        "ends_at": _ends_at(state),
        "block": state.block,
    }


def _state(row: Any) -> WindowState:
    return WindowState(
        subject=row.subject,
        measure=Measure(row.measure),
        period=Period(row.period),
        starts_at=row.starts_at,
        settled=row.settled,
        block=row.block,
    )
