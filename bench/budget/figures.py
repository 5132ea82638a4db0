"""The budget: what each part of each kind of work costs, in instructions, in units and in microseconds."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.budget.counting import Count, Counts
from bench.budget.seams import PARTS
from bench.budget.timing import Times
from bench.budget.traffic import FURTHER_TOKENS

KEPT = Path(__file__).resolve().parents[1] / "budget.toml"
TOLERANCE = 0.15
WHOLE = "whole"
KINDS = {
    "plain": "a plain request",
    "stream": "a stream of one token, start and end",
    "event": "each further token of a stream",
}
_SEEN_FROM = 0.003
"""A part below this share of the whole is left out: of an event, what it doesn't pass is a rounding error."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one part or one whole. us: CPU microseconds without any counting, on the machine that wrote it, for information."""

    instructions: int
    us: float


@dataclass(frozen=True, slots=True)
class Budget:
    """unit: what figures are relative to. work: kind → "whole" or part → cost. python: with which version, as "3.11"."""

    python: str
    unit: Cost
    work: dict[str, dict[str, Cost]]

    def relative(self, kind: str, part: str = WHOLE) -> float:
        """In units; 0.0 for what isn't there."""
        cost = self.work[kind].get(part)
        return cost.instructions / self.unit.instructions if cost else 0.0


def budget_of(counts: Counts, times: Times) -> Budget:
    """What was counted and timed, put together."""
    talks = counts.by_size["usual"]
    work = {}
    for kind, counted in {**talks, "event": _further(talks["long"], talks["stream"])}.items():
        if kind in KINDS:
            work[kind] = _costs(counted, times.talks[kind])
    return Budget(python_version(), Cost(round(counts.unit), round(times.unit_us, 3)), work)


def python_version() -> str:
    """The minor version that runs here: the figures of another are not comparable."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _further(long: Count, short: Count) -> Count:
    parts = {part: (cost - short.parts[part]) / FURTHER_TOKENS for part, cost in long.parts.items()}
    return Count((long.whole - short.whole) / FURTHER_TOKENS, parts)


def _costs(counted: Count, us: Mapping[str, float]) -> dict[str, Cost]:
    seen = {WHOLE: counted.whole} | {
        part: cost for part, cost in counted.parts.items() if cost >= counted.whole * _SEEN_FROM
    }
    return {part: Cost(round(cost), round(us[part], 2)) for part, cost in seen.items()}


def as_toml(budget: Budget) -> str:
    """The file's text; `kept` reads it."""
    lines = [
        "# What a request may cost. Written by `python -m bench.budget --write`; a test holds the code to it.",
        f'python = "{budget.python}"',
        f"unit = {_inline(budget.unit)}",
    ]
    for kind, costs in budget.work.items():
        lines += ["", f"[{kind}]  # {KINDS[kind]}"]
        lines += [f"{part} = {_inline(cost)}" for part, cost in costs.items()]
    return "\n".join(lines) + "\n"


def _inline(cost: Cost) -> str:
    return f"{{ instructions = {cost.instructions}, us = {cost.us:g} }}"


def kept(path: Path = KEPT) -> Budget:
    """The budget that the code is held to.

    Raises:
        OSError: there is none.
    """
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    work = {kind: {part: Cost(**cost) for part, cost in told[kind].items()} for kind in KINDS}
    return Budget(told["python"], Cost(**told["unit"]), work)


@dataclass(frozen=True, slots=True)
class Verdict:
    """over: what costs too much, a sentence each, with the parts that grew. under: what became so cheap that the file
    should be written anew."""

    over: list[str]
    under: list[str]


def judge(now: Budget, before: Budget) -> Verdict:
    """Compare the wholes of *now* with those *before*, in units."""
    over, under = [], []
    for kind, name in KINDS.items():
        growth = now.relative(kind) / before.relative(kind) - 1
        figures = f"{now.relative(kind):.2f} units instead of {before.relative(kind):.2f}, {growth:+.0%}"
        if growth > TOLERANCE:
            over.append(f"{name} costs {figures}; what grew: {_grown(now, before, kind)}")
        elif growth < -TOLERANCE:
            under.append(f"{name} costs {figures}; write the budget anew: python -m bench.budget --write")
    return Verdict(over, under)


def _grown(now: Budget, before: Budget, kind: str) -> str:
    """The parts that grew, most first, and by how many units."""
    growth = {part: now.relative(kind, part) - before.relative(kind, part) for part in PARTS}
    most = sorted((part for part in PARTS if growth[part] > 0), key=lambda part: -growth[part])
    noticed = [part for part in most if growth[part] * 10 >= growth[most[0]]]
    return ", ".join(f"{part} {growth[part]:+.2f} ({PARTS[part]})" for part in noticed) or "no part by itself"
