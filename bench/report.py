"""A measurement as text (Markdown, so that it can be kept) and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from bench import bars, cancel, held
from bench.admission.tables import admission_tables, redis_tables
from bench.cancel import Cancels
from bench.columns import FIGURES
from bench.engine import EngineFigures
from bench.figures import Turns
from bench.measurement import Measurement
from bench.rounds import OURS, Row, by_name, rows
from bench.scenarios import Part
from bench.simulation_report import simulation_tables
from bench.startup import Startup
from bench.tables import number, spread, table

TITLES: dict[Part, str] = {
    "gateway": "Gateways",
    "grid": "By number of connections",
    "latency": "Latency at half load",
    "light": "At a light load",
}


def as_json(found: Measurement) -> str:
    """Everything: each turn by itself, and under `figures` what the tables are made of, round by round."""
    return json.dumps(asdict(found) | {"figures": by_name(found)}, indent=1)


def as_text(found: Measurement, *, every_round: bool = False) -> str:
    """Tables of medians with their spread, ratios, what makes them doubtful, and what was measured on."""
    parts = [f"# Measured: {found.rounds} rounds of {found.seconds:g} s a turn"]
    if kept := bars.checked(found):
        parts += ["## Bars", kept, *_caution(found)]
    for part in FIGURES:
        parts += _turns(found, part)
    parts += _held(found)
    if found.cancels:
        parts += ["## A client that leaves", *_cancels(found.cancels)]
    if found.startup:
        parts += ["## Start", _startup(found.startup)]
    if found.engine:
        parts += ["## On the real engine", _engine(found.engine)]
    if found.simulated:
        parts += ["## Strategies, simulated", *simulation_tables(found.simulated)]
    if found.admission:
        parts += ["## Admission", *admission_tables(found.admission)]
    if found.redis:
        parts += ["## Quota in Redis", *redis_tables(found.redis)]
    if every_round:
        parts += _every_round(found)
    if found.absences:
        parts += ["## Not measured", "\n".join(f"- {line}" for line in found.absences)]
    return "\n\n".join([*parts, "## Measured on", _machine(found), *_configurations(found)])


def _caution(found: Measurement) -> list[str]:
    doubtful = len(Turns(found.turns).remarks()) + len(_held_remarks(found))
    return (
        [f"Doubts about single turns, {doubtful} of them, are named below: mind them before you quote."]
        if doubtful
        else []
    )


def _held_remarks(found: Measurement) -> list[str]:
    return held.remarks(found.held, found.holding.streams) if found.holding else []


def _turns(found: Measurement, part: Part) -> list[str]:
    turns = Turns(found.of(part))
    if not turns.all:
        return []
    loads = [one for one in found.scenarios if one.part == part]
    made = [f"## {TITLES[part]}", "\n".join(f"- `{one.name}`: {one.explanation}" for one in loads)]
    made += _tables(found, part)
    stacks = [name for name in found.stacks if any(turn.stack == name for turn in turns.all)]
    failures = [[one.name, *(_failures(*turns.failures(one.name, name)) for name in stacks)] for one in loads]
    made += ["Failed or cut, of all requests:", table(["load", *stacks], failures)]
    return [*made, *_doubtful(turns.remarks())]


def _held(found: Measurement) -> list[str]:
    if not found.held or found.holding is None:
        return []
    failures = [
        f"- {name}: {_failures(sum(r.bad + r.cut for r in results), sum(r.bad + r.cut + r.ok for r in results))}"
        for name in found.stacks
        if (results := [one.result for one in found.held if one.stack == name])
    ]
    return [
        "## Held streams",
        f"{found.holding}. Each stack is started for it.",
        *_tables(found, "held"),
        "Failed or cut, of all streams:\n\n" + "\n".join(failures),
        *_doubtful(_held_remarks(found)),
    ]


def _tables(found: Measurement, part: str) -> list[str]:
    measured = [row for row in rows(found) if row.part == part and row.values]
    stacks = [name for name in found.stacks if any(name in row.values for row in measured)]
    if not stacks:
        return []
    figures = [[row.title, *(spread(row.spread(name), row.decimals) for name in stacks)] for row in measured]
    made = [table(["median (lowest to highest)", *stacks], figures)]
    others = [name for name in stacks if name not in (OURS, "direct")]
    if OURS in stacks and others:
        ratios = [
            [row.title, *(spread(row.ratio(OURS, other), None) for other in others)] for row in measured
        ]
        titles = [f"{OURS} ÷ {name}" for name in others]
        made += ["Within each round, the median of rounds:", table(["ratio", *titles], ratios)]
    return made


def _every_round(found: Measurement) -> list[str]:
    """One line a figure and stack, one column a round."""
    measured = rows(found)
    numbers = sorted({n for row in measured for values in row.values.values() for n in values})
    if not numbers:
        return []
    lines = [
        [row.part, row.title, name, *_round_cells(row, name, numbers)]
        for row in measured
        for name in row.values
    ]
    head = ["part", "figure", "stack", *(f"round {n + 1}" for n in numbers)]
    return ["## Every round", table(head, lines)]


def _round_cells(row: Row, stack: str, numbers: Sequence[int]) -> list[str]:
    values = row.values[stack]
    return [number(values[n], row.decimals) if n in values else "" for n in numbers]


def _failures(failed: int, of: int) -> str:
    return f"{failed:,} of {of:,}"


def _doubtful(remarks: Sequence[str]) -> list[str]:
    return ["Doubtful:", "\n".join(f"- {line}" for line in remarks)] if remarks else []


def _cancels(cancels: Sequence[Cancels]) -> list[str]:
    lines = [[one.stack, one.mode, spread(one.ms, 1), str(one.unseen)] for one in cancels]
    unseen = f"not seen within {cancel.SEEN_WITHIN_S:g} s"
    return [table(["stack", "answer", "ms until the upstream sees it", unseen], lines)]


def _startup(found: Startup) -> str:
    lines = [
        f"- exec to the first 200 on /health: {spread(found.seconds, 2)} s, the first start {found.first_s:.2f} s",
        f"- resident then: {spread(found.resident_mb, 1)} MB",
    ]
    return "\n".join(lines)


def _engine(found: EngineFigures) -> str:
    lines = [
        f"- model {found.model}, 4 concurrent streams, each prompt new to the engine, {found.rounds} rounds",
        f"- engine alone: {spread(found.direct_tokens_per_s, 1)} tokens/s",
        f"- through the gateway: {spread(found.through_tokens_per_s, 1)} tokens/s",
        f"- through ÷ alone: {spread(found.ratio, 3)}",
        f"- the gateway's CPU time ÷ the engine's: {spread(found.share, 4)}",
    ]
    return "\n".join(lines)


def _machine(found: Measurement) -> str:
    weather = found.weather
    lines = [f"- {found.machine}"]
    if weather:
        averages = ", ".join(f"{one.load_average:.2f}" for one in weather)
        stolen = weather[-1].stolen_s - weather[0].stolen_s
        lines += [
            f"- load average before and after each round: {averages}",
            f"- stolen meanwhile: {stolen:.1f} s",
        ]
    return "\n".join(lines)


def _configurations(found: Measurement) -> list[str]:
    return [f"### {name}\n\n```\n{text.rstrip()}\n```" for name, text in found.configurations.items() if text]
