"""What it costs to choose one of many backends."""

from __future__ import annotations

from dataclasses import dataclass

from bench.budget import counting
from bench.budget.chosen import FULL, SLOT
from headrace.domain.routing import Strategy

BACKENDS = 1000
MOST_UNITS = 4.5
"""A choice may cost so much: with its slot, what takes 5 µs where a unit takes the 1.11 µs that the budget names."""


@dataclass(frozen=True, slots=True)
class Choices:
    """unit: instructions of one. costs: instructions of a choice, by what is chosen and the per cent of backends that are full."""

    unit: float
    costs: dict[tuple[str, int], float]

    def relative(self, what: str, full: int) -> float:
        """In units."""
        return self.costs[what, full] / self.unit


def count(backends: int = BACKENDS) -> Choices:
    """Count each strategy with none, half and nearly all of the backends full.

    Raises:
        counting.Unavailable: it can't be counted here.
    """
    each, _ = counting.run_counted("bench.budget.chosen", backends)
    costs = {
        (name.partition("/")[2], int(name.partition("/")[0])): cost
        for name, cost in each.items()
        if "/" in name
    }
    return Choices(each["unit"], costs)


def too_dear(found: Choices) -> list[str]:
    """The strategies that cost more than they may, a sentence each."""
    return [
        f"{what}, {full}% full: {found.relative(what, full):.2f} units, at most {MOST_UNITS:g}"
        for what, full in found.costs
        if found.relative(what, full) > MOST_UNITS
    ]


def choices_table(found: Choices) -> str:
    """One row for each strategy, and one for the count of slots behind it."""
    rows = [
        f"| instructions (units), {BACKENDS:,} backends | "
        + " | ".join(f"{full} % full" for full in FULL)
        + " |",
        "|---" * (len(FULL) + 1) + "|",
    ]
    for what in (*Strategy, SLOT):
        cells = [f"{found.costs[what, full]:,.0f} ({found.relative(what, full):.2f})" for full in FULL]
        name = "*of it the slot*" if what == SLOT else f"`{what}`"
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)
