"""The command: `python -m bench`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import cancel, engine, peers, report, startup
from bench.machine import Weather
from bench.programs import Programs
from bench.report import Measurement
from bench.scenarios import in_turns, scenarios, take_turn
from bench.stacks import STACKS, USUAL, Site, Stack, Unavailable

PARTS = ("gateway", "cancel", "startup", "engine")
WARM_UP_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for and print it; the status is 1 when nothing at all could be measured."""
    options = _options(arguments)
    _unwind_on_sigterm()
    measurement = Measurement(options.rounds, options.seconds)
    measurement.absences += peers.install(options.stacks)
    programs = Programs.build()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name, programs.serving() as upstream:
        site = Site(programs, upstream, Path(name))
        _measure_stacks(site, options, measurement)
        _keep(measurement, options)  # the parts that follow take minutes on a busy machine
        _try(measurement, "startup", options, lambda: _measure_startup(site, options, measurement))
        _try(measurement, "engine", options, lambda: _measure_engine(site, options, measurement))
    print(report.as_text(measurement))
    _keep(measurement, options)
    measured = measurement.turns or measurement.cancels or measurement.startup or measurement.engine
    return 0 if measured else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each stack under each load")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a turn")
    parser.add_argument(
        "--stacks", type=_names(STACKS), default=list(USUAL), help="comma-separated; direct always runs"
    )
    parser.add_argument(
        "--parts", type=_names(PARTS), default=list(PARTS), help=f"comma-separated, of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of one second: does it run, not how fast"
    )
    parser.add_argument(
        "--model", type=Path, help="a GGUF file for the engine part, instead of the demo model"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every turn there")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    options.stacks = ["direct", *(name for name in options.stacks if name != "direct")]
    return options


def _unwind_on_sigterm() -> None:
    """End as Ctrl-C ends: through every block, so that no gateway or engine outlives us."""

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)


def _keep(measurement: Measurement, options: argparse.Namespace) -> None:
    if options.json:
        options.json.write_text(report.as_json(measurement))


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(wrong)}; there are {', '.join(known)}")
        return names

    return parse


def _measure_stacks(site: Site, options: argparse.Namespace, measurement: Measurement) -> None:
    if not {"gateway", "cancel"} & set(options.parts):
        return
    with ExitStack() as started:
        stacks = [stack for name in options.stacks if (stack := _start(name, site, started, measurement))]
        measurement.configurations = {stack.name: stack.configuration for stack in stacks}
        if "gateway" in options.parts:
            _measure_gateways(site, stacks, options, measurement)
        if "cancel" in options.parts:
            _measure_cancels(site, stacks, options, measurement)


def _start(name: str, site: Site, started: ExitStack, measurement: Measurement) -> Stack | None:
    try:
        return started.enter_context(STACKS[name](site))
    except Unavailable as reason:
        _leave_out(measurement, str(reason))
        return None


def _measure_gateways(
    site: Site, stacks: Sequence[Stack], options: argparse.Namespace, measurement: Measurement
) -> None:
    measurement.scenarios = scenarios(site.folder)
    for scenario in measurement.scenarios:
        for stack in stacks:
            take_turn(site, stack, scenario, -1, WARM_UP_S)  # pools fill, code gets warm: not counted
    measurement.weather.append(Weather.now())
    for number in range(options.rounds):
        for scenario in measurement.scenarios:
            for stack in in_turns(stacks, number):
                measurement.turns.append(take_turn(site, stack, scenario, number, options.seconds))
        measurement.weather.append(Weather.now())
        _tell(f"round {number + 1} of {options.rounds} done")


def _measure_cancels(
    site: Site, stacks: Sequence[Stack], options: argparse.Namespace, measurement: Measurement
) -> None:
    for stack in stacks:
        for mode in cancel.MODES:
            try:
                measurement.cancels.append(cancel.measure(site, stack, mode, options.rounds * 4))
            except OSError as error:
                _leave_out(measurement, f"cancel, {stack.name}, {mode}: {error}")


def _measure_startup(site: Site, options: argparse.Namespace, measurement: Measurement) -> None:
    measurement.startup = startup.measure(site, options.rounds)


def _measure_engine(site: Site, options: argparse.Namespace, measurement: Measurement) -> None:
    model = options.model or engine.demo_model(site.folder)
    measurement.engine = engine.measure(site.folder, model, options.rounds)


def _try(
    measurement: Measurement, part: str, options: argparse.Namespace, measure: Callable[[], None]
) -> None:
    if part not in options.parts:
        return
    try:
        measure()
    except (Unavailable, OSError, RuntimeError) as reason:
        _leave_out(measurement, f"{part}: {reason}")


def _leave_out(measurement: Measurement, line: str) -> None:
    measurement.absences.append(line)
    _tell(f"left out: {line}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
