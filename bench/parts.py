"""What is measured, part by part. What can't be is named in the measurement, and the rest goes on."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import cancel, engine, held, scenarios, simulation_report, startup
from bench.admission import measure as admission
from bench.admission import shared
from bench.machine import Weather
from bench.measurement import Measurement
from bench.procs import raise_descriptor_limit
from bench.scenarios import Scenario
from bench.site import Site, Stack, Unavailable
from bench.stacks import LIGHT_ONLY, Start
from bench.turns import in_turns, take_turn

WARM_UP_S = 0.5
CALIBRATIONS = 3
CALIBRATION_S = 1.0
REFERENCE = "headrace"
"""Half of what this one carries is the load at which latencies are compared."""
FAILURES = (Unavailable, OSError, RuntimeError, subprocess.SubprocessError)


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for. `stacks` says how each is started, direct first; `model` None: the demo model."""

    parts: Sequence[str]
    stacks: Mapping[str, Start]
    rounds: int
    seconds: float
    holding: held.Plan
    model: Path | None = None
    keys: int = admission.MANY

    @property
    def needs_a_site(self) -> bool:
        """Whether any part needs programs, an upstream or a stack."""
        return any(part not in INSIDE for part in self.parts)


def measure_inside(folder: Path, plan: Plan, found: Measurement, keep: Callable[[], None]) -> None:
    """The parts of the plan that run in this process, without any stack."""
    for part, work in INSIDE.items():
        if part in plan.parts:
            with _or_left_out(found, part):
                work(folder, plan, found)
            keep()


def measure(site: Site, plan: Plan, found: Measurement, keep: Callable[[], None]) -> None:
    """All parts of the plan; `keep` is called after each, for together they take a while."""
    descriptors = raise_descriptor_limit()
    most = held.most_streams(plan.holding.streams, descriptors)
    if "held" in plan.parts and most < plan.holding.streams:
        leave_out(
            found, f"held: {plan.holding.streams - most} streams, for only {descriptors} files may be open"
        )
        plan = dataclasses.replace(plan, holding=dataclasses.replace(plan.holding, streams=most))
    _measure_together(site, plan, found, keep)
    for part, work in ALONE.items():
        if part in plan.parts:
            with _or_left_out(found, part):
                work(site, plan, found)
            keep()


def _measure_together(site: Site, plan: Plan, found: Measurement, keep: Callable[[], None]) -> None:
    """The parts for which the stacks are up together, and wait while another one is asked."""
    parts = {part: work for part, work in TOGETHER.items() if part in plan.parts}
    if not parts:
        return
    with ExitStack() as started:
        common = [name for name in plan.stacks if name not in LIGHT_ONLY]
        up = [stack for name in common if (stack := _start(name, site, plan, started, found))]
        for part, work in parts.items():
            if part == "light":
                light = [name for name in plan.stacks if name in LIGHT_ONLY]
                up += [stack for name in light if (stack := _start(name, site, plan, started, found))]
            with _or_left_out(found, part):
                work(site, up, plan, found)
            keep()


def _start(name: str, site: Site, plan: Plan, started: ExitStack, found: Measurement) -> Stack | None:
    stack: Stack | None = None
    with _or_left_out(found, ""):
        stack = started.enter_context(plan.stacks[name](site))
        found.configurations.setdefault(name, stack.configuration)
    return stack


def _gateway(site: Site, stacks: Sequence[Stack], plan: Plan, found: Measurement) -> None:
    take_turns(site, stacks, scenarios.gateway(site.folder), plan, found)


def _grid(site: Site, stacks: Sequence[Stack], plan: Plan, found: Measurement) -> None:
    take_turns(site, stacks, scenarios.grid(), plan, found)


def _light(site: Site, stacks: Sequence[Stack], plan: Plan, found: Measurement) -> None:
    take_turns(site, stacks, scenarios.light(), plan, found)


def _latency(site: Site, stacks: Sequence[Stack], plan: Plan, found: Measurement) -> None:
    reference = next((stack for stack in stacks if stack.name == REFERENCE), stacks[-1])
    rate = saturated_rate(site, reference, min(plan.seconds, CALIBRATION_S))
    load = scenarios.half_load(rate / 2)
    explained = f"{load.explanation}: half of what {reference.name} carried saturated just before"
    take_turns(site, stacks, [dataclasses.replace(load, explanation=explained)], plan, found)


