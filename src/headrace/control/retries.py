"""When a failed request is tried again, after how long, and how much of that there may be (decision 0007)."""

from __future__ import annotations

import math
from collections.abc import Callable

from headrace.ports.connector import Busy, Failure, Lost, NotSent

MOST_ATTEMPTS = 5
"""Times that one request is tried, the first included; those that a backend was too busy for aren't counted."""
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 2.0


def may_rerun(failure: Failure, *, reruns: bool, cancel_confirmed: bool = False) -> bool:
    """Whether a request may be tried again after *failure*.

    What surely wasn't begun may always be. What was sent may have been computed, or still be: only where its route lets it be
    executed twice (*reruns*), or where the backend has said that it stopped (*cancel_confirmed*). What the client has seen a
    part of, never.
    """
    match failure:
        case NotSent() | Busy():
            return True
        case Lost():
            return reruns or cancel_confirmed
        case _:
            return False


def is_counted(failure: Failure) -> bool:
    """Whether trying again after *failure* is one of the `MOST_ATTEMPTS`, and is paid for from the budget.

    A request that a backend was too busy for waits in the queue like any other; its time there is its bound.
    """
    return not isinstance(failure, Busy)


def backoff(attempt: int, draw: Callable[[], float]) -> float:
    """Seconds to wait before trying for the *attempt*-th time again (1: the first retry).

    At random between nothing and a bound that doubles each time, so that those who failed together don't come back together.
    *draw* gives random numbers from 0 to 1.
    """
    doublings = min(max(0, attempt - 1), 30)
    return draw() * min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0**doublings)


class RetryBudget:
    """Keeps retries a small share of the requests, so that trying again can't become most of the load of what is failing.

    At most *share* of the requests of about the last *window_s* seconds, plus *least_per_s* a second, of which a second's worth
    can be saved up: a quiet service may try again, too. `now` is on a monotonic clock.
    """

    __slots__ = (
        "_earned",
        "_least_per_s",
        "_looked_at",
        "_most_reserve",
        "_requests",
        "_reserve",
        "_share",
        "_window_s",
        "refused",
    )

    def __init__(
        self, now: float, *, share: float = 0.2, least_per_s: float = 3.0, window_s: float = 10.0
    ) -> None:
        self._share = share
        self._least_per_s = least_per_s
        self._window_s = window_s
        self._requests = 0
        self._earned = 0.0
        self._most_reserve = max(1.0, least_per_s) if least_per_s else 0.0
        self._reserve = self._most_reserve
        self._looked_at = now
        self.refused = 0

    def request(self) -> None:
        """One more request came. Costs one addition."""
        self._requests += 1

    def try_spend(self, now: float) -> bool:
        """Take one retry out of the budget; False when there is none, and nothing was taken. `refused` counts those."""
        self._look(now)
        if self._earned >= 1.0:
            self._earned -= 1.0
        elif self._reserve >= 1.0:
            self._reserve -= 1.0
        else:
            self.refused += 1
            return False
        return True

    def _look(self, now: float) -> None:
        """Add what the requests since the last look have earned, less what time has worn off of it.

        They are taken to have come evenly: so they needn't look at the clock themselves.
        """
        passed_s = max(0.0, now - self._looked_at)
        self._looked_at = max(self._looked_at, now)
        windows = passed_s / self._window_s
        left = math.exp(-windows)
        new = self._share * self._requests
        self._requests = 0
        self._earned = self._earned * left + new * ((1.0 - left) / windows if windows > 1e-6 else 1.0)
        self._reserve = min(self._most_reserve, self._reserve + self._least_per_s * passed_s)
