"""The command: `python -m bench.budget`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.budget import counting, timing
from bench.budget.choices import choices_table, too_dear
from bench.budget.choices import count as count_choices
from bench.budget.figures import KEPT, Budget, as_toml, budget_of, judge, kept, python_version
from bench.budget.sizes import dependent, sizes, sizes_table
from bench.budget.table import PAGE, put_in, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, and print the table; the status is 1 when the code is over its budget, when what a request costs depends on
    how much there is around it, or when a choice is too dear; 2 when nothing could be counted."""
    options = _options(arguments)
    try:
        if options.choices:
            return _count_choices(options)
        return _count_sizes(options) if options.sizes else _count_parts(options)
    except (counting.Unavailable, counting.Miscounted) as reason:
        print(f"not counted: {reason}", file=sys.stderr)
        return 2


def measure() -> Budget:
    """Count and time everything here, in about fifteen seconds.

    Raises:
        Unavailable, Miscounted: see `counting.count`.
    """
    return budget_of(counting.count(), timing.measure())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.budget", description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="keep what was counted, and put it into the page"
    )
    parser.add_argument(
        "--sizes", action="store_true", help="count with many keys, nodes and served requests"
    )
    parser.add_argument(
        "--choices", action="store_true", help="count what it costs to choose one of many backends"
    )
    parser.add_argument(
        "--served", type=int, default=10_000, help="how many requests `--sizes` serves before it counts"
    )
    return parser.parse_args(arguments)


def _count_parts(options: argparse.Namespace) -> int:
    now = measure()
    print(table(now))
    if options.write:
        KEPT.write_text(as_toml(now), encoding="utf-8")
        _show("budget", table(now))
        return 0
    return _compare(now)


def _count_sizes(options: argparse.Namespace) -> int:
    counts = counting.count(sizes(options.served))
    found = dependent(counts)
    print(sizes_table(counts), *found, sep="\n")
    if options.write:
        _show("sizes", sizes_table(counts))
    return 1 if found else 0


def _count_choices(options: argparse.Namespace) -> int:
    found = count_choices()
    dear = too_dear(found)
    print(choices_table(found), *dear, sep="\n")
    if options.write:
        _show("choices", choices_table(found))
    return 1 if dear else 0


def _show(name: str, text: str) -> None:
    PAGE.write_text(put_in(PAGE.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def _compare(now: Budget) -> int:
    before = kept()
    if before.python != python_version():
        print(f"\nthe budget is Python {before.python}'s: not compared")
        return 0
    verdict = judge(now, before)
    print("", *verdict.over, *verdict.under, sep="\n")
    return 1 if verdict.over else 0
