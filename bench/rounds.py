"""The figures of a measurement round by round: what the tables' medians and spreads are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from bench import held
from bench.columns import FIGURES
from bench.figures import Spread, Turns, ratios
from bench.measurement import Measurement
from bench.scenarios import Part

OURS = "headrace"
RESIDENT = "highest resident MB"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: for each stack that has it, round → value."""

    part: str
    title: str
    decimals: int
    values: Mapping[str, Mapping[int, float]]

    def spread(self, stack: str) -> Spread | None:
        """Over the rounds; None where the stack has none."""
        return Spread.over(list(self.values.get(stack, {}).values()))

    def ratios(self, stack: str, other: str) -> dict[int, float]:
        """Round → `stack` ÷ `other`."""
        return ratios(self.values.get(stack, {}), self.values.get(other, {}))

    def ratio(self, stack: str, other: str) -> Spread | None:
        """The same over the rounds."""
        return Spread.over(list(self.ratios(stack, other).values()))


def rows(found: Measurement) -> list[Row]:
    """Every figure of every part that was measured in rounds."""
    return [*chain.from_iterable(_of_turns(found, part) for part in FIGURES), *_of_held(found)]


def by_name(found: Measurement) -> list[dict[str, object]]:
    """The same for JSON, with the ratios of our gateway to the others."""
    return [
        {
            "part": row.part,
            "figure": row.title,
            "values": row.values,
            "ratios": {
                f"{OURS} ÷ {other}": row.ratios(OURS, other)
                for other in row.values
                if other not in (OURS, "direct")
            },
        }
        for row in rows(found)
    ]


def _of_turns(found: Measurement, part: Part) -> list[Row]:
    turns = Turns(found.of(part))
    if not turns.all:
        return []
    made = [
        Row(
            part,
            figure.title,
            figure.decimals,
            _some({name: turns.values(figure, name) for name in found.stacks}),
        )
        for figure in FIGURES[part]
    ]
    resident = {name: turns.resident_mb(name) for name in found.stacks if name != "direct"}
    return [*made, Row(part, RESIDENT, 0, _some(resident))]


def _of_held(found: Measurement) -> list[Row]:
    if not found.held:
        return []
    return [
        Row("held", title, decimals, _some({n: held.values(found.held, n, attribute) for n in found.stacks}))
        for title, decimals, attribute in held.FIGURES
    ]


def _some(values: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    return {name: found for name, found in values.items() if found}
