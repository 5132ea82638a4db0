"""A clock moved by hand whose time of day can also be set wrong, or right again."""

from __future__ import annotations

from headrace.testing import ManualClock


class SteppingClock(ManualClock):
    """A `ManualClock` whose time of day can be set; the monotonic reading and the timers don't notice."""

    _stepped_s = 0.0

    def now(self) -> float:
        """UTC epoch seconds, as it was set."""
        return super().now() + self._stepped_s

    def step(self, seconds: float) -> None:
        """Set the time of day forward or, where *seconds* is negative, back."""
        self._stepped_s += seconds
