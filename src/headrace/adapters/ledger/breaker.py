"""What to do while the place where the truth is kept doesn't answer."""

from __future__ import annotations

from enum import StrEnum


class OnUnavailable(StrEnum):
    """The operator's choice for the time of an outage."""

    REFUSE = "refuse"  # nothing is reserved
    ALLOW = "allow"  # what was granted in advance may still be used; then nothing


class Breaker:
    """Counts failures in a row; open from *threshold* on, until a success.

    Whoever owns it makes one attempt after each pause; while that runs, it stays open for everybody else, so that the ones
    who wait don't all fall upon what has just come back.
    """

    def __init__(self, threshold: int = 3, first_pause_s: float = 0.05, longest_pause_s: float = 2.0) -> None:
        self._threshold = threshold
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self.failures = 0

    @property
    def open(self) -> bool:
        """Whether nobody but the owner should try."""
        return self.failures >= self._threshold

    def failed(self) -> float:
        """One more failure; says how many seconds to wait before the next attempt: twice as long each time."""
        pause_s = self._first_pause_s * 2.0 ** min(self.failures, 30)
        self.failures += 1
        return min(self._longest_pause_s, pause_s)

    def trip(self) -> None:
        """Open at once: an answer is overdue."""
        self.failures = max(self.failures, self._threshold)

    def succeeded(self) -> None:
        """Closed again."""
        self.failures = 0
