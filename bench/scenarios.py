"""What is put on the stacks: the loads of each part.

A name says how a load is judged: `-saturated`: each connection asks again at once, and the gateway's core should be the
limit; `-steady`: a pace that every stack should carry, so one that doesn't has no comparable figures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Part = Literal["gateway", "grid", "latency", "light"]
"""Those whose loads are put on all stacks in turns."""

TOKENS = 64
EVENTS = TOKENS + 4
"""Events of one stream: role, tokens, finish, usage, [DONE]. None may be lost or added on the way."""
PROMPT_BYTES = 200_000
GRID = (1, 32, 300, 2000)
"""Connections at once."""
GRID_INTERVAL_US = 10_000
LIGHT_INTERVAL_US = 20_000
DRAIN_S = 10.0
"""How long what is under way may take to end. An overloaded gateway needs some seconds for 2,000 streams."""
STREAM = ("--mode", "stream", "--expect-events", str(EVENTS))


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load. `options` are the load generator's, `upstream` what the upstream is set to before it."""

    part: Part
    name: str
    explanation: str
    options: tuple[str, ...]
    upstream: dict[str, int] = field(default_factory=dict)


def gateway(folder: Path) -> tuple[Scenario, ...]:
    """Two loads that saturate a gateway, and three steady ones; the long prompt's file is written to `folder`."""
    prompt = folder / "prompt.json"
    # Compact, as OpenAI's clients write it.
    prompt.write_text(json.dumps(_long_prompt(), separators=(",", ":")))
    return (
        Scenario(
            "gateway",
            "plain-saturated",
            "32 connections, plain answers, each as soon as the last is there",
            ("--conns", "32"),
        ),
        _streams("gateway", "stream-saturated", 500, 4000),
        Scenario(
            "gateway",
            "plain-steady",
            "4,000 plain requests each second over 32 connections",
            ("--conns", "32", "--pace-us", "8000"),
        ),
        _streams("gateway", "stream-steady", 300, 8000),
        Scenario(
            "gateway",
            "prompt-steady",
            "200 plain requests each second with a body of 200 kB over 8 connections",
            ("--conns", "8", "--pace-us", "40000", "--body", str(prompt)),
        ),
    )


def grid() -> tuple[Scenario, ...]:
    """Plain and streamed answers, at 1 to 2,000 connections; plain ones are asked for again at once."""
    plain = (
        Scenario(
            "grid",
            f"plain-{conns}",
            f"plain answers over {conns:,} connection{'s' * (conns > 1)}, each as soon as the last is there",
            ("--conns", str(conns)),
        )
        for conns in GRID
    )
    return (*plain, *(_streams("grid", f"stream-{conns}", conns, GRID_INTERVAL_US) for conns in GRID))


def half_load(requests_per_s: float) -> Scenario:
    """A steady load of so many plain requests each second, their starts evenly spaced."""
    conns = 32
    pace_us = max(1, round(conns * 1e6 / requests_per_s))
    return Scenario(
        "latency",
        "half-steady",
        f"{conns * 1e6 / pace_us:,.0f} plain requests each second over {conns} connections",
        ("--conns", str(conns), "--pace-us", str(pace_us)),
    )


def light() -> tuple[Scenario, ...]:
    """Loads that a gateway carries which needs milliseconds for a request."""
    return (
        Scenario(
            "light",
            "plain-light-steady",
            "40 plain requests each second over 4 connections",
            ("--conns", "4", "--pace-us", "100000"),
        ),
        _streams("light", "stream-light-steady", 8, LIGHT_INTERVAL_US),
    )


def _streams(part: Part, name: str, conns: int, interval_us: int) -> Scenario:
    """Streams at once, a new one for each that ended, their beginnings spread over the time that one takes."""
    offered = conns * 1e6 / interval_us
    explanation = (
        f"{conns:,} concurrent stream{'s' * (conns > 1)} of {TOKENS} tokens, one each {interval_us / 1000:g} ms"
        f" (about {offered:,.0f} events each second)"
    )
    spread = ("--spread-us", str(EVENTS * interval_us)) if conns > 1 else ()
    options = ("--conns", str(conns), *spread, *STREAM)
    return Scenario(part, name, explanation, options, {"interval_us": interval_us})


def _long_prompt() -> dict[str, object]:
    line = 'The river ran past the mill; "turn," said the wheel, and it did.\n'
    text = (line * (PROMPT_BYTES // len(line) + 1))[:PROMPT_BYTES]
    return {"model": "bench", "messages": [{"role": "user", "content": text}], "max_tokens": 64}
