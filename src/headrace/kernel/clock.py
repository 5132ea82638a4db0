"""Time, passed in: components ask a `Clock`, so a test moves it by hand (`headrace.testing.ManualClock`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A callback that waits for its time."""

    def cancel(self) -> None:
        """Take it back; idempotent, harmless after it ran."""


class Clock(Protocol):
    """Where components get the time and their timers from."""

    def now(self) -> float:
        """UTC, seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean something."""

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* once, on the event loop, *delay_s* seconds from now."""


class SystemClock(Clock):
    """The machine's clocks and the running event loop's timers."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* once, *delay_s* seconds from now. Needs a running event loop."""
        return asyncio.get_running_loop().call_later(delay_s, callback)
