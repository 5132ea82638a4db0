"""Where a part of the work begins and ends: the marks that the rig's seams set, and who listens to them.

At any time one part is current, or none. A seam switches to its part, calls what is behind it, and switches back: so what a
part costs is its own work, without that of the parts inside it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

NOTHING = ""
"""No part: the driver's own work, which nobody is charged for."""


class Marks(Protocol):
    """Follows which part is current."""

    def switch(self, part: str) -> str:
        """*part* is current from now on; returns the one that was."""


class Tally(Marks):
    """Counts how often each part was current: its intervals."""

    def __init__(self) -> None:
        self.intervals: Counter[str] = Counter()
        self._now = NOTHING

    def switch(self, part: str) -> str:
        """See `Marks`."""
        before, self._now = self._now, part
        self.intervals[part] += 1
        return before


class Flips(Marks):
    """Has callgrind count while the part `wanted` is current, and only then. *flip* turns the counting on and off."""

    def __init__(self, flip: Callable[[], object]) -> None:
        self.wanted = "no part at all"
        self._flip = flip
        self._now = NOTHING

    def switch(self, part: str) -> str:
        """See `Marks`."""
        before, self._now = self._now, part
        if (before == self.wanted) is not (part == self.wanted):
            self._flip()
        return before


class Stopwatch(Marks):
    """Adds up the nanoseconds of each part."""

    def __init__(self) -> None:
        self.spent_ns: Counter[str] = Counter()
        self._now = NOTHING
        self._since = 0

    def switch(self, part: str) -> str:
        """See `Marks`."""
        self.spent_ns[self._now] += time.perf_counter_ns() - self._since
        before, self._now = self._now, part
        self._since = time.perf_counter_ns()
        return before
