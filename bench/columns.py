"""Which figures each part gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from bench.figures import Figure
from bench.scenarios import GRID, Part
from bench.turns import Turn


def _per_request(turn: Turn, _direct: Turn) -> float | None:
    return _cpu_us(turn, turn.result.ok)


def _per_event(turn: Turn, _direct: Turn) -> float | None:
    return _cpu_us(turn, turn.result.events)


def _cpu_us(turn: Turn, units: int) -> float | None:
    return None if turn.cpu_s is None or not units else turn.cpu_s * 1e6 / units


def _result(name: str) -> Callable[[Turn, Turn], float | None]:
    def seen(turn: Turn, _direct: Turn) -> float | None:
        value: float = getattr(turn.result, name)
        return value

    return seen


def _added(name: str) -> Callable[[Turn, Turn], float | None]:
    def added_us(turn: Turn, direct: Turn) -> float | None:
        # Where all failed there is no latency, and 0 ms would look like a fast answer.
        if turn.stack == direct.stack or not turn.result.ok or not direct.result.ok:
            return None
        difference: float = getattr(turn.result, name) - getattr(direct.result, name)
        return difference * 1000

    return added_us


def _grid() -> tuple[Figure, ...]:
    plain = [
        figure
        for conns in GRID
        for figure in (
            Figure(f"plain, {conns:,}: req/s", f"plain-{conns}", 0, _result("requests_per_s")),
            Figure(f"plain, {conns:,}: CPU µs / request", f"plain-{conns}", 1, _per_request),
        )
    ]
    streamed = [
        figure
        for conns in GRID
        for figure in (
            Figure(f"streamed, {conns:,}: events/s", f"stream-{conns}", 0, _result("events_per_s")),
            Figure(f"streamed, {conns:,}: CPU µs / event", f"stream-{conns}", 2, _per_event),
        )
    ]
    return (*plain, *streamed)


PER_REQUEST = Figure("CPU µs / request", "plain-steady", 1, _per_request)
PER_EVENT = Figure("CPU µs / event", "stream-steady", 2, _per_event)
HALF_LOAD_P50 = Figure("added µs p50", "half-steady", 0, _added("latency_p50_ms"))
LIGHT_PER_REQUEST = Figure("CPU µs / request", "plain-light-steady", 0, _per_request)
LIGHT_PER_EVENT = Figure("CPU µs / event", "stream-light-steady", 1, _per_event)

FIGURES: Mapping[Part, tuple[Figure, ...]] = MappingProxyType(
    {
        "gateway": (
            PER_REQUEST,
            PER_EVENT,
            Figure("CPU µs / 200 kB request", "prompt-steady", 0, _per_request),
            Figure("saturated req/s", "plain-saturated", 0, _result("requests_per_s")),
            Figure("saturated events/s", "stream-saturated", 0, _result("events_per_s")),
            Figure("added µs p50", "plain-steady", 0, _added("latency_p50_ms")),
            Figure("added µs p99", "plain-steady", 0, _added("latency_p99_ms")),
            Figure("added µs to first event p50", "stream-steady", 0, _added("first_event_p50_ms")),
            Figure("added µs to first event p99", "stream-steady", 0, _added("first_event_p99_ms")),
            Figure("added µs to gap p99", "stream-steady", 0, _added("gap_p99_ms")),
        ),
        "grid": _grid(),
        "latency": (
            Figure("req/s carried", "half-steady", 0, _result("requests_per_s")),
            HALF_LOAD_P50,
            Figure("added µs p99", "half-steady", 0, _added("latency_p99_ms")),
            Figure("CPU µs / request", "half-steady", 1, _per_request),
        ),
        "light": (
            LIGHT_PER_REQUEST,
            LIGHT_PER_EVENT,
            Figure("added µs p50", "plain-light-steady", 0, _added("latency_p50_ms")),
            Figure("added µs p99", "plain-light-steady", 0, _added("latency_p99_ms")),
            Figure("added µs to first event p50", "stream-light-steady", 0, _added("first_event_p50_ms")),
        ),
    }
)
