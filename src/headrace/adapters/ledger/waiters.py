"""Reservations that are made, and are told when the journal has granted what they need."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
import structlog

from headrace.adapters.ledger.blocks import Count
from headrace.adapters.ledger.closed import CLOSED
from headrace.kernel.clock import Clock, Timer
from headrace.ports.ledger import Told, Verdict

log = structlog.get_logger(__name__)


class Hold(msgspec.Struct, eq=False):
    """An open reservation: of which windows it took how much, what it was or will be told, and by whom it waits to be told.

    passing: what it took of windows that no journal knows.
    """

    counts: list[Count]
    amounts: list[int]
    passing: list[tuple[Count, int]]
    verdict: Verdict
    waiter: Waiter | None = None


class Waiter:
    """A reservation that waits until commits after number *after* have covered every count in *short*."""

    __slots__ = ("after", "deadline", "hold", "reservation", "short", "told")

    def __init__(self, reservation: str, hold: Hold, short: list[Count], after: int, told: Told) -> None:
        self.reservation = reservation
        self.hold: Hold | None = hold  # None once it is closed
        self.short = short
        self.after = after
        self.deadline = 0.0
        self.told = [told]
        hold.waiter = self

    @property
    def covered(self) -> bool:
        """Whether what it reserved is in the journal."""
        return self.hold is None or all(count.covered > self.after for count in self.short)

    def tell(self, verdict: Verdict) -> None:
        """Tell everybody who asked, and wait no more."""
        if self.hold is not None:
            self.hold.waiter = None
        for told in self.told:
            try:
                told(verdict)
            except Exception as error:  # noqa: BLE001
                # one listener's error must not keep the others waiting for good
                log.error("a listener raised", action="ledger.listener_raised", error=repr(error))


class Waiters:
    """A queue, in the order of the calls; each waits *wait_s* at most, then *expired* is called, and decides."""

    def __init__(self, clock: Clock, wait_s: float, expired: Callable[[], object]) -> None:
        self._clock = clock
        self._wait_s = wait_s
        self._expired = expired
        self._queue: deque[Waiter] = deque()
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, waiter: Waiter) -> None:
        """Let it wait."""
        waiter.deadline = self._clock.monotonic() + self._wait_s
        self._queue.append(waiter)
        self._watch()

    def tell_covered(self) -> None:
        """Tell those whose turn has come."""
        queue = self._queue
        while queue and queue[0].covered:
            waiter = queue.popleft()
            waiter.tell(CLOSED if waiter.hold is None else waiter.hold.verdict)

    def take_all(self) -> list[Waiter]:
        """Everybody who waits; nobody does afterwards."""
        taken = list(self._queue)
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return taken

    def _watch(self) -> None:
        if self._timer is None and self._queue:
            left_s = self._queue[0].deadline - self._clock.monotonic()
            self._timer = self._clock.call_later(max(0.0, left_s), self._look)

    def _look(self) -> None:
        self._timer = None
        if self._queue and self._queue[0].deadline <= self._clock.monotonic():
            self._expired()
        self._watch()
