"""A measurement as text (Markdown, so that it can be kept) and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from bench import cancel, startup
from bench.cancel import Cancels
from bench.engine import EngineFigures
from bench.figures import FIGURES, Figure, Spread, Turns
from bench.machine import Machine, Weather
from bench.scenarios import Scenario, Turn
from bench.startup import Startup

OURS = "headrace"


@dataclass(slots=True)
class Measurement:
    """All that one run found. `absences` names what couldn't be measured, and why."""

    rounds: int
    seconds: float
    machine: Machine = field(default_factory=Machine.this)
    weather: list[Weather] = field(default_factory=list)
    scenarios: Sequence[Scenario] = ()
    configurations: dict[str, str] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    cancels: list[Cancels] = field(default_factory=list)
    startup: Startup | None = None
    engine: EngineFigures | None = None
    absences: list[str] = field(default_factory=list)


def as_json(measurement: Measurement) -> str:
    """Everything, each turn by itself."""
    return json.dumps(asdict(measurement), indent=1)


def as_text(measurement: Measurement) -> str:
    """Tables of medians with their spread, ratios, what makes them doubtful, and what was measured on."""
    parts = [f"# Measured: {measurement.rounds} rounds of {measurement.seconds:g} s a turn"]
    if measurement.turns:
        parts += _gateway(measurement)
    if measurement.cancels:
        parts += ["## A client that leaves", *_cancels(measurement.cancels)]
    if measurement.startup:
        parts += ["## Start", _startup(measurement.startup)]
    if measurement.engine:
        parts += ["## On the real engine", _engine(measurement.engine)]
    if measurement.absences:
        parts += ["## Not measured", "\n".join(f"- {line}" for line in measurement.absences)]
    return "\n\n".join([*parts, "## Measured on", _machine(measurement), *_configurations(measurement)])


def _gateway(measurement: Measurement) -> list[str]:
    turns, stacks = Turns(measurement.turns), list(measurement.configurations)
    loads = "\n".join(f"- `{one.name}`: {one.explanation}" for one in measurement.scenarios)
    parts = [
        "## Gateways",
        loads,
        _table(["median (lowest to highest)", *stacks], _figure_rows(turns, stacks)),
    ]
    others = [name for name in stacks if name not in (OURS, "direct")]
    if OURS in stacks and others:
        titles = [f"{OURS} ÷ {name}" for name in others]
        parts += [
            "Within each round, the median of rounds:",
            _table(["ratio", *titles], _ratio_rows(turns, others)),
        ]
    if remarks := turns.remarks():
        parts += ["Doubtful:", "\n".join(f"- {line}" for line in remarks)]
    return parts


def _figure_rows(turns: Turns, stacks: Sequence[str]) -> list[list[str]]:
    rows = [
        [figure.title, *(_spread(turns.spread(figure, name), figure.decimals) for name in stacks)]
        for figure in FIGURES
    ]
    resident = [max(turn.resident_mb for turn in turns.all if turn.stack == name) for name in stacks]
    return [*rows, ["highest resident MB", *(f"{mb:.0f}" if mb else "" for mb in resident)]]


def _ratio_rows(turns: Turns, others: Sequence[str]) -> list[list[str]]:
    def cells(figure: Figure) -> list[str]:
        return [_spread(turns.ratio(figure, OURS, other), 2) for other in others]

    return [[figure.title, *cells(figure)] for figure in FIGURES if not figure.title.startswith("added")]


def _cancels(cancels: Sequence[Cancels]) -> list[str]:
    rows = [[one.stack, one.mode, _spread(one.ms, 1), str(one.unseen)] for one in cancels]
    unseen = f"not seen within {cancel.SEEN_WITHIN_S:g} s"
    table = _table(["stack", "answer", "ms until the upstream sees it", unseen], rows)
    return [table, f"The bar is {cancel.BAR_MS:g} ms."]


def _startup(found: Startup) -> str:
    seconds, resident = found.seconds, found.resident_mb
    lines = [
        f"- exec to the first 200 on /health: {_spread(seconds, 2)} s, the first start {found.first_s:.2f} s"
        f" (bar {startup.BAR_S} s: {_verdict(seconds.median, startup.BAR_S)})",
        f"- resident then: {_spread(resident, 1)} MB (bar {startup.BAR_MB:g} MB:"
        f" {_verdict(resident.median, startup.BAR_MB)})",
    ]
    return "\n".join(lines)


def _engine(found: EngineFigures) -> str:
    lines = [
        f"- model {found.model}, 4 concurrent streams, each prompt new to the engine, {found.rounds} rounds",
        f"- engine alone: {_spread(found.direct_tokens_per_s, 1)} tokens/s",
        f"- through the gateway: {_spread(found.through_tokens_per_s, 1)} tokens/s",
        f"- through ÷ alone: {_spread(found.ratio, 3)}",
        f"- the gateway's CPU time ÷ the engine's: {_spread(found.share, 4)}",
    ]
    return "\n".join(lines)


def _machine(measurement: Measurement) -> str:
    weather = measurement.weather
    lines = [f"- {measurement.machine}"]
    if weather:
        averages = ", ".join(f"{one.load_average:.2f}" for one in weather)
        stolen = weather[-1].stolen_s - weather[0].stolen_s
        lines += [
            f"- load average before and after each round: {averages}",
            f"- stolen meanwhile: {stolen:.1f} s",
        ]
    return "\n".join(lines)


def _configurations(measurement: Measurement) -> list[str]:
    return [
        f"### {name}\n\n```\n{text.rstrip()}\n```"
        for name, text in measurement.configurations.items()
        if text
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [head, *rows]]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spread(spread: Spread | None, decimals: int) -> str:
    if spread is None:
        return ""
    median, low, high = (f"{value:,.{decimals}f}" for value in (spread.median, spread.lowest, spread.highest))
    return f"{median} ({low} to {high})"


def _verdict(value: float, bar: float) -> str:
    return "kept" if value <= bar else "NOT kept"
