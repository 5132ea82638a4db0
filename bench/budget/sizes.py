"""Whether a request costs the same however much there is around it."""

from __future__ import annotations

from dataclasses import replace

from bench.budget.counting import Counts
from bench.budget.rig import USUAL, Size
from bench.budget.seams import ADMIT, FINISH, KEY

USUALLY = "usual"
SIZES = {
    USUALLY: USUAL,
    "100,000 keys": Size(keys=100_000),
    "1,000 more nodes with other models": Size(others=1000),
    "10 nodes with the model": Size(holders=10),
    "1,000 nodes with the model": Size(holders=1000),
}
TOLERANCE = 0.05
"""Of the whole request, and of what is decided: between one size and the next there's a branch more or less."""
DECIDED_TOLERANCE = 0.10


def sizes(served: int) -> dict[str, Size]:
    """The sizes to count at, the last of them after *served* requests."""
    return SIZES | {f"{served:,} requests served before": replace(USUAL, served=served)}


def decided(counts: Counts, size: str) -> float:
    """Instructions for what is looked up for a request: its key, its node, its slot and the settling of it."""
    parts = counts.by_size[size]["plain"].parts
    return parts[KEY] + parts[ADMIT] + parts[FINISH]


def dependent(counts: Counts) -> list[str]:
    """The sizes at which a request costs more than at the usual one, a sentence each."""
    found = []
    usual_whole, usual_decided = counts.by_size[USUALLY]["plain"].whole, decided(counts, USUALLY)
    for size, talks in counts.by_size.items():
        whole = talks["plain"].whole
        if whole > usual_whole * (1 + TOLERANCE):
            found.append(
                f"{size}: a plain request takes {whole:,.0f} instructions, usually {usual_whole:,.0f}"
            )
        if decided(counts, size) > usual_decided * (1 + DECIDED_TOLERANCE):
            took = decided(counts, size)
            found.append(f"{size}: deciding takes {took:,.0f} instructions, usually {usual_decided:,.0f}")
    return found


def sizes_table(counts: Counts) -> str:
    """One row for each size."""
    rows = ["| | a plain request, instructions | key, admit and finish |", "|---|---|---|"]
    for size, talks in counts.by_size.items():
        ratio = talks["plain"].whole / counts.by_size[USUALLY]["plain"].whole
        ours = decided(counts, size) / decided(counts, USUALLY)
        shown = f"{talks['plain'].whole:,.0f} ({ratio:.3f}) | {decided(counts, size):,.0f} ({ours:.3f})"
        rows.append(f"| {size} | {shown} |")
    return "\n".join(rows)
