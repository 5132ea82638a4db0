"""The figures of admission, and of quota in Redis, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from bench.admission.kept import PACE_PER_S, Kept
from bench.admission.measure import AdmissionFigures, Row
from bench.admission.scene import IN_FLIGHT
from bench.admission.shared import IN_FLIGHT as IN_FLIGHT_THERE
from bench.admission.shared import RedisFigures
from bench.tables import spread, table

LEAST_PER_S = 100_000.0


def bar_row(row: Row) -> str | None:
    """What the bar calls that row; None for those that it says nothing about."""
    return None if row.size.fresh else f"{row.size.mode}, {row.size.keys:,} keys"


def admission_tables(found: AdmissionFigures) -> list[str]:
    """With a journal and records that cost nothing; then with both in SQLite."""
    made = [
        "From the key to the end: key looked up, model resolved, limits held, place given, place taken back, use settled, record "
        f"made; {IN_FLIGHT} requests at once, each key of a user of its own. The journal agrees in the loop's next turn, and records "
        "are only counted. CPU time of the process, the best of many tries.",
        table(["limits", "keys", "each second", "CPU µs", "instructions", "units"], _rows(found.rows)),
    ]
    if found.uncounted:
        made.append(f"Instructions weren't counted: {found.uncounted}")
    made += [
        f"The same with 10 keys, {PACE_PER_S:,} requests each second, the journal and the records in SQLite:",
        table(["limits", "CPU µs of the event loop", "CPU µs in all"], _kept_rows(found.kept)),
    ]
    return made


def redis_tables(found: Sequence[RedisFigures]) -> list[str]:
    """One row for each mode."""
    rows = [[one.mode, spread(one.per_s, 0), spread(one.own_us, 1), spread(one.redis_us, 1)] for one in found]
    return [
        f"A reservation and its settlement, {IN_FLIGHT_THERE} under way at once, from one process, against a `redis-server` on "
        "this machine that keeps nothing on disk:",
        table(["limits", "pairs each second", "own CPU µs", "CPU µs of Redis"], rows),
    ]


def _rows(rows: Sequence[Row]) -> list[list[str]]:
    return [
        [
            row.size.mode + (", each request its user's first in the minute" if row.size.fresh else ""),
            f"{row.size.keys:,}",
            f"{row.per_s:,.0f}",
            f"{row.us:.1f}",
            "" if row.instructions is None else f"{row.instructions:,.0f}",
            "" if row.units is None else f"{row.units:.2f}",
        ]
        for row in rows
    ]


def _kept_rows(rows: Sequence[Kept]) -> list[list[str]]:
    return [[row.size.mode, f"{row.loop_us:.1f}", f"{row.all_us:.1f}"] for row in rows]
