"""The life of an engine as a pure rule: `decide(life, event) -> (life, effect)`. No clock, no process, no chance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Phase(StrEnum):
    """Where an engine stands."""

    LOADING = "loading"
    READY = "ready"
    BACKOFF = "backoff"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often and how fast a broken engine is started again.

    After `most_failures` in a row it is left alone. An engine that served for `steady_s` begins with a clean record.
    The n-th restart waits `first_delay_s` · 2^(n-1), `most_delay_s` at most.
    """

    most_failures: int = 5
    first_delay_s: float = 0.5
    most_delay_s: float = 30.0
    steady_s: float = 60.0

    def delay_s(self, failures: int) -> float:
        """Seconds before the start that follows the given number of failures in a row."""
        return float(min(self.most_delay_s, self.first_delay_s * 2 ** min(failures - 1, 30)))


@dataclass(frozen=True, slots=True)
class Life:
    """`failures`: in a row. `detail`: one sentence about the last trouble, empty when there is none."""

    phase: Phase
    failures: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The engine serves."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """It didn't come up. `fatal`: trying again can't help (a wrong path, a broken file)."""

    reason: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Exited:
    """It ended by itself after it had served for `served_s` seconds."""

    how: str
    served_s: float


@dataclass(frozen=True, slots=True)
class DelayOver:
    """The time before a restart has passed."""


Event = Loaded | LoadFailed | Exited | DelayOver


@dataclass(frozen=True, slots=True)
class Launch:
    """Start it; leads to `Loaded` or `LoadFailed`."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Wait for its end; leads to `Exited`."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait; leads to `DelayOver`. The runner adds the jitter."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing more, until somebody starts it again."""


Effect = Launch | Watch | Delay | GiveUp


def decide(life: Life, event: Event, policy: RestartPolicy) -> tuple[Life, Effect]:
    """What *event* makes of an engine in *life*, and the one thing to do next.

    Raises:
        ValueError: this event can't happen in this phase.
    """
    match life.phase, event:
        case Phase.LOADING, Loaded():
            return replace(life, phase=Phase.READY, detail=""), Watch()
        case Phase.LOADING, LoadFailed(reason, fatal):
            return _after_failure(replace(life, failures=life.failures + 1), reason, policy, fatal=fatal)
        case Phase.READY, Exited(how, served_s):
            before = 0 if served_s >= policy.steady_s else life.failures
            return _after_failure(replace(life, failures=before + 1), f"The engine {how}.", policy)
        case Phase.BACKOFF, DelayOver():
            return replace(life, phase=Phase.LOADING), Launch()
        case _:
            raise ValueError(f"{type(event).__name__} in phase {life.phase}")


def _after_failure(
    life: Life, reason: str, policy: RestartPolicy, *, fatal: bool = False
) -> tuple[Life, Effect]:
    if fatal:
        return replace(life, phase=Phase.FAILED, detail=reason), GiveUp()
    if life.failures >= policy.most_failures:
        detail = f"{reason} It failed {life.failures} times in a row and is left alone now."
        return replace(life, phase=Phase.FAILED, detail=detail), GiveUp()
    return replace(life, phase=Phase.BACKOFF, detail=reason), Delay(policy.delay_s(life.failures))
