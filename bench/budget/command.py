"""The command: `python -m bench.budget`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from bench.budget import counting, timing
from bench.budget.figures import KEPT, Budget, as_toml, budget_of, judge, kept, python_version
from bench.budget.table import PAGE, put_in, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, and print the table; the status is 1 when the code is over its budget, 2 when nothing could be counted."""
    parser = argparse.ArgumentParser(prog="python -m bench.budget", description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="keep the figures as the budget, and put them into the page"
    )
    options = parser.parse_args(arguments)
    try:
        now = measure()
    except (counting.Unavailable, counting.Miscounted) as reason:
        print(f"not counted: {reason}", file=sys.stderr)
        return 2
    print(table(now))
    if options.write:
        KEPT.write_text(as_toml(now), encoding="utf-8")
        PAGE.write_text(put_in(PAGE.read_text(encoding="utf-8"), table(now)), encoding="utf-8")
        return 0
    return _compare(now)


def measure() -> Budget:
    """Count and time everything here; about fifteen seconds.

    Raises:
        Unavailable, Miscounted: see `counting.count`.
    """
    return budget_of(counting.count(), asyncio.run(timing.measure()))


def _compare(now: Budget) -> int:
    before = kept()
    if before.python != python_version():
        print(f"\nthe budget is Python {before.python}'s: not compared")
        return 0
    verdict = judge(now, before)
    print("", *verdict.over, *verdict.under, sep="\n")
    return 1 if verdict.over else 0
