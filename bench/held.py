"""Thousands of slow streams held open at once: what one of them takes of the gateway's memory and time."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.endpoint import LOOK_EVERY_S
from bench.figures import Spread, ratios
from bench.procs import cpu_s, resident_mb
from bench.programs import LoadResult, Offer
from bench.site import Site, Stack

BAR_KB = 25.0
ROUNDS = 2
"""At most: a stack's turns together stay within a minute."""
WARM_UP_S = 0.5
SETTLE_S = 1.0
LATE_S = 8.0
"""How much longer than planned the last stream may take to begin."""
PER_STREAM = 2
"""Descriptors of a gateway: its client's and its backend's."""
OTHER_DESCRIPTORS = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """`streams` begin within `ramp_s`; each gets `tokens`, one each `interval_s`, and then ends.

    All are open from the ramp's end until the first one ends; `window_s` of that is looked at.
    """

    streams: int
    ramp_s: float = 5.0
    interval_s: float = 4.0
    tokens: int = 5
    window_s: float = 6.0

    @classmethod
    def quick(cls, streams: int) -> Plan:
        """To see that it runs."""
        return cls(streams, ramp_s=0.5, interval_s=0.5, tokens=7, window_s=1.0)

    @property
    def life_s(self) -> float:
        """Of one stream."""
        return self.interval_s * self.tokens

    @property
    def begin_s(self) -> float:
        """Beyond the ramp, time for stragglers to begin; yet less than a stream's life, so that none begins again."""
        return (self.life_s - self.ramp_s) / 4

    @property
    def most_s(self) -> float:
        """After so long it has failed."""
        return self.ramp_s + self.begin_s + self.life_s + 2 * LATE_S

    def load(self) -> list[str]:
        """Options of the load generator."""
        options = ["--conns", str(self.streams), "--mode", "stream", "--expect-events", str(self.tokens + 4)]
        # A connection that waits for its first request would be given up by some gateways before its turn has come.
        options += ["--dial-late", "--spread-us", str(int(self.ramp_s * 1e6))]
        return [*options, "--drain", str(self.life_s + LATE_S)]

    def __str__(self) -> str:
        return (
            f"{self.streams:,} streams, begun within {self.ramp_s:g} s, one token each {self.interval_s:g} s;"
            f" CPU over {self.window_s:g} s while all are open"
        )


@dataclass(frozen=True, slots=True)
class Held:
    """One stack's turn. `open` streams were counted by the upstream at the end of the window.

    Resident megabytes: `before_mb` warmed up without a stream, `held_mb` at the end of the window, `after_mb` when all
    had ended. `cpu_s` was used in the window of `window_s`; 0.0 where there is no gateway.
    """

    round: int
    stack: str
    open: int
    before_mb: float
    held_mb: float
    after_mb: float
    cpu_s: float
    window_s: float
    result: LoadResult

    @property
    def kb_per_stream(self) -> float:
        """Resident kilobytes (10^3 bytes) for each open stream, its kernel buffers not among them."""
        return (self.held_mb - self.before_mb) * 1000 / max(self.open, 1)

    @property
    def cpu_us_per_stream_s(self) -> float:
        """CPU microseconds for each second that one stream was open."""
        return self.cpu_s * 1e6 / max(self.open * self.window_s, 1e-9)


FIGURES = (
    ("resident kB / stream", 1, "kb_per_stream"),
    ("CPU µs / stream and second", 1, "cpu_us_per_stream_s"),
    ("resident MB before", 1, "before_mb"),
    ("resident MB with all open", 1, "held_mb"),
    ("resident MB after they ended", 1, "after_mb"),
)
"""Title, decimals, attribute of `Held`."""


def most_streams(wanted: int, descriptors: int) -> int:
    """How many of the wanted streams a gateway can hold that may open so many descriptors."""
    return min(wanted, (descriptors - OTHER_DESCRIPTORS) // PER_STREAM)


def hold(site: Site, stack: Stack, plan: Plan, round_number: int) -> Held:
    """Hold the streams through a stack that was started for this: what was freed before would hide what they take.

    Raises:
        subprocess.SubprocessError: the load generator gave no result.
    """
    site.upstream.set({"tokens": 2, "interval_us": 1000, "delay_us": 0, "head_delay_us": 0})
    site.programs.offer(stack.endpoint.port, WARM_UP_S, ["--conns", "32", "--mode", "stream"])
    before = _resident_mb(stack)
    site.upstream.set({"tokens": plan.tokens, "interval_us": int(plan.interval_s * 1e6)})
    with site.programs.offering(stack.endpoint.port, plan.begin_s, plan.load()) as offer:
        _wait_until_open(site, plan, offer)
        used, begun = _cpu_s(stack), time.monotonic()
        time.sleep(plan.window_s)
        used, took = _cpu_s(stack) - used, time.monotonic() - begun
        held, still_open = _resident_mb(stack), site.upstream.stats()["active"]
        result = offer.result(plan.most_s)
    return Held(round_number, stack.name, still_open, before, held, _resident_mb(stack), used, took, result)


def values(held: list[Held], stack: str, attribute: str) -> dict[int, float]:
    """Round → value; nothing for a stack without a gateway."""
    return {
        one.round: getattr(one, attribute)
        for one in held
        if one.stack == stack and one.before_mb and one.open
    }


def ratio(held: list[Held], stack: str, other: str, attribute: str) -> Spread | None:
    """`stack` ÷ `other` within each round, over the rounds."""
    found = ratios(values(held, stack, attribute), values(held, other, attribute))
    return Spread.over(list(found.values()))


def remarks(held: list[Held], streams: int) -> list[str]:
    """What makes a turn doubtful: streams that failed or were never open."""
    found = []
    for one in held:
        where = f"round {one.round + 1}, held, {one.stack}"
        if one.result.bad or one.result.cut:
            result = one.result
            found.append(
                f"{where}: {result.bad} failed, {result.cut} were cut ({result.first_error or 'late'})"
            )
        if one.open < streams:
            found.append(f"{where}: only {one.open} of {streams} were open at the end of the window")
    return found


def _wait_until_open(site: Site, plan: Plan, offer: Offer) -> None:
    """Until all streams have begun, or it is plain that they won't; then until what follows a beginning is over."""
    before = site.upstream.stats()["finished"]
    deadline = time.monotonic() + plan.ramp_s + LATE_S
    while time.monotonic() < deadline and not offer.ended():
        stats = site.upstream.stats()
        if stats["active"] >= plan.streams or stats["finished"] > before:
            break
        time.sleep(10 * LOOK_EVERY_S)
    time.sleep(min(SETTLE_S, plan.window_s / 4))


def _cpu_s(stack: Stack) -> float:
    return cpu_s(stack.pid) if stack.pid else 0.0


def _resident_mb(stack: Stack) -> float:
    return resident_mb(stack.pid) if stack.pid else 0.0