def saturated_rate(site: Site, stack: Stack, seconds: float) -> float:
    """Plain requests each second that a stack carries at most, over 32 connections.

    Raises:
        RuntimeError: none.
    """
    load = Scenario("latency", "calibration", "", ("--conns", "32"))
    take_turn(site, stack, load, -1, min(seconds, WARM_UP_S))
    turns = [take_turn(site, stack, load, -1, seconds) for _ in range(CALIBRATIONS)]
    rate = statistics.median(turn.result.requests_per_s for turn in turns)
    if not rate:
        raise RuntimeError(f"{stack.name} answered nothing ({turns[0].result.first_error})")
    return rate


def take_turns(
    site: Site, stacks: Sequence[Stack], loads: Sequence[Scenario], plan: Plan, found: Measurement
) -> None:
    """Each load on each stack in each round; a turn that gives no result is named, and the next one is taken."""
    found.scenarios += loads
    for load in loads:
        for stack in stacks:
            with _or_left_out(found, f"warm-up of {load.name}, {stack.name}"):
                # Pools fill, code gets warm: not counted.
                take_turn(site, stack, load, -1, min(plan.seconds, WARM_UP_S))
    found.weather.append(Weather.now())
    for number in range(plan.rounds):
        for load in loads:
            for stack in in_turns(stacks, number):
                with _or_left_out(found, f"round {number + 1}, {load.name}, {stack.name}"):
                    found.turns.append(take_turn(site, stack, load, number, plan.seconds))
        found.weather.append(Weather.now())
        tell(f"{loads[0].part}: round {number + 1} of {plan.rounds} done")


def _cancel(site: Site, stacks: Sequence[Stack], plan: Plan, found: Measurement) -> None:
    for stack in stacks:
        for mode in cancel.MODES:
            with _or_left_out(found, f"cancel, {stack.name}, {mode}"):
                found.cancels.append(cancel.measure(site, stack, mode, plan.rounds * 4))


def _hold(site: Site, plan: Plan, found: Measurement) -> None:
    """One stack at a time, started anew: what it freed before would hide what the streams take."""
    found.holding = plan.holding
    gateways = [name for name in plan.stacks if name not in (*LIGHT_ONLY, "direct")]
    rounds = min(plan.rounds, held.ROUNDS)
    for number in range(rounds):
        for name in in_turns(gateways or ["direct"], number):
            with _or_left_out(found, f"held, {name}"), ExitStack() as started:
                if stack := _start(name, site, plan, started, found):
                    found.held.append(held.hold(site, stack, plan.holding, number))
        tell(f"held: round {number + 1} of {rounds} done")


def _start_up(site: Site, plan: Plan, found: Measurement) -> None:
    found.startup = startup.measure(site, plan.rounds)


def _run_engine(site: Site, plan: Plan, found: Measurement) -> None:
    found.engine = engine.measure(site.folder, plan.model or engine.demo_model(site.folder), plan.rounds)


def _simulate(_site: Site, _plan: Plan, found: Measurement) -> None:
    found.simulated = simulation_report.simulate()


def _admission(folder: Path, plan: Plan, found: Measurement) -> None:
    found.admission = admission.measure(folder, plan.keys, tell)


def _redis(folder: Path, plan: Plan, found: Measurement) -> None:
    found.redis = shared.measure(folder, plan.rounds)


TOGETHER: dict[str, Callable[[Site, Sequence[Stack], Plan, Measurement], None]] = {
    "gateway": _gateway,
    "grid": _grid,
    "latency": _latency,
    "cancel": _cancel,
    "light": _light,  # the last: those that are up for it alone disturb no other part
}
ALONE: dict[str, Callable[[Site, Plan, Measurement], None]] = {
    "held": _hold,
    "startup": _start_up,
    "engine": _run_engine,
    "simulation": _simulate,
}
INSIDE: dict[str, Callable[[Path, Plan, Measurement], None]] = {"admission": _admission, "redis": _redis}
PARTS = (*TOGETHER, *ALONE, *INSIDE)


@contextmanager
def _or_left_out(found: Measurement, what: str) -> Iterator[None]:
    try:
        yield
    except FAILURES as reason:
        leave_out(found, f"{what}: {reason}" if what else str(reason))


def leave_out(found: Measurement, line: str) -> None:
    """Name what isn't measured, once."""
    if line not in found.absences:
        found.absences.append(line)
        tell(f"left out: {line}")


def tell(line: str) -> None:
    """To the person who waits."""
    print(line, file=sys.stderr, flush=True)
