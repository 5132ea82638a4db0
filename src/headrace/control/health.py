"""How each backend is, as seen from what becomes of its requests, and how many it may run because of it (docs/health.md)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

import structlog

from headrace.control.breaker import DEFAULT_POLICY, Breaker, BreakerPolicy, BreakerState, weight_of
from headrace.control.registry import Registry
from headrace.domain.fleet import Node, NodeState
from headrace.kernel.clock import Clock, Timer
from headrace.ports.connector import Broken, Busy, Failure, Loading, Lost, NotSent
from headrace.ports.control import Grant

log = structlog.get_logger(__name__)

MOST_REASON_CHARS = 300
_SHORTEST_TIMER_S = 0.001
"""Event loops round; a timer that comes too early isn't set again without a pause."""


class FailureKind(StrEnum):
    """What a failure is counted as."""

    NOT_SENT = "not_sent"  # it couldn't be connected to
    KEY_REFUSED = "key_refused"  # it doesn't take our own key
    BUSY = "busy"
    LOADING = "loading"
    LOST = "lost"  # it broke off before its answer, or answered 5xx or nonsense
    BROKEN = "broken"  # it broke off in its answer
    TIMED_OUT = "timed_out"  # we gave up waiting

    @classmethod
    def of(cls, failure: Failure) -> FailureKind:
        """The one that *failure* is."""
        match failure:
            case NotSent(refused_key=True):
                return cls.KEY_REFUSED
            case NotSent():
                return cls.NOT_SENT
            case Loading():
                return cls.LOADING
            case Busy():
                return cls.BUSY
            case Lost(timed_out=True) | Broken(timed_out=True):
                return cls.TIMED_OUT
            case Broken():
                return cls.BROKEN
            case _:
                return cls.LOST


@dataclass(frozen=True, slots=True)
class HealthView:
    """How a backend is now, and what became of its requests since it came.

    allowed: requests that it may run at once. last_error: a sentence, empty without; last_error_at: when, seconds since the
    epoch. failures: in a row. openings: how often it was left alone. changes_in_s: until it is tried, or gets more, by the mere
    passing of time; None when it waits for an event, or works. executions: requests that were sent there, those that run
    included. counts: those that failed, by how.
    """

    state: BreakerState
    allowed: int
    last_error: str = ""
    last_error_at: float | None = None
    failures: int = 0
    openings: int = 0
    changes_in_s: float | None = None
    executions: int = 0
    counts: Mapping[FailureKind, int] = field(default_factory=dict)


