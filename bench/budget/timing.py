"""The same rig by the clock, with nobody counting: microseconds for information, and as noisy as the machine."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.budget import unit
from bench.budget.marks import Stopwatch, Tally
from bench.budget.rig import Rig, run_empty, run_nothing
from bench.budget.seams import PARTS
from bench.budget.traffic import FURTHER_TOKENS, TALKS, Talk

TRIES = 60
TIMES = {"plain": 40, "stream": 20, "long": 5}
"""How often a talk is had for one try: short enough that some tries go undisturbed on a busy machine."""


@dataclass(frozen=True, slots=True)
class Times:
    """talks: "plain", "stream" or "event" → "whole" or part → microseconds, the best of many tries. unit_us: of one unit."""

    unit_us: float
    talks: dict[str, dict[str, float]]


def measure() -> Times:
    """Time everything, in about two seconds. The garbage collector waits meanwhile."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        return _measured()
    finally:
        if collecting:
            gc.enable()


def _measured() -> Times:
    bare, watch = Rig(), Stopwatch()
    marked = Rig(marks=watch)
    intervals = count_intervals()
    empty_us = _best_parts(watch, 200, lambda times: run_empty("empty", watch, times))["empty"]
    found = {}
    for kind, talk in TALKS.items():
        us = _best_parts(watch, TIMES[kind], lambda times, talk=talk: marked.run(talk, times))  # type: ignore[misc]
        parts = {part: max(0.0, us[part] - empty_us * intervals[kind][part]) for part in PARTS}
        found[kind] = {"whole": _best_whole(bare, kind, talk)} | parts
    long, short = found.pop("long"), found["stream"]
    found["event"] = {part: max(0.0, (long[part] - short[part]) / FURTHER_TOKENS) for part in long}
    return Times(_best(200, unit.work), found)


def count_intervals() -> dict[str, dict[str, int]]:
    """Talk → part → how often it is current in one exchange: so often the price of a mark is in its figure."""
    tally = Tally()
    rig = Rig(marks=tally)
    found = {}
    for kind, talk in TALKS.items():
        tally.intervals.clear()
        rig.run(talk, 1)
        found[kind] = {part: tally.intervals[part] for part in PARTS}
    return found


def _best_whole(rig: Rig, kind: str, talk: Talk) -> float:
    whole = _best(TIMES[kind], lambda times: rig.run(talk, times))
    return whole - _best(TIMES[kind], lambda times: run_nothing(talk, times))


def _best(times: int, work: Callable[[int], object]) -> float:
    """Microseconds of one, when it went best."""
    best = 0.0
    for _ in range(TRIES):
        begun = time.process_time_ns()
        work(times)
        took = (time.process_time_ns() - begun) / times / 1000
        best = min(best or took, took)
    return best


def _best_parts(watch: Stopwatch, times: int, work: Callable[[int], object]) -> dict[str, float]:
    """Microseconds of each part in one, when that went best."""
    best: dict[str, float] = {}
    for _ in range(TRIES):
        watch.spent_ns.clear()
        work(times)
        for part, spent_ns in watch.spent_ns.items():
            took = spent_ns / times / 1000
            best[part] = min(best.get(part, took), took)
    return best
