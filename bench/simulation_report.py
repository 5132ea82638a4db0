"""Which simulations are run, what is held against them, and their tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.simulation import Machine, Request, Simulation, attainable_hits, mixed, with_prefixes
from bench.tables import table, verdict
from headrace.domain.routing import Strategy

REQUESTS = 10_000
LOADS = (0.7, 0.8, 0.9)
PREFIXES = 1000
LEAST_HALVED = 2.0
"""Least-busy: so many times less p99 wait than round-robin, where backends are unequal and said to take more than they run."""
LEAST_HITS = 0.9
MOST_IMBALANCE = 1.25
UNFIT, FIT, EQUAL, CACHES, SMALL_CACHES = (
    "unequal, 64 slots each",
    "unequal, slots as they run",
    "equal, 64 slots each",
    "32 at once each, beginnings cached",
    "8 at once each, beginnings cached",
)
MIXED = {
    UNFIT: [Machine(60, 8, 64)] * 2 + [Machine(30, 4, 64)] * 3 + [Machine(15, 4, 64)] * 3,
    FIT: [Machine(60, 8, 8)] * 2 + [Machine(30, 4, 4)] * 3 + [Machine(15, 4, 4)] * 3,
    EQUAL: [Machine(40, 4, 64)] * 8,
}
CACHING = {
    CACHES: [Machine(40, 32, 32, width=16, cached=20)] * 8,
    SMALL_CACHES: [Machine(40, 8, 64, cached=20)] * 8,
}
SPREADING = (Strategy.ROUND_ROBIN, Strategy.WEIGHTED, Strategy.LEAST_BUSY, Strategy.LATENCY)
WITH_CACHES = (Strategy.ROUND_ROBIN, Strategy.LEAST_BUSY, Strategy.PREFIX)


@dataclass(frozen=True, slots=True)
class Simulated:
    """What one strategy came to on one fleet under one load. hits: as a share of what is attainable; None where nothing is cached.
    imbalance: the highest use of a backend ÷ the mean."""

    fleet: str
    load: float
    strategy: Strategy
    p50_s: float
    p99_s: float
    imbalance: float
    hits: float | None = None


def simulate(requests: int = REQUESTS, loads: Sequence[float] = LOADS) -> list[Simulated]:
    """Everything; the same every time."""
    found = []
    for load in loads:
        for fleet, machines in MIXED.items():
            asked = mixed(machines, load, requests)
            found += [_simulated(fleet, load, one, machines, asked) for one in SPREADING]
        for fleet, machines in CACHING.items():
            asked = with_prefixes(machines, load, requests, PREFIXES)
            attainable = attainable_hits(machines, asked)
            found += [_simulated(fleet, load, one, machines, asked, attainable) for one in WITH_CACHES]
    return found


def judged(found: Sequence[Simulated]) -> Iterator[list[str]]:
    """Each bar, what was found, and whether it was kept, under the load that is worst for it."""
    known = {(one.fleet, one.load, one.strategy): one for one in found}
    ratios = [
        known[UNFIT, load, Strategy.ROUND_ROBIN].p99_s / one.p99_s
        for (fleet, load, strategy), one in known.items()
        if (fleet, strategy) == (UNFIT, Strategy.LEAST_BUSY)
    ]
    prefix = [one for one in found if (one.fleet, one.strategy) == (CACHES, Strategy.PREFIX)]
    if ratios:
        yield _bar(
            f"p99 wait, round-robin ÷ least-busy: at least {LEAST_HALVED:g}",
            lowest=LEAST_HALVED,
            value=min(ratios),
        )
    if prefix:
        hits, most = min(one.hits or 0.0 for one in prefix), max(one.imbalance for one in prefix)
        yield _bar(
            f"prefix: cache hits ÷ attainable ones: at least {LEAST_HITS:g}", lowest=LEAST_HITS, value=hits
        )
        yield _bar(
            f"prefix: highest ÷ mean use: at most {MOST_IMBALANCE:g}", highest=MOST_IMBALANCE, value=most
        )


def simulation_tables(found: Sequence[Simulated]) -> list[str]:
    """One table for the waits, one for the caches."""
    loads = sorted({one.load for one in found})
    made = []
    for fleets, title, cell in (
        (MIXED, "wait p50 / p99 in s at a load of", _waits),
        (CACHING, "hits, highest ÷ mean use at a load of", _hits),
    ):
        cells = {(one.fleet, one.strategy, one.load): cell(one) for one in found if one.fleet in fleets}
        lines = dict.fromkeys((fleet, strategy) for fleet, strategy, _ in cells)
        rows = [
            [fleet, strategy, *(cells[fleet, strategy, load] for load in loads)] for fleet, strategy in lines
        ]
        made.append(table([title, "strategy", *(f"{load:.0%}" for load in loads)], rows))
    return made


def simulation_text(found: Sequence[Simulated]) -> str:
    """What the page about performance shows."""
    return "\n\n".join([*simulation_tables(found), table(["bar", "found", ""], list(judged(found)))])


def main() -> None:
    """Simulate, print the tables, and put them into the page."""
    from bench.budget.table import (
        PAGE,
        put_in,
    )  # it brings the whole gateway, which the benchmark's other parts start as a program

    text = simulation_text(simulate())
    PAGE.write_text(put_in(PAGE.read_text(encoding="utf-8"), "simulation", text), encoding="utf-8")
    print(text)


def _simulated(
    fleet: str,
    load: float,
    strategy: Strategy,
    machines: Sequence[Machine],
    asked: Sequence[Request],
    attainable: int = 0,
) -> Simulated:
    came = Simulation(machines, strategy).run(asked)
    hits = came.hits / attainable if attainable else None
    return Simulated(fleet, load, strategy, came.wait_s(0.5), came.wait_s(0.99), came.imbalance, hits)


def _bar(title: str, *, value: float, lowest: float | None = None, highest: float | None = None) -> list[str]:
    return [f"simulated {title}", f"{value:.2f}", verdict(value, lowest=lowest, highest=highest)]


def _waits(one: Simulated) -> str:
    return f"{one.p50_s:.2f} / {one.p99_s:.1f}"


def _hits(one: Simulated) -> str:
    return f"{one.hits or 0.0:.2f}, {one.imbalance:.2f}"


if __name__ == "__main__":
    main()