class Health:
    """Judges the registry's nodes, each by itself.

    `slots`: node id → how many requests it may run at once now; 0 when it isn't ready or is left alone. It is kept up to date,
    and only read by others. *on_slots* is called with a node's id and that number when it has changed or the node has come (for
    those that are there already, while this is made), but not for a node that is removed; who listens to the registry and relies
    on the slots has to do so after this. *running* says how many requests a node runs now.

    Each grant's end is told once, by one of `succeeded`, `failed` and `let_go`, in the same step in which `running` forgets it.
    Nothing is told of nodes that the registry doesn't have; and with a node everything is forgotten that was known of it.
    """

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        on_slots: Callable[[str, int], None],
        running: Callable[[str], int],
        *,
        policy: BreakerPolicy = DEFAULT_POLICY,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._on_slots = on_slots
        self._running = running
        self._policy = policy
        self._draw = draw
        self._watched: dict[str, _Watch] = {}
        self.slots: dict[str, int] = {}
        registry.on_change(self._node_changed)
        for node in registry.nodes():
            self._node_changed(node.id)

    def succeeded(self, grant: Grant) -> None:
        """The backend gave a whole answer."""
        watch = self._watched.get(grant.target)
        if watch is None:
            return
        watch.ended += 1
        watch.breaker.succeeded(grant.granted_at, self._clock.monotonic())
        if watch.breaker.state is not BreakerState.CLOSED:
            self._update_after(watch, grant)

    def answering(self, grant: Grant) -> None:
        """The first of its answer is here. May be left out: told of a trial, it needn't wait for the end of a long answer."""
        watch = self._watched.get(grant.target)
        if watch is not None and watch.breaker.state is BreakerState.HALF_OPEN:
            watch.breaker.succeeded(grant.granted_at, self._clock.monotonic())
            self._update(watch)

    def failed(self, grant: Grant, failure: Failure) -> None:
        """The backend gave no whole answer, for this reason. One that was busy is as if it was let go."""
        watch = self._watched.get(grant.target)
        if watch is None:
            return
        watch.ended += 1
        watch.counts[FailureKind.of(failure)] += 1
        if weight_of(failure):
            watch.note(failure.reason, self._clock.now())
            watch.breaker.failed(failure, grant.granted_at, self._clock.monotonic())
        self._update_after(watch, grant)

    def let_go(self, grant: Grant) -> None:
        """It ended in a way that says nothing of the backend: the client left, or the request was wrong."""
        watch = self._watched.get(grant.target)
        if watch is not None:
            watch.ended += 1
            self._update_after(watch, grant)

    def probed(self, node_id: str, ok: bool, reason: str = "") -> None:
        """The backend was asked how it is, and is ready, or isn't, for this reason; where none is given, what the registry says.

        Loading is no failure. Whoever tells the registry as well does that first.
        """
        watch = self._watched.get(node_id)
        if watch is None or (not ok and watch.state is NodeState.LOADING):
            return
        if not ok:
            node = self._registry.get(node_id)
            watch.note(reason or (node.detail if node else ""), self._clock.now())
        watch.breaker.probed(ok, self._clock.monotonic())
        self._update(watch)

    def awaited(self, node_id: str) -> None:
        """Somebody waits for a slot of it: it is tried sooner, where it is left alone."""
        watch = self._watched.get(node_id)
        if watch is not None and watch.breaker.state is BreakerState.OPEN:
            watch.breaker.awaited(self._clock.monotonic())
            self._update(watch)

    def view(self, node_id: str) -> HealthView | None:
        """How the node is; None when it isn't there."""
        watch = self._watched.get(node_id)
        if watch is None:
            return None
        breaker, now = watch.breaker, self._clock.monotonic()
        changes_at = breaker.changes_at(now, watch.capacity)
        return HealthView(
            breaker.state,
            self.slots.get(node_id, 0),
            watch.error,
            watch.error_at,
            breaker.failures,
            breaker.openings,
            None if changes_at is None else max(0.0, changes_at - now),
            watch.ended + self._running(node_id),
            dict(watch.counts),
        )

    def close(self) -> None:
        """Take back the timers; idempotent. What was known stays."""
        for watch in self._watched.values():
            watch.stop_timer()

    def _node_changed(self, node_id: str) -> None:
        node = self._registry.get(node_id)
        if node is None:
            if (gone := self._watched.pop(node_id, None)) is not None:
                gone.stop_timer()
                self.slots.pop(node_id, None)
            return
        now = self._clock.monotonic()
        watch = self._watched.get(node_id)
        if watch is None:
            watch = self._watched[node_id] = _Watch(node_id, Breaker(self._policy, self._draw, now))
        if watch.follow(node):
            watch.breaker.returned(now)
        self._update(watch)

    def _update_after(self, watch: _Watch, grant: Grant) -> None:
        """An execution has ended, and its breaker knows."""
        state = watch.breaker.state
        if state is watch.seen and state in (BreakerState.CLOSED, BreakerState.OPEN):
            return  # and time isn't looked at: a trial begins only when `running` is settled
        if watch.leftover and watch.breaker.is_stale(grant.granted_at):
            watch.leftover -= 1
        self._update(watch)

    def _update(self, watch: _Watch) -> None:
        """Bring the slots and the timer in line with the breaker and the registry."""
        now = self._clock.monotonic()
        allowed = watch.breaker.allowed(now, watch.capacity)
        if watch.breaker.state is not watch.seen:
            self._turned(watch)
        watch.stop_timer()
        changes_at = watch.breaker.changes_at(now, watch.capacity)
        if changes_at is not None:
            wait_s = max(_SHORTEST_TIMER_S, changes_at - now)
            watch.timer = self._clock.call_later(wait_s, partial(self._due, watch))
        usable = watch.state is NodeState.READY and allowed
        slots = min(watch.capacity, allowed + watch.leftover) if usable else 0
        if slots != self.slots.get(watch.node_id):
            self.slots[watch.node_id] = slots
            self._on_slots(watch.node_id, slots)  # last: it may come back here

    def _due(self, watch: _Watch) -> None:
        watch.timer = None
        self._update(watch)

    def _turned(self, watch: _Watch) -> None:
        """Its breaker is in another state than before."""
        before, state = watch.seen, watch.breaker.state
        watch.seen = state
        if state is BreakerState.HALF_OPEN:
            # What still runs began before it was left alone: it may hang for minutes, and must not keep the trial out.
            watch.leftover = self._running(watch.node_id)
        elif state is BreakerState.OPEN and before is not BreakerState.HALF_OPEN:
            # One that stays away is told once, not with each trial.
            log.warning("backend left alone", action="backend.opened", node=watch.node_id, reason=watch.error)
        elif state is BreakerState.CLOSED:
            log.info("backend works again", action="backend.closed", node=watch.node_id)


class _Watch:
    """What is known of one node. seen: the breaker's state that the slots are of. leftover: while it is half-open or recovers,
    requests that still run there and began before the trial. ended: requests that no longer run. counts: of these, failures."""

    __slots__ = (
        "breaker", "capacity", "counts", "ended", "error", "error_at", "leftover", "node_id", "seen", "state", "timer",
    )  # fmt: skip

    def __init__(self, node_id: str, breaker: Breaker) -> None:
        self.node_id = node_id
        self.breaker = breaker
        self.capacity = 0
        self.state = NodeState.DOWN
        self.seen = breaker.state
        self.leftover = 0
        self.timer: Timer | None = None
        self.error = ""
        self.error_at: float | None = None
        self.ended = 0
        self.counts: Counter[FailureKind] = Counter()

    def follow(self, node: Node) -> bool:
        """Heed what the registry says; True when the node has just become ready."""
        before, self.state = self.state, node.state
        self.capacity = node.capacity
        return node.state is NodeState.READY and before is not NodeState.READY

    def note(self, reason: str, at: float) -> None:
        """What went wrong last."""
        self.error = reason[:MOST_REASON_CHARS]
        self.error_at = at

    def stop_timer(self) -> None:
        """Take the timer back."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
