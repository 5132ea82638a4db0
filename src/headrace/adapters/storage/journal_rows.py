"""The journal's rows: how they are written, folded and forgotten, in a transaction of the writer's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, select, tuple_, update

from headrace.adapters.storage.schema import journal, windows
from headrace.adapters.storage.upsert import DIALECTS, insert_for
from headrace.domain.quota import Measure, Period, Window
from headrace.ports.ledger import JournalEntry, WindowState

AT_ONCE = 2_000
"""Rows that are forgotten in one transaction, so that nobody waits long behind it."""
_WINDOW = (windows.c.subject, windows.c.measure, windows.c.period, windows.c.starts_at)
_ENTRY = (journal.c.reservation, journal.c.subject, journal.c.measure, journal.c.period)
_PLACE = ("subject", "measure", "period", "starts_at", "ends_at")
_COLUMNS = ("reservation", *_PLACE, "amount", "at")
_IN_A_STATEMENT = (256, 32, 1)
"""Entries in one statement: few sizes, so that SQLite's driver knows the statement already."""
_SETTLE = (
    f"INSERT INTO windows ({', '.join(_PLACE)}, settled) VALUES (?, ?, ?, ?, ?, ?) "  # noqa: S608 - our own columns
    "ON CONFLICT (subject, measure, period, starts_at) DO UPDATE SET settled = settled + excluded.settled"
)
_MEASURES = {measure: measure.value for measure in Measure}
_PERIODS = {period: period.value for period in Period}
_AS_MEASURES = {measure.value: measure for measure in Measure}
_AS_PERIODS = {period.value: period for period in Period}

Row = tuple[Any, ...]


class _Statements:
    """Built once for each dialect: building them anew costs more than running them."""

    def __init__(self, dialect: str) -> None:
        self.enter = (
            insert_for(dialect, journal)
            .on_conflict_do_nothing()
            .returning(*(journal.c[name] for name in _PLACE), journal.c.amount)
        )
        upsert = insert_for(dialect, windows)
        self.settle = upsert.on_conflict_do_update(
            index_elements=_WINDOW, set_={"settled": windows.c.settled + upsert.excluded.settled}
        )
        self.grant = upsert.on_conflict_do_update(
            index_elements=_WINDOW, set_={"block": upsert.excluded.block}
        )


_STATEMENTS = {dialect: _Statements(dialect) for dialect in DIALECTS}
_FOLD = (
    update(windows)
    .where(*(column == bindparam(f"of_{column.name}") for column in _WINDOW))
    .values(folded=windows.c.folded + bindparam("amount"))
)


def settle(connection: Connection, entries: Sequence[JournalEntry]) -> None:
    """Add those of *entries* that aren't there, and raise what is settled of their windows."""
    rows = [
        (
            entry.reservation,
            entry.subject,
            _MEASURES[entry.measure],
            _PERIODS[entry.period],
            entry.starts_at,
            _ends_at(entry.period, entry.starts_at),
            entry.amount,
            entry.at,
        )
        for entry in entries
    ]
    sums: Counter[Row] = Counter()
    if connection.dialect.name == "sqlite" and _enter_as_they_are(connection, rows):
        for row in rows:
            sums[row[1:6]] += row[6]
        # Sorted, so that two gateways lock the rows of the same windows in the same order.
        connection.exec_driver_sql(_SETTLE, [(*place, sums[place]) for place in sorted(sums)])
        return
    statements = _STATEMENTS[connection.dialect.name]
    named = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    for *place, amount in connection.execute(statements.enter, named):
        sums[tuple(place)] += amount
    if sums:
        raised = [dict(zip(_PLACE, place, strict=True), settled=sums[place]) for place in sorted(sums)]
        connection.execute(statements.settle, raised)


def grant(connection: Connection, blocks: Sequence[WindowState]) -> None:
    """Set how much is granted in advance; of two for one window, the later holds."""
    latest = {
        (state.subject, _MEASURES[state.measure], _PERIODS[state.period], state.starts_at): state
        for state in blocks
    }
    rows = [
        dict(
            zip(_PLACE, (*place, _ends_at(latest[place].period, place[3])), strict=True),
            block=latest[place].block,
        )
        for place in sorted(latest)
    ]
    connection.execute(_STATEMENTS[connection.dialect.name].grant, rows)


def going_on(connection: Connection, now: float) -> list[WindowState]:
    """Every window that hasn't ended at *now*."""
    return _states(connection, (windows.c.ends_at == 0) | (windows.c.ends_at > now))


def look(connection: Connection, wanted: Sequence[tuple[Window, int]]) -> list[WindowState]:
    """Those of *wanted*, each with its beginning, that are there."""
    places = [
        (window.subject, _MEASURES[window.measure], _PERIODS[window.period], starts_at)
        for window, starts_at in wanted
    ]
    return _states(connection, tuple_(*_WINDOW).in_(places))


def _states(connection: Connection, which: ColumnElement[bool]) -> list[WindowState]:
    query = select(*_WINDOW, windows.c.settled, windows.c.block).where(which)
    return [
        WindowState(subject, _AS_MEASURES[measure], _AS_PERIODS[period], starts_at, settled, block)
        for subject, measure, period, starts_at, settled, block in connection.execute(query)
    ]


def fold(connection: Connection, settled_before: float) -> int:
    """Take out some entries that are older, and add them to what is folded into their windows, whose sums stay; how many."""
    old = select(*_ENTRY).where(journal.c.at < settled_before).order_by(journal.c.at).limit(AT_ONCE)
    gone = delete(journal).where(tuple_(*_ENTRY).in_(old))
    sums: Counter[Row] = Counter()
    found = connection.execute(
        gone.returning(*(journal.c[name] for name in _PLACE[:4]), journal.c.amount)
    ).all()
    for *place, amount in found:
        sums[tuple(place)] += amount
    if sums:
        names = [f"of_{name}" for name in _PLACE[:4]]
        folded = [dict(zip(names, place, strict=True), amount=sums[place]) for place in sorted(sums)]
        connection.execute(_FOLD, folded)
    return len(found)


def forget(connection: Connection, ended_before: float) -> int:
    """Take out some windows that ended before that time; how many."""
    ended = select(*_WINDOW).where(windows.c.ends_at > 0, windows.c.ends_at <= ended_before).limit(AT_ONCE)
    return connection.execute(delete(windows).where(tuple_(*_WINDOW).in_(ended))).rowcount


def _enter_as_they_are(connection: Connection, rows: Sequence[Row]) -> bool:
    """Hand them to SQLite's driver, many in one statement; False, and nothing was done, where some are there already: then it
    has to be found out which."""
    entered = 0
    with connection.begin_nested() as nested:
        rest = rows
        for size in _IN_A_STATEMENT:
            while len(rest) >= size:
                values = tuple(chain.from_iterable(rest[:size]))
                entered += connection.exec_driver_sql(_insert_of(size), values).rowcount
                rest = rest[size:]
        if entered != len(rows):
            nested.rollback()
    return entered == len(rows)


@cache
def _insert_of(rows: int) -> str:
    row = f"({', '.join('?' * len(_COLUMNS))})"
    return (
        f"INSERT INTO journal ({', '.join(_COLUMNS)}) VALUES {', '.join([row] * rows)} ON CONFLICT DO NOTHING"  # noqa: S608 - our own columns
    )


@lru_cache(maxsize=64)
def _ends_at(period: Period, starts_at: int) -> int:
    return period.bounds(starts_at)[1]
