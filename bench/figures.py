"""From turns to figures: one value a stack and round, then medians, spreads and ratios of rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.turns import Turn

Key = tuple[int, str, str]
"""Round, scenario, stack."""
STEADY_SHARE = 0.95
"""A steady load counts as carried from this share of what the upstream alone carried."""
DISTURBED_SHARE = 0.15
"""From this share of the gateway's core that others had, a turn counts as disturbed."""
SATURATED_SHARE = 0.8
"""Below this share of its core in use, it wasn't the gateway that limited a load."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of a table. `value` takes the stack's turn and the direct turn of the same round; None: says nothing here."""

    title: str
    scenario: str
    decimals: int
    value: Callable[[Turn, Turn], float | None]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of the rounds; `values` has every one."""

    median: float
    lowest: float
    highest: float
    values: tuple[float, ...] = ()

    @classmethod
    def over(cls, values: Sequence[float]) -> Spread | None:
        """None where no round has a value."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), tuple(values))


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """Round → ours ÷ theirs, for the rounds in which both are above 0: what the machine did to both falls out.

    An added latency can be below 0 by chance; a ratio of it would mean nothing.
    """
    return {
        number: value / theirs[number]
        for number, value in ours.items()
        if value > 0 and theirs.get(number, 0) > 0
    }


class Turns:
    """Turns of a measurement, to be asked for figures. Every round must have its direct turns."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.all = list(turns)
        self._by_key: dict[Key, Turn] = {(turn.round, turn.scenario, turn.stack): turn for turn in turns}
        self.rounds = sorted({turn.round for turn in turns})

    def values(self, figure: Figure, stack: str) -> dict[int, float]:
        """Round → value, for the rounds that have one."""
        found: dict[int, float] = {}
        for number in self.rounds:
            turn = self._by_key.get((number, figure.scenario, stack))
            direct = self._by_key.get((number, figure.scenario, "direct"))
            if turn and direct and (value := figure.value(turn, direct)) is not None:
                found[number] = value
        return found

    def spread(self, figure: Figure, stack: str) -> Spread | None:
        """Over the rounds."""
        return Spread.over(list(self.values(figure, stack).values()))

    def ratio(self, figure: Figure, stack: str, other: str) -> Spread | None:
        """`stack` ÷ `other` within each round, over the rounds."""
        return Spread.over(list(ratios(self.values(figure, stack), self.values(figure, other)).values()))

    def resident_mb(self, stack: str) -> dict[int, float]:
        """Round → the highest after any of its turns."""
        return {
            number: max(turn.resident_mb for turn in turns)
            for number in self.rounds
            if (turns := [turn for turn in self.all if turn.stack == stack and turn.round == number])
        }

    def failures(self, scenario: str, stack: str) -> tuple[int, int]:
        """Requests that failed or were cut, and all that ended somehow, over all rounds."""
        results = [turn.result for turn in self.all if (turn.scenario, turn.stack) == (scenario, stack)]
        failed = sum(result.bad + result.cut for result in results)
        return failed, failed + sum(result.ok for result in results)

    def remarks(self) -> list[str]:
        """What makes a figure doubtful: a shared core, errors, cut streams, a steady load that wasn't carried."""
        return [line for turn in self.all for line in self._remarks_on(turn)]

    def _remarks_on(self, turn: Turn) -> list[str]:
        result, found = turn.result, self._remarks_on_place(turn)
        if result.bad:
            found.append(f"{result.bad} failed beside {result.ok} good ones ({result.first_error})")
        if result.cut:
            found.append(f"{result.cut} were cut at the end")
        direct = self._by_key.get((turn.round, turn.scenario, "direct"))
        if direct and turn.scenario.endswith("-steady"):
            # Of streams, only a few end within a turn.
            rate = "events_per_s" if direct.result.events else "requests_per_s"
            share = getattr(result, rate) / max(getattr(direct.result, rate), 1e-9)
            if share < STEADY_SHARE:
                found.append(f"carried {share:.0%} of the load, so its steady figures don't compare")
        return [f"round {turn.round + 1}, {turn.scenario}, {turn.stack}: {remark}" for remark in found]

    @staticmethod
    def _remarks_on_place(turn: Turn) -> list[str]:
        if turn.cpu_s is None:
            return []
        found = []
        if turn.others_share >= DISTURBED_SHARE:
            found.append(f"others had {turn.others_share:.0%} of the gateway's core")
        if turn.scenario.endswith("-saturated") and turn.busy_share < SATURATED_SHARE:
            found.append(f"its core was busy {turn.busy_share:.0%}: the load's side was the limit")
        return found
