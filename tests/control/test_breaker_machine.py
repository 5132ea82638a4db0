"""The circuit breaker in every order of events, held to its promises by one who uses it and only counts what runs."""

from __future__ import annotations

import math

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.control.breaker import Breaker, BreakerPolicy, BreakerState
from headrace.ports.connector import Broken, Busy, Failure, Lost, NotSent

POLICY = BreakerPolicy(
    in_a_row=3, least=6, window_s=8, first_pause_s=1, longest_pause_s=10, calm_s=12, ramp_s=4
)
FAILURES = [
    NotSent("no connection"),
    NotSent("401", refused_key=True),
    Lost("cut"),
    Lost("slow", timed_out=True),
    Broken("cut"),
]


class BreakerMachine(RuleBasedStateMachine):
    """`old` and `running`: when each began that runs; the old ones began before the breaker was opened."""

    @initialize(capacity=st.integers(1, 9), draws=st.lists(st.floats(0, 1), min_size=1, max_size=9))
    def start(self, capacity: int, draws: list[float]) -> None:
        self.now = 1000.0
        self.capacity = capacity
        self.draws = draws
        self.drawn = 0
        self.breaker = Breaker(POLICY, self.draw)
        self.running: list[float] = []
        self.old: list[float] = []
        self.opened_at = math.nan
        self.allowed = capacity
        self.fell = False

    def draw(self) -> float:
        self.drawn += 1
        return self.draws[self.drawn % len(self.draws)]

    def look(self) -> None:
        """What every event ends with."""
        openings = self.breaker.openings
        before = self.breaker.state
        self.allowed = self.breaker.allowed(self.now, self.capacity)
        assert self.breaker.openings == openings, "looking is no event"
        if before is not BreakerState.OPEN and self.breaker.state is BreakerState.OPEN:
            raise AssertionError("time alone opens nothing")

    def event(self) -> None:
        if self.breaker.state is BreakerState.OPEN and self.breaker.openings != self.known_openings:
            self.opened_at = self.now
            self.old += self.running
            self.running = []
        self.known_openings = self.breaker.openings
        self.look()

    known_openings = 0

    @precondition(lambda self: self.allowed > len(self.running))
    @rule(several=st.booleans())
    def begin(self, several: bool) -> None:
        while len(self.running) < self.allowed:
            self.running.append(self.now)
            if not several:
                break

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99))
    def succeed(self, which: int) -> None:
        before, allowed = self.breaker.state, self.allowed
        self.breaker.succeeded(self.running.pop(which % len(self.running)), self.now)
        self.event()
        assert self.allowed >= allowed, "a success costs nobody a slot"
        assert self.breaker.failures == 0
        if before is BreakerState.HALF_OPEN:
            assert self.breaker.state in (BreakerState.RECOVERING, BreakerState.CLOSED)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99), failure=st.sampled_from(FAILURES))
    def fail(self, which: int, failure: Failure) -> None:
        before, allowed = self.breaker.state, self.allowed
        self.breaker.failed(failure, self.running.pop(which % len(self.running)), self.now)
        self.event()
        assert self.allowed <= allowed, "a failure gives nobody a slot"
        if before in (BreakerState.HALF_OPEN, BreakerState.RECOVERING):
            assert self.breaker.state is BreakerState.OPEN
        if isinstance(failure, NotSent) and failure.refused_key:
            assert self.breaker.state is BreakerState.OPEN

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99))
    def refuse_as_busy(self, which: int) -> None:
        before = self.breaker.state, self.breaker.failures
        self.breaker.failed(Busy("full"), self.running.pop(which % len(self.running)), self.now)
        self.event()
        assert (self.breaker.state, self.breaker.failures) == before

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        self.running.pop(which % len(self.running))

    @precondition(lambda self: self.old)
    @rule(which=st.integers(0, 99), good=st.booleans())
    def end_what_is_old(self, which: int, good: bool) -> None:
        began = self.old.pop(which % len(self.old))
        before = self.breaker.state, self.allowed
        if good:
            self.breaker.succeeded(began, self.now)
        else:
            self.breaker.failed(Lost("slow", timed_out=True), began, self.now)
        self.event()
        assert (self.breaker.state, self.allowed) == before

    @rule(ok=st.booleans())
    def check(self, ok: bool) -> None:
        before, allowed = self.breaker.state, self.allowed
        self.breaker.probed(ok, self.now)
        self.event()
        if ok:
            assert self.allowed >= allowed
            if before is not BreakerState.OPEN:
                assert self.breaker.state is before, "a check ends no trial"
        else:
            assert self.allowed <= allowed

    @rule()
    def wait_for_it(self) -> None:
        before = self.breaker.state
        self.breaker.awaited(self.now)
        self.event()
        if before is not BreakerState.OPEN:
            assert self.breaker.state is before
        elif self.now >= self.opened_at + POLICY.longest_pause_s:
            assert self.allowed >= 1

    @rule()
    def come_back(self) -> None:
        allowed = self.allowed
        self.breaker.returned(self.now)
        self.event()
        assert self.allowed >= allowed
        if self.now >= self.opened_at + POLICY.first_pause_s:
            assert self.allowed >= 1

    @rule(seconds=st.floats(0.001, 20) | st.sampled_from([0.25, 1.0, 4.0]))
    def pass_time(self, seconds: float) -> None:
        allowed = self.allowed
        told = self.breaker.changes_at(self.now, self.capacity)
        self.now += seconds
        self.look()
        assert self.allowed >= allowed, "time takes no slot away"
        if self.allowed > allowed:
            assert told is not None
            assert told <= self.now + 0.1, "who waits for the time that was named misses nothing"

    @rule()
    def wake_when_told(self) -> None:
        told = self.breaker.changes_at(self.now, self.capacity)
        if told is not None:
            assert told > self.now
            self.now = told
            self.look()

    @invariant()
    def never_too_many(self) -> None:
        assert 0 <= self.allowed <= self.capacity
        assert (self.allowed == self.capacity) or self.breaker.state is not BreakerState.CLOSED
        assert len(self.running) <= self.allowed

    @invariant()
    def one_trial_at_a_time(self) -> None:
        if self.breaker.state is BreakerState.HALF_OPEN:
            assert self.allowed == 1
            assert len(self.running) <= 1

    @invariant()
    def never_left_alone_for_good(self) -> None:
        if self.breaker.state is BreakerState.OPEN:
            assert self.allowed == 0
            told = self.breaker.changes_at(self.now, self.capacity)
            assert told is not None
            assert self.now < told <= self.opened_at + POLICY.longest_pause_s
        else:
            assert self.allowed >= 1

    def teardown(self) -> None:
        """Whatever happened: a backend that always succeeds from now on ends closed, and soon."""
        if not hasattr(self, "breaker"):
            return
        deadline = self.now + POLICY.longest_pause_s + POLICY.ramp_s + 0.1
        while self.breaker.state is not BreakerState.CLOSED:
            assert self.now <= deadline
            if self.allowed and not self.running:
                self.running.append(self.now)
            for began in self.running:
                self.breaker.succeeded(began, self.now)
            self.running = []
            self.event()
            self.now = min(self.breaker.changes_at(self.now, self.capacity) or self.now, deadline + 1)
            self.look()
        assert self.allowed == self.capacity


TestBreaker = BreakerMachine.TestCase
