"""One load on one stack, and what it gave and cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.machine import busy_s
from bench.procs import GATEWAY_CORE, cpu_s, resident_mb
from bench.programs import LoadResult
from bench.scenarios import DRAIN_S, TOKENS, Scenario
from bench.site import Site, Stack

T = TypeVar("T")


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


def take_turn(site: Site, stack: Stack, scenario: Scenario, round_number: int, seconds: float) -> Turn:
    """Put one load on one stack and say what it gave and cost.

    Raises:
        subprocess.SubprocessError: the load generator gave no result, because nobody listens or it took far too long.
    """
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


def in_turns(stacks: Sequence[T], round_number: int) -> list[T]:
    """The stacks in another order each round: being first or last favours nobody."""
    shift = round_number % len(stacks)
    return [*stacks[shift:], *stacks[:shift]]


def _gateway_cpu_s(stack: Stack) -> float:
    return cpu_s(stack.pid) if stack.pid else 0.0
