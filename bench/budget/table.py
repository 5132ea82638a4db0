"""The budget as a table for people, between two markers of the page about performance."""

from __future__ import annotations

from pathlib import Path

from bench.budget.figures import KINDS, WHOLE, Budget
from bench.budget.seams import PARTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- budget: begin -->", "<!-- budget: end -->"


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


def put_in(page: str, text: str) -> str:
    """*page* with *text* between the markers.

    Raises:
        ValueError: the page hasn't both markers, once each, in order.
    """
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended or BEGIN in rest or END in after:
        raise ValueError(f"the page needs the markers {BEGIN} and {END}, once each")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def shown_in(page: str) -> str:
    """What stands between the markers."""
    return page.partition(BEGIN)[2].partition(END)[0].strip()
