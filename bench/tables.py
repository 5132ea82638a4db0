"""Cells and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from bench.figures import Spread


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, so that the source can be read, too."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [head, *rows]]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, decimals: int | None) -> str:
    """With so many decimals; None: with three significant digits, or all before the point, as suits a ratio."""
    if decimals is None:
        return f"{value:#.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,.{decimals}f}"


def spread(found: Spread | None, decimals: int | None) -> str:
    """Median, lowest and highest; empty where there is nothing."""
    if found is None:
        return ""
    low, high = number(found.lowest, decimals), number(found.highest, decimals)
    return f"{number(found.median, decimals)} ({low} to {high})"


def verdict(value: float, *, highest: float | None = None, lowest: float | None = None) -> str:
    """Whether a bar was kept."""
    kept = (highest is None or value <= highest) and (lowest is None or value >= lowest)
    return "kept" if kept else "NOT kept"
