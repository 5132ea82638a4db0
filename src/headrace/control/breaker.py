"""When a backend is left alone and how it gets its work back: a circuit breaker, without a clock of its own.

docs/health.md has the table of states and events; a test reads it, and holds the breaker to it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from headrace.ports.connector import Broken, Busy, Failure, Lost, NotSent

_BUCKETS = 6
_JITTER = 0.5
"""The share of a pause that chance may take away, so that several who left a backend alone don't come back together."""
_STEP_S = 0.1
"""While it recovers, time alone gives it more at most this often: its owner's timer needn't run for every slot."""
_MOST_DOUBLINGS = 30
_ROUNDING = 1e-6
"""Of a slot: who wakes at the very time that was named finds it there, though times are rounded."""


class BreakerState(StrEnum):
    """How much of a backend is used."""

    CLOSED = "closed"  # all of it: it works
    OPEN = "open"  # nothing: it is left alone for a while
    HALF_OPEN = "half-open"  # one request at a time is tried
    RECOVERING = "recovering"  # ever more of it


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a backend is left alone, and for how long. All are above zero.

    in_a_row: weight of the failures without a success between them. share, of at least `least` outcomes: weight of the failures in
    all that ended in the last `window_s` seconds. first_pause_s: how long it is left alone at first; twice as long each time
    that it fails again, up to longest_pause_s; from the start again once it has worked for calm_s. While somebody waits for it,
    no longer than a tenth (awaited_share) of the time since it worked, or awaited_pause_s. ramp_s: how long it takes at most from its
    first success to all of its slots.
    """

    in_a_row: float = 5.0
    share: float = 0.5
    least: int = 20
    window_s: float = 30.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    awaited_pause_s: float = 2.0
    awaited_share: float = 0.1
    calm_s: float = 60.0
    ramp_s: float = 10.0


DEFAULT_POLICY = BreakerPolicy()


def weight_of(failure: Failure, policy: BreakerPolicy = DEFAULT_POLICY) -> float:
    """How much *failure* speaks against its backend; 0: not at all.

    A time-out counts twice, for it has cost its client the most; a refusal of our own key is enough alone, for every request
    will meet it until somebody mends the settings. A backend that is full or still loads does what it should.
    """
    match failure:
        case Busy():
            return 0.0
        case NotSent(refused_key=True):
            return policy.in_a_row
        case Lost(timed_out=True) | Broken(timed_out=True):
            return 2.0
        case _:
            return 1.0


class Breaker:
    """Of one backend. `now` and `began_at` are seconds on one monotonic clock; *draw* gives random numbers from 0 to 1.

    What began before the latest trial did (or before *known_at*) says nothing of how the backend is now: when it ends, that is no
    event. state: as of the latest event or `allowed`. failures: those in a row. openings: how often it was opened.
    """

    __slots__ = (
        "_awaited_until",
        "_calm_since",
        "_draw",
        "_failing_since",
        "_gained",
        "_opened_at",
        "_policy",
        "_recovered_at",
        "_recovers_since",
        "_repeats",
        "_tally",
        "_trial_at",
        "_unreached",
        "_until",
        "_weight",
        "failures",
        "openings",
        "state",
    )

    def __init__(self, policy: BreakerPolicy, draw: Callable[[], float], known_at: float = -math.inf) -> None:
        self.state = BreakerState.CLOSED
        self.failures = 0
        self.openings = 0
        self._policy = policy
        self._draw = draw
        self._tally = _Tally(policy.window_s)
        self._weight = 0.0
        self._unreached = False
        self._trial_at = known_at
        self._opened_at = self._until = self._awaited_until = self._failing_since = -math.inf
        self._repeats = 0
        self._recovers_since = self._recovered_at = self._calm_since = -math.inf
        self._gained = 0

    def is_stale(self, began_at: float) -> bool:
        """Whether what began then is from before the latest trial."""
        return began_at < self._trial_at

    def succeeded(self, began_at: float, now: float) -> None:
        """An execution that began then has answered."""
        if self.state is BreakerState.CLOSED:
            self._tally.successes += 1
            self.failures = 0
            self._weight = 0.0
            return
        if began_at < self._trial_at:
            return
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.RECOVERING
            self._recovers_since = now
            self._recovered_at = now + self._policy.ramp_s
            self._gained = 0
        self.failures = 0
        self._gained += 1

    def failed(self, failure: Failure, began_at: float, now: float) -> None:
        """An execution that began then has failed."""
        weight = weight_of(failure, self._policy)
        if not weight or began_at < self._trial_at:
            return
        self._advance(now)
        self._count(weight, now, unreached=isinstance(failure, NotSent) and not failure.refused_key)

    def probed(self, ok: bool, now: float) -> None:
        """It was asked how it is, and answered, or didn't.

        That it answers ends no trial, for many a backend lists its models and computes nothing; but where it was left alone
        because it couldn't be reached, the trial needn't wait.
        """
        self._advance(now)
        if not ok:
            self._count(1.0, now, unreached=True)
        elif self._unreached:
            self._hasten(now)

    def returned(self, now: float) -> None:
        """It is there again after it was known to be away: whatever was wrong, the trial needn't wait."""
        self._advance(now)
        self._hasten(now)

    def awaited(self, now: float) -> None:
        """Somebody waits for a slot of it: that it is left alone for long now costs something, too. But each trial that fails is a
        request that might have been answered elsewhere, so the longer it fails, the less often it is tried all the same."""
        if self.state is BreakerState.OPEN:
            self._until = min(self._until, self._awaited_until)
            self._advance(now)

    def allowed(self, now: float, capacity: int) -> int:
        """How many requests a backend with so many slots may run at once now."""
        self._advance(now)
        if self.state is BreakerState.CLOSED or capacity <= 0:
            return max(0, capacity)
        if self.state is BreakerState.RECOVERING:
            grown = self._grown(now, capacity)
            if grown < capacity:
                return grown
            self._close(now)
            return capacity
        return 1 if self.state is BreakerState.HALF_OPEN else 0

    def changes_at(self, now: float, capacity: int) -> float | None:
        """When `allowed` may be more by the mere passing of time; None when only an event makes it so."""
        if self.state is BreakerState.OPEN:
            return self._until
        if self.state is not BreakerState.RECOVERING:
            return None
        if capacity <= 1:
            return self._recovered_at
        share = self._grown(now, capacity) / (capacity - 1)
        next_at = self._recovers_since + self._policy.ramp_s * share
        return min(self._recovered_at, max(next_at, now + _STEP_S))

    def _grown(self, now: float, capacity: int) -> int:
        """How many slots a recovering backend has: one, and one for each success, so that each round of successes
        doubles them; and in time all, even where answers take minutes."""
        share = (now - self._recovers_since) / self._policy.ramp_s
        return 1 + max(self._gained, int((capacity - 1) * share + _ROUNDING))

    def _advance(self, now: float) -> None:
        """What the passing of time does."""
        if self.state is BreakerState.OPEN and now >= self._until:
            self.state = BreakerState.HALF_OPEN
            self._trial_at = now
        elif self.state is BreakerState.RECOVERING and now >= self._recovered_at:
            self._close(self._recovered_at)

    def _count(self, weight: float, now: float, *, unreached: bool) -> None:
        self.failures += 1
        if self.state is BreakerState.OPEN:
            return
        policy = self._policy
        if self.state is BreakerState.CLOSED:
            self._weight += weight
            self._tally.failed(weight, now)
            if self._weight < policy.in_a_row and not self._tally.reaches(policy.share, policy.least):
                return
            if now - self._calm_since >= policy.calm_s:
                self._repeats = 0
        self._unreached = unreached
        self._open(now)

    def _open(self, now: float) -> None:
        pause_s = self._policy.first_pause_s * 2.0 ** min(self._repeats, _MOST_DOUBLINGS)
        left = 1.0 - _JITTER * self._draw()
        if self.state is not BreakerState.HALF_OPEN:
            self._failing_since = now
        failed_for_s = now - self._failing_since
        awaited_s = max(self._policy.awaited_pause_s, self._policy.awaited_share * failed_for_s)
        self.state = BreakerState.OPEN
        self.openings += 1
        self._repeats += 1
        self._opened_at = now
        self._until = now + min(self._policy.longest_pause_s, pause_s) * left
        self._awaited_until = min(self._until, now + min(awaited_s, pause_s) * left)
        self._trial_at = math.inf
        self._weight = 0.0
        self._tally.clear()

    def _hasten(self, now: float) -> None:
        """End the pause, but for its first part: one that comes and goes with each check is not to be tried as often."""
        if self.state is BreakerState.OPEN:
            self._until = min(self._until, self._opened_at + self._policy.first_pause_s)
            self._advance(now)

    def _close(self, since: float) -> None:
        self.state = BreakerState.CLOSED
        self._calm_since = since


class _Tally:
    """Successes and failures of the last seconds, in a few buckets.

    A bucket begins with a failure: so a success is one addition, and needs no clock.
    """

    __slots__ = ("_began_at", "_bucket_s", "_failures", "_older", "_window_s", "successes")

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._bucket_s = window_s / _BUCKETS
        self._older: deque[tuple[float, int, float]] = deque(maxlen=_BUCKETS + 1)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._older.clear()
        self._began_at = -math.inf
        self.successes = 0
        self._failures = 0.0

    def failed(self, weight: float, now: float) -> None:
        """Count a failure, and forget what is too old."""
        if now - self._began_at >= self._bucket_s:
            self._older.append((self._began_at, self.successes, self._failures))
            self._began_at, self.successes, self._failures = now, 0, 0.0
        while self._older and now - self._older[0][0] >= self._window_s:
            self._older.popleft()
        self._failures += weight

    def reaches(self, share: float, least: int) -> bool:
        """Whether failures are that share of what was counted, and that much was."""
        failures = self._failures + sum(bucket[2] for bucket in self._older)
        total = failures + self.successes + sum(bucket[1] for bucket in self._older)
        return total >= least and failures >= share * total
