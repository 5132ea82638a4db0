"""The requests that the control plane has in hand, and the room in which they wait: the fair queue, with time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from headrace.control.fair_queue import FairQueue
from headrace.control.waiter import Waiter
from headrace.domain.inference import Priority
from headrace.kernel.clock import Clock, Timer
from headrace.ports.control import Admission, Ask

DRAIN_WINDOW_S = 10.0
"""Over about how long the queue's pace is measured."""
MOST_RETRY_AFTER_S = 60.0


class Leaver(Protocol):
    """Whoever lets a call leave."""

    def withdraw(self, call: Call) -> None:
        """The client of *call* is gone."""


class Call(msgspec.Struct, eq=False):
    """One request that waits for a place, or runs. Made for each request, so it is kept small.

    demand: the name of what it asks of the fleet. attempts: how often it was granted. executions: how many of those may have
    been executed. failures: how many came to nothing, other than by a busy backend. failed_on: nodes that it never goes to again. busy_until: node → not before this. ticket: while it waits.
    pause: the timer of the break before it is tried again. due: when it has to be running at the latest, where it has such a
    time. Times are on the monotonic clock.
    """

    ask: Ask
    told: Admission
    plane: Leaver
    demand: str = ""
    attempts: int = 0
    executions: int = 0
    failures: int = 0
    failed_on: frozenset[str] = frozenset()
    busy_until: dict[str, float] | None = None
    ticket: Ticket | None = None
    pause: Timer | None = None
    position: int = 0
    waited_s: float = 0.0
    due: float = math.inf

    def withdraw(self) -> None:
        """Stop waiting."""
        self.plane.withdraw(self)

    def end_pause(self) -> bool:
        """End the break that it makes; False when it makes none."""
        if self.pause is None:
            return False
        self.pause.cancel()
        self.pause = None
        return True

    def avoid(self, now: float) -> frozenset[str]:
        """Nodes that this request isn't sent to at *now*."""
        if not self.busy_until:
            return self.failed_on
        return self.failed_on | {node_id for node_id, until in self.busy_until.items() if now < until}


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket(Waiter):
    """A call's place in the queue, and the timer that ends its waiting."""

    call: Call
    timer: Timer | None = None  # None before it waits


class WaitingRoom:
    """The queue of calls: at most *size*, each for at most *wait_s* seconds in all, and not beyond its own time.

    Whose time is over is taken out and told to *expired*.
    """

    def __init__(self, clock: Clock, expired: Callable[[Call], None], *, size: int, wait_s: float) -> None:
        self.queue: FairQueue[Ticket] = FairQueue(size)
        self.wait_s = wait_s
        self._clock = clock
        self._expired = expired
        self._pace = _Pace()

    def enter(self, call: Call) -> Call | None:
        """Let *call* wait. Returns who has to go for that: nobody, *call* itself, or one that waited and is out of the queue."""
        ticket = self._ticket(call)
        gone = self.queue.push(ticket)
        if gone is not ticket:
            call.position = self.queue.position(ticket)
            self._start_timer(ticket)
        return self._left(gone) if gone is not None else None

    def come_back(self, call: Call) -> None:
        """Let a call wait again that had a place: before the others, at no further cost."""
        ticket = self._ticket(call)
        ticket.avoid = call.avoid(ticket.since)
        self.queue.put_back(ticket)
        self._start_timer(ticket)
        call.position = call.position or 1

    def look_again(self, call: Call) -> None:
        """A node that *call* left alone may be asked again; nothing happens when it doesn't wait."""
        ticket = call.ticket
        if ticket is not None and ticket.put_back:
            self.queue.remove(ticket)
            ticket.avoid = call.avoid(self._clock.monotonic())
            self.queue.put_back(ticket)

    def leave(self, call: Call) -> bool:
        """Take *call* out, its waiting counted; False when it doesn't wait."""
        ticket = call.ticket
        if ticket is None:
            return False
        self.queue.remove(ticket)
        self._left(ticket)
        return True

    def next(self, models: frozenset[str], node_id: str) -> Call | None:
        """Take out who gets the place that is free at the node; None when it suits nobody."""
        ticket = self.queue.pop(models, node_id)
        if ticket is None:
            return None
        self._pace.note(self._clock.monotonic())
        return self._left(ticket)

    def has_time(self, call: Call) -> bool:
        """Whether *call* may wait at all."""
        return self._left_s(call, self._clock.monotonic()) > 0

    def drained_in(self) -> float:
        """Seconds until those who wait now had their turn, at the pace of late; 1 where nothing is known. At most a minute."""
        per_s = self._pace.per_s(self._clock.monotonic())
        return min(MOST_RETRY_AFTER_S, max(1.0, self.queue.depth / per_s)) if per_s else 1.0

    def oldest_age_s(self) -> float:
        """How long the one waits now that has waited longest; 0 when nobody waits."""
        since = self.queue.oldest_since()
        return 0.0 if since is None else max(0.0, self._clock.monotonic() - since)

    def asks(self) -> list[Ask]:
        """For each demand that somebody waits for, what one of them asks."""
        return [ticket.call.ask for ticket in self.queue.one_of_each()]

    def waiting(self) -> dict[Priority, int]:
        """How many wait, by class."""
        return {priority: self.queue.waiting(priority) for priority in Priority}

    def _ticket(self, call: Call) -> Ticket:
        ask = call.ask
        call.ticket = Ticket(
            key=ask.principal.id,
            model=call.demand,
            tokens=ask.estimated_tokens,
            priority=ask.priority,
            since=self._clock.monotonic(),
            call=call,
        )
        return call.ticket

    def _start_timer(self, ticket: Ticket) -> None:
        call = ticket.call
        left_s = max(0.0, self._left_s(call, ticket.since))
        ticket.timer = self._clock.call_later(left_s, lambda: self._time_is_over(call))

    def _left_s(self, call: Call, now: float) -> float:
        return min(self.wait_s - call.waited_s, call.due - now)

    def _left(self, ticket: Ticket) -> Call:
        """Settle what waiting was, of one who is out of the queue."""
        call = ticket.call
        if ticket.timer is not None:
            ticket.timer.cancel()
        call.ticket = None  # no cycle for the garbage collector
        call.waited_s += self._clock.monotonic() - ticket.since
        return call

    def _time_is_over(self, call: Call) -> None:
        if self.leave(call):
            self._expired(call)


class _Pace:
    """Grants in a second, those of late counting most."""

    def __init__(self) -> None:
        self._grants = 0.0
        self._at = 0.0
        self._began: float | None = None

    def note(self, now: float) -> None:
        if self._began is None:
            self._began = self._at = now
        self._grants = self._grants * math.exp((self._at - now) / DRAIN_WINDOW_S) + 1
        self._at = now

    def per_s(self, now: float) -> float:
        """0 where nothing is known."""
        if self._began is None or now <= self._began:
            return 0.0
        seen = DRAIN_WINDOW_S * -math.expm1(
            (self._began - now) / DRAIN_WINDOW_S
        )  # the window, as far as it is filled
        return self._grants * math.exp((self._at - now) / DRAIN_WINDOW_S) / seen
