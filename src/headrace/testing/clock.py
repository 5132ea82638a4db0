"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.kernel.clock import Clock, Timer


@dataclass(slots=True, order=True)
class _Due(Timer):
    at_s: float
    order: int
    callback: Callable[[], object] | None = field(compare=False)

    def cancel(self) -> None:
        self.callback = None


class ManualClock(Clock):
    """Both clocks start at *now_s* (UTC epoch seconds), and only `advance` moves them.

    Timers run inside `advance`, in the order of their times, those of one time in the order they were set; each sees
    the clock at its own time. A timer that a callback sets within the advanced span runs in the same `advance`.
    """

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self._now_s = now_s
        self._timers: list[_Due] = []
        self._set_so_far = 0
        self._changed: list[asyncio.Event] = []

    def now(self) -> float:
        """UTC epoch seconds."""
        return self._now_s

    def monotonic(self) -> float:
        """The same reading: this clock never goes back."""
        return self._now_s

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* when `advance` has passed *delay_s* seconds; never before `advance` is called."""
        timer = _Due(self._now_s + max(0.0, delay_s), self._set_so_far, callback)
        self._set_so_far += 1
        heapq.heappush(self._timers, timer)
        for event in self._changed:
            event.set()
        return timer

    @property
    def pending(self) -> int:
        """How many timers wait."""
        return sum(timer.callback is not None for timer in self._timers)

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass. The error of a callback comes out here; the clock then stands at that callback's time,
        and later timers still wait.

        Raises:
            ValueError: *seconds* is negative; nothing ran.
        """
        if seconds < 0:
            raise ValueError("time does not go back")
        end_s = self._now_s + seconds
        while self._timers and self._timers[0].at_s <= end_s:
            timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                self._now_s = timer.at_s
                callback, timer.callback = timer.callback, None
                callback()
        self._now_s = end_s

    async def until_pending(self, timers: int = 1, *, timeout_s: float = 5.0) -> None:
        """Wait (in real time) until at least *timers* timers wait here: until the code under test has set its own.

        Raises:
            TimeoutError: *timeout_s* real seconds went by first.
        """
        event = asyncio.Event()
        self._changed.append(event)
        try:
            async with asyncio.timeout(timeout_s):
                while self.pending < timers:
                    event.clear()
                    await event.wait()
        finally:
            self._changed.remove(event)
