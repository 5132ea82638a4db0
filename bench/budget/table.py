"""The budget as a table for people, and the page about performance, where tables stand between two markers."""

from __future__ import annotations

from pathlib import Path

from bench.budget.figures import KINDS, WHOLE, Budget
from bench.budget.seams import PARTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
_BEGIN, _END = "<!-- {}: begin -->", "<!-- {}: end -->"


def table(budget: Budget) -> str:
    """One row for each part of each kind of work, its whole first."""
    rows = ["| what | instructions | units | µs |", "|---|---|---|---|"]
    for kind, name in KINDS.items():
        for part in (WHOLE, *PARTS):
            cost = budget.work[kind].get(part)
            if cost is not None:
                title = f"**{name}**" if part == WHOLE else f"{part}: {PARTS[part]}"
                figures = f"{cost.instructions:,} | {budget.relative(kind, part):.2f} | {cost.us:.2f}"
                rows.append(f"| {title} | {figures} |")
    rows.append(f"| *one unit* | {budget.unit.instructions:,} | 1.00 | {budget.unit.us:.2f} |")
    return "\n".join(rows)


def put_in(page: str, name: str, text: str) -> str:
    """*page* with *text* between the markers of that name.

    Raises:
        ValueError: the page hasn't both markers, once each, in order.
    """
    before, begun, rest = page.partition(_BEGIN.format(name))
    _, ended, after = rest.partition(_END.format(name))
    if not begun or not ended or begun in rest or ended in after:
        raise ValueError(
            f"the page needs the markers {_BEGIN.format(name)} and {_END.format(name)}, once each"
        )
    return f"{before}{begun}\n{text}\n{ended}{after}"


def shown_in(page: str, name: str) -> str:
    """What stands between the markers of that name."""
    return page.partition(_BEGIN.format(name))[2].partition(_END.format(name))[0].strip()
