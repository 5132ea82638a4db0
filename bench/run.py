"""The command: `python -m bench`."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from bench import held, parts, peers, report
from bench.admission import measure as admission
from bench.measurement import Measurement
from bench.programs import Programs
from bench.site import Site
from bench.stacks import STACKS, USUAL

STREAMS = 9000
QUICK_STREAMS = 1000
QUICK_KEYS = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for and print it; the status is 1 when nothing at all could be measured."""
    options = _options(arguments)
    _unwind_on_sigterm()
    found = Measurement(options.rounds, options.seconds)

    def keep() -> None:
        if options.json:
            options.json.write_text(report.as_json(found))

    plan = _plan(options)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        if plan.needs_a_site:
            _measure_stacks(Path(name), plan, options.records, found, keep)
        parts.measure_inside(Path(name), plan, found, keep)
    print(report.as_text(found, every_round=options.rounds_table))
    keep()
    return 1 if found.is_empty() else 0


def _measure_stacks(
    folder: Path, plan: parts.Plan, records: int, found: Measurement, keep: Callable[[], None]
) -> None:
    absent = peers.install(list(plan.stacks))
    for line in absent.values():
        parts.leave_out(found, line)
    stacks = {name: start for name, start in plan.stacks.items() if name not in absent}
    programs = Programs.build()
    with programs.serving() as upstream:
        site = Site(programs, upstream, folder, records)
        parts.measure(site, dataclasses.replace(plan, stacks=stacks), found, keep)


def _plan(options: argparse.Namespace) -> parts.Plan:
    stacks = {name: STACKS[name] for name in options.stacks}
    holding = held.Plan.quick(options.streams) if options.quick else held.Plan(options.streams)
    keys = QUICK_KEYS if options.quick else admission.MANY
    return parts.Plan(options.parts, stacks, options.rounds, options.seconds, holding, options.model, keys)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    if options.streams is None:
        options.streams = QUICK_STREAMS if options.quick else STREAMS
    if options.rounds < 1 or options.seconds <= 0 or options.streams < 1 or options.records < 0:
        parser.error("--rounds, --seconds and --streams must be above 0, and --records not below")
    options.parts = options.chosen or options.parts
    options.stacks = ["direct", *(name for name in options.stacks if name != "direct")]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="turns of each stack under each load")
    add("--seconds", type=float, default=3.0, help="length of a turn")
    add("--stacks", type=_names(STACKS), default=list(USUAL), help="comma-separated; direct always runs")
    known = ", ".join(parts.PARTS)
    add("chosen", nargs="*", type=_name(parts.PARTS), metavar="PART", help="the same as --parts")
    add("--parts", type=_names(parts.PARTS), default=list(parts.PARTS), help=f"comma-separated, of {known}")
    add("--quick", action="store_true", help="one round of one second: does it run, not how fast")
    add(
        "--streams",
        type=int,
        help=f"how many the part held holds; {STREAMS}, or {QUICK_STREAMS} with --quick",
    )
    add(
        "--records",
        type=int,
        default=0,
        help="fill headrace's database with so many records before it starts",
    )
    add("--model", type=Path, help="a GGUF file for the engine part, instead of the demo model")
    add("--rounds-table", action="store_true", help="print the figures of every single round, too")
    add("--json", type=Path, metavar="FILE", help="write every turn and every round's figures there")
    return parser


def _unwind_on_sigterm() -> None:
    """End as Ctrl-C ends: through every block, so that no gateway or engine outlives us."""

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(wrong)}; there are {', '.join(known)}")
        return names

    return parse


def _name(known: Collection[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        (name,) = _names(known)(text)
        return name

    return parse
