"""What is put on every stack: two loads that saturate it, and three steady ones that all of them can carry."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import busy_s
from bench.procs import GATEWAY_CORE, cpu_s, resident_mb
from bench.programs import LoadResult
from bench.stacks import Site, Stack

TOKENS = 64
EVENTS = TOKENS + 4
"""Events of one stream: role, tokens, finish, usage, [DONE]. None may be lost or added on the way."""
PROMPT_BYTES = 200_000
DRAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load. `options` are the load generator's, `upstream` what the upstream is set to before it."""

    name: str
    explanation: str
    options: tuple[str, ...]
    upstream: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """One load on one stack. `cpu_s` is what the gateway used, drained requests included; None: there is no gateway.

    `busy_share` is what part of the time the gateway's core worked at all, `others_share` on anything but the gateway.
    """

    round: int
    scenario: str
    stack: str
    result: LoadResult
    cpu_s: float | None
    resident_mb: float
    busy_share: float = 1.0
    others_share: float = 0.0


def scenarios(folder: Path) -> tuple[Scenario, ...]:
    """All of them; the long prompt's file is written to `folder`."""
    prompt = folder / "prompt.json"
    # Compact, as OpenAI's clients write it.
    prompt.write_text(json.dumps(_long_prompt(), separators=(",", ":")))
    stream = ("--mode", "stream", "--expect-events", str(EVENTS))
    return (
        Scenario(
            "plain-saturated",
            "32 connections, plain answers, each as soon as the last is there",
            ("--conns", "32"),
        ),
        Scenario(
            "stream-saturated",
            "500 concurrent streams of 64 tokens, one each 4 ms",
            ("--conns", "500", "--spread-us", "272000", *stream),
            {"interval_us": 4000},
        ),
        Scenario(
            "plain-steady",
            "4,000 plain requests each second over 32 connections",
            ("--conns", "32", "--pace-us", "8000"),
        ),
        Scenario(
            "stream-steady",
            "300 concurrent streams of 64 tokens, one each 8 ms",
            ("--conns", "300", "--spread-us", "520000", *stream),
            {"interval_us": 8000},
        ),
        Scenario(
            "prompt-steady",
            "200 plain requests each second with a body of 200 kB over 8 connections",
            ("--conns", "8", "--pace-us", "40000", "--body", str(prompt)),
        ),
    )


def take_turn(site: Site, stack: Stack, scenario: Scenario, round_number: int, seconds: float) -> Turn:
    """Put one load on one stack and say what it gave and cost."""
    site.upstream.set(
        {"tokens": TOKENS, "interval_us": 0, "delay_us": 0, "head_delay_us": 0} | scenario.upstream
    )
    options = [*scenario.options, "--drain", str(DRAIN_S)]
    begun, used, busy = time.monotonic(), _gateway_cpu_s(stack), busy_s(GATEWAY_CORE)
    result = site.programs.offer(stack.endpoint.port, seconds, options)
    used, busy = _gateway_cpu_s(stack) - used, busy_s(GATEWAY_CORE) - busy
    others = max(busy - used, 0.0) / (time.monotonic() - begun)  # with the time that connecting took
    return Turn(
        round_number,
        scenario.name,
        stack.name,
        result,
        used if stack.pid else None,
        resident_mb(stack.pid) if stack.pid else 0.0,
        busy / result.took_s,
        others,
    )


def _gateway_cpu_s(stack: Stack) -> float:
    return cpu_s(stack.pid) if stack.pid else 0.0


def in_turns(stacks: Sequence[Stack], round_number: int) -> list[Stack]:
    """The stacks in another order each round: being first or last favours nobody."""
    shift = round_number % len(stacks)
    return [*stacks[shift:], *stacks[:shift]]


def _long_prompt() -> dict[str, object]:
    line = 'The river ran past the mill; "turn," said the wheel, and it did.\n'
    text = (line * (PROMPT_BYTES // len(line) + 1))[:PROMPT_BYTES]
    return {"model": "bench", "messages": [{"role": "user", "content": text}], "max_tokens": 64}
