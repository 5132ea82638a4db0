"""From turns to figures: one value a stack and round, then medians, spreads and ratios of rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.scenarios import Turn

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
    """A column. `value` takes the stack's turn and the direct turn of the same round; None: says nothing here."""

    title: str
    scenario: str
    decimals: int
    value: Callable[[Turn, Turn], float | None]


def _cpu_us(turn: Turn, units: int) -> float | None:
    return None if turn.cpu_s is None or not units else turn.cpu_s * 1e6 / units


def _added(name: str) -> Callable[[Turn, Turn], float | None]:
    def added_us(turn: Turn, direct: Turn) -> float | None:
        if turn.stack == direct.stack:
            return None
        difference: float = getattr(turn.result, name) - getattr(direct.result, name)
        return difference * 1000

    return added_us


FIGURES = (
    Figure("CPU µs / request", "plain-steady", 1, lambda turn, _: _cpu_us(turn, turn.result.ok)),
    Figure("CPU µs / event", "stream-steady", 2, lambda turn, _: _cpu_us(turn, turn.result.events)),
    Figure("CPU µs / 200 kB request", "prompt-steady", 0, lambda turn, _: _cpu_us(turn, turn.result.ok)),
    Figure("saturated req/s", "plain-saturated", 0, lambda turn, _: turn.result.requests_per_s),
    Figure("saturated events/s", "stream-saturated", 0, lambda turn, _: turn.result.events_per_s),
    Figure("added µs p50", "plain-steady", 0, _added("latency_p50_ms")),
    Figure("added µs p99", "plain-steady", 0, _added("latency_p99_ms")),
    Figure("added µs to first event p50", "stream-steady", 0, _added("first_event_p50_ms")),
    Figure("added µs to first event p99", "stream-steady", 0, _added("first_event_p99_ms")),
    Figure("added µs to gap p99", "stream-steady", 0, _added("gap_p99_ms")),
)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of the rounds."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Spread | None:
        """None where no round has a value."""
        return cls(statistics.median(values), min(values), max(values)) if values else None


class Turns:
    """All turns of a measurement, to be asked for figures. Every round must have its direct turns."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.all = list(turns)
        self._by_key: dict[Key, Turn] = {(turn.round, turn.scenario, turn.stack): turn for turn in turns}
        self._rounds = sorted({turn.round for turn in turns})

    def values(self, figure: Figure, stack: str) -> dict[int, float]:
        """Round → value, for the rounds that have one."""
        found: dict[int, float] = {}
        for number in self._rounds:
            turn = self._by_key.get((number, figure.scenario, stack))
            direct = self._by_key.get((number, figure.scenario, "direct"))
            if turn and direct and (value := figure.value(turn, direct)) is not None:
                found[number] = value
        return found

    def spread(self, figure: Figure, stack: str) -> Spread | None:
        """Over the rounds."""
        return Spread.over(list(self.values(figure, stack).values()))

    def ratio(self, figure: Figure, stack: str, other: str) -> Spread | None:
        """`stack` ÷ `other` within each round, over the rounds: what the machine did to both falls out."""
        ours, theirs = self.values(figure, stack), self.values(figure, other)
        return Spread.over([ours[number] / theirs[number] for number in ours if theirs.get(number, 0) > 0])

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
            share = result.requests_per_s / max(direct.result.requests_per_s, 1e-9)
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
