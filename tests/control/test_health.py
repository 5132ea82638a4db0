"""The health of nodes: what becomes of their requests decides how many they may run."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.control.breaker import BreakerPolicy, BreakerState
from headrace.control.health import MOST_REASON_CHARS, Health, HealthView
from headrace.control.registry import Registry
from headrace.domain.access import Principal
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Operation
from headrace.ports.connector import Broken, Busy, Failure, Lost, NotSent
from headrace.ports.control import Ask, Grant
from headrace.testing.clock import ManualClock

LOST = Lost("it broke off")
POLICY = BreakerPolicy(
    in_a_row=3, least=6, window_s=8, first_pause_s=1, longest_pause_s=10, calm_s=12, ramp_s=4
)
READY, DOWN, LOADING = NodeState.READY, NodeState.DOWN, NodeState.LOADING


class LateClock(ManualClock):
    """Its timers are late by `late_s`, as those of a busy event loop."""

    late_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.late_s


class House:
    """Nodes and their health, and what runs there; no more runs than there are slots."""

    def __init__(self) -> None:
        self.clock = LateClock()
        self.registry = Registry()
        self.told: list[int] = []
        self.running: dict[str, list[Grant]] = {}
        self.granted = 0
        self.health = Health(
            self.registry, self.clock, self.slots_changed, self.count, policy=POLICY, draw=lambda: 0.0
        )

    def slots_changed(self, node_id: str, slots: int) -> None:
        assert self.health.slots[node_id] == slots
        self.told.append(slots)

    def count(self, node_id: str) -> int:
        return len(self.running.get(node_id, ()))

    def put(self, node_id: str = "a", state: NodeState = READY, capacity: int = 8, detail: str = "") -> None:
        self.registry.upsert(
            Node(node_id, "direct", (ModelInfo("m"),), capacity=capacity, state=state, detail=detail)
        )

    def room(self, node_id: str = "a") -> int:
        return self.health.slots.get(node_id, 0) - self.count(node_id)

    def begin(self, node_id: str = "a") -> Grant:
        assert self.room(node_id) > 0
        self.granted += 1
        ask = Ask(f"r{self.granted}", Principal("p"), Operation.CHAT, "m")
        grant = Grant(ask, node_id, "m", granted_at=self.clock.monotonic())
        self.running.setdefault(node_id, []).append(grant)
        return grant

    def begin_all(self, node_id: str = "a") -> list[Grant]:
        return [self.begin(node_id) for _ in range(self.room(node_id))]

    def end(self, grant: Grant) -> None:
        self.running[grant.target].remove(grant)

    def succeed(self, grant: Grant) -> None:
        self.end(grant)
        self.health.succeeded(grant)

    def fail(self, grant: Grant, failure: Failure = LOST) -> None:
        self.end(grant)
        self.health.failed(grant, failure)

    def let_go(self, grant: Grant) -> None:
        self.end(grant)
        self.health.let_go(grant)

    def open(self, node_id: str = "a") -> None:
        for _ in range(3):
            self.fail(self.begin(node_id))

    def view(self, node_id: str = "a") -> HealthView:
        view = self.health.view(node_id)
        assert view is not None
        return view

    def state(self, node_id: str = "a") -> BreakerState:
        return self.view(node_id).state


@pytest.fixture
def house() -> House:
    made = House()
    made.put()
    return made


class TestSlots:
    def test_a_healthy_node_has_all_of_its_slots(self, house: House) -> None:
        assert house.health.slots == {"a": 8}
        assert house.told == [8]
        assert house.clock.pending == 0

    def test_nodes_that_are_there_already_are_judged_too(self) -> None:
        registry = Registry()
        registry.upsert(Node("a", "direct", capacity=3, state=READY))
        told: list[tuple[str, int]] = []
        health = Health(
            registry, ManualClock(), lambda node, slots: told.append((node, slots)), lambda _node: 0
        )
        assert told == [("a", 3)]
        assert health.slots == {"a": 3}

    @pytest.mark.parametrize("state", [NodeState.LOADING, NodeState.DOWN, NodeState.FAILED])
    def test_a_node_that_is_not_ready_has_none(self, house: House, state: NodeState) -> None:
        house.put(state=state)
        assert house.health.slots == {"a": 0}
        house.put()
        assert house.health.slots == {"a": 8}
        assert house.told == [8, 0, 8]

    def test_they_follow_the_capacity(self, house: House) -> None:
        house.put(capacity=2)
        assert house.health.slots == {"a": 2}

    def test_one_that_fails_is_left_alone_tried_and_given_its_slots_back_in_time(self, house: House) -> None:
        house.open()
        assert house.health.slots == {"a": 0}
        house.clock.advance(0.9)
        assert house.health.slots == {"a": 0}
        house.clock.advance(0.2)
        assert house.health.slots == {"a": 1}
        house.succeed(house.begin())
        house.clock.advance(10)
        assert house.state() is BreakerState.CLOSED
        assert house.told == [8, 0, 1, 2, 3, 4, 5, 6, 7, 8]
        assert house.clock.pending == 0, "a healthy node needs no timer"

    def test_there_is_one_timer_for_a_node_at_most(self, house: House) -> None:
        house.open()
        for _ in range(5):
            house.health.probed("a", ok=False)
            house.put(state=DOWN)
            house.put()
            assert house.clock.pending == 1

    def test_closing_takes_the_timers_back(self, house: House) -> None:
        house.open()
        house.health.close()
        house.health.close()
        assert house.clock.pending == 0

    def test_a_busy_backend_is_not_to_blame(self, house: House) -> None:
        for _ in range(9):
            house.fail(house.begin(), Busy("full", 3.0))
        assert house.health.slots == {"a": 8}
        assert house.view().last_error == ""

    def test_nothing_is_made_of_nodes_that_are_not_there(self, house: House) -> None:
        grants = [house.begin() for _ in range(4)]
        house.registry.remove("a")
        for tell in (house.health.succeeded, house.health.let_go, house.health.answering):
            tell(grants[0])
        house.health.failed(grants[0], LOST)
        house.health.probed("a", ok=False)
        assert house.health.slots == {}
        assert house.health.view("a") is None

    def test_with_a_node_all_is_forgotten_even_what_it_still_runs(self, house: House) -> None:
        late = [house.begin() for _ in range(5)]
        house.open()
        house.registry.remove("a")
        assert house.clock.pending == 0
        house.clock.advance(1)
        house.put()
        assert house.health.slots == {"a": 8}
        for grant in late:
            house.fail(grant)
        view = house.view()
        assert (view.state, view.failures, view.openings) == ("closed", 0, 0)


class TestTrial:
    def test_one_request_at_a_time_is_tried(self, house: House) -> None:
        house.open()
        house.clock.advance(1.1)
        trial = house.begin()
        assert house.room() == 0
        house.let_go(trial)
        assert house.room() == 1, "it said nothing, so the next one is the trial"
        house.fail(house.begin(), Busy("full"))
        assert house.room() == 1
        house.fail(house.begin())
        assert house.health.slots == {"a": 0}

    def test_what_hangs_there_since_before_neither_keeps_it_out_nor_counts(self, house: House) -> None:
        hung = [house.begin() for _ in range(4)]
        house.open()
        house.clock.advance(1.1)
        assert house.room() == 1
        trial = house.begin()
        assert house.room() == 0
        house.fail(hung[0], Lost("slow", timed_out=True))
        house.let_go(hung[1])
        assert (house.state(), house.room()) == ("half-open", 0)
        house.succeed(hung[2])
        assert (house.state(), house.room()) == ("half-open", 0)
        house.succeed(trial)
        assert (house.state(), house.room()) == ("recovering", 2)
        house.fail(hung[3])
        assert (house.state(), house.room()) == ("recovering", 2)

    @pytest.mark.parametrize("told_first", [True, False])
    def test_that_a_timer_is_late_lets_no_second_one_in(self, house: House, told_first: bool) -> None:
        hung = [house.begin() for _ in range(3)]
        house.open()
        house.clock.late_s = 1.5
        if told_first:
            house.health.let_go(hung[0])
            house.end(hung[0])
        else:
            house.let_go(hung[0])
        assert house.health.slots == {"a": 0}
        house.clock.advance(1)
        assert house.room() == 1

    def test_where_what_hangs_takes_every_slot_the_trial_waits_for_one(self, house: House) -> None:
        hung = house.begin_all()
        for grant in hung[:3]:
            house.fail(grant)
        house.put(capacity=5)
        house.clock.advance(1.1)
        assert house.health.slots == {"a": 5}
        assert house.room() == 0
        house.let_go(hung[3])
        assert house.room() == 1

    def test_the_first_of_an_answer_is_enough_where_it_is_told(self, house: House) -> None:
        house.open()
        house.clock.advance(1.1)
        trial = house.begin()
        house.health.answering(trial)
        assert (house.state(), house.room()) == ("recovering", 1)
        house.fail(trial, Broken("it broke off"))
        assert house.state() is BreakerState.OPEN

    def test_the_first_of_an_answer_counts_for_the_trial_only(self, house: House) -> None:
        house.open()
        house.clock.advance(1.1)
        house.succeed(house.begin())
        house.health.answering(house.begin())
        assert house.health.slots == {"a": 2}

    def test_the_first_of_an_old_answer_is_not(self, house: House) -> None:
        old = house.begin()
        house.open()
        house.clock.advance(1.1)
        house.health.answering(old)
        assert house.state() is BreakerState.HALF_OPEN

    def test_a_node_that_is_back_is_tried_soon_however_long_it_was_away(self, house: House) -> None:
        house.open()
        house.put(state=DOWN)
        for _ in range(20):
            house.clock.advance(3)
            house.health.probed("a", ok=False, reason="no connection")
        house.clock.advance(2)
        assert house.state() is BreakerState.OPEN
        house.put()
        assert house.health.slots == {"a": 1}

    def test_that_anything_else_of_it_changes_ends_no_pause(self, house: House) -> None:
        house.open()
        house.clock.advance(1.1)
        house.fail(house.begin())
        house.clock.advance(1.1)
        house.put(capacity=9)
        assert house.health.slots == {"a": 0}


class TestChecks:
    def test_enough_that_fail_open_it(self, house: House) -> None:
        for _ in range(3):
            house.health.probed("a", ok=False, reason="no connection")
        assert house.state() is BreakerState.OPEN
        assert house.view().last_error == "no connection"

    def test_that_it_loads_is_no_failure(self, house: House) -> None:
        house.put(state=LOADING)
        for _ in range(9):
            house.health.probed("a", ok=False)
        assert house.view().failures == 0

    def test_the_reason_may_be_what_the_registry_says(self, house: House) -> None:
        house.put(state=DOWN, detail="no route")
        house.health.probed("a", ok=False)
        assert house.view().last_error == "no route"

    def test_one_that_is_answered_speeds_the_trial_up_but_ends_none(self, house: House) -> None:
        for _ in range(3):
            house.fail(house.begin(), NotSent("no connection"))
        house.clock.advance(1.1)
        house.fail(house.begin(), NotSent("no connection"))
        house.clock.advance(1.1)
        assert house.health.slots == {"a": 0}
        for _ in range(3):
            house.health.probed("a", ok=True)
        assert house.health.slots == {"a": 1}


class TestView:
    def test_it_says_what_went_wrong_last_and_when(self, house: House) -> None:
        assert house.view() == HealthView(BreakerState.CLOSED, 8)
        house.fail(house.begin(), Lost("x" * 1000))
        at = house.clock.now()
        house.clock.advance(5)
        view = house.view()
        assert (view.last_error, view.last_error_at) == ("x" * MOST_REASON_CHARS, at)
        assert (view.failures, view.openings, view.changes_in_s) == (1, 0, None)
        house.succeed(house.begin())
        house.open()
        view = house.view()
        assert (view.state, view.allowed, view.openings, view.changes_in_s) == ("open", 0, 1, 1.0)


class HealthMachine(RuleBasedStateMachine):
    """Any order of events on three nodes; "good" only ever succeeds, whatever becomes of the others."""

    @initialize(capacities=st.tuples(*[st.integers(1, 5)] * 3))
    def start(self, capacities: tuple[int, int, int]) -> None:
        self.house = House()
        self.capacities = dict(zip(("good", "a", "b"), capacities, strict=True))
        self.trials: dict[str, list[Grant]] = {"a": [], "b": []}
        self.here = {"good", "a", "b"}
        for name, capacity in self.capacities.items():
            self.house.put(name, capacity=capacity)

    which = st.sampled_from(["a", "b"])
    number = st.integers(0, 99)

    def remember(self, name: str, grant: Grant) -> None:
        """Count the trials that run: those that began while it was half-open."""
        view = self.house.health.view(name)
        if view is not None and view.state is BreakerState.HALF_OPEN:
            self.trials[name].append(grant)

    def forget_ended(self) -> None:
        for name, trials in self.trials.items():
            view = self.house.health.view(name)
            if view is None or view.state is not BreakerState.HALF_OPEN:
                trials.clear()
            trials[:] = [grant for grant in trials if grant in self.house.running[name]]

    @rule(name=which)
    def begin(self, name: str) -> None:
        if self.house.room(name) > 0:
            self.remember(name, self.house.begin(name))

    @rule(name=which)
    def begin_all(self, name: str) -> None:
        while self.house.room(name) > 0:
            self.remember(name, self.house.begin(name))

    def some(self, name: str, number: int) -> Grant | None:
        running = self.house.running.get(name)
        return running[number % len(running)] if running else None

    @rule(name=which, number=number, how=st.sampled_from(["succeed", "let_go", "answering"]))
    def go_well(self, name: str, number: int, how: str) -> None:
        if (grant := self.some(name, number)) is not None:
            if how == "answering":
                self.house.health.answering(grant)
            elif how == "let_go":
                self.house.let_go(grant)
            else:
                self.house.succeed(grant)
        self.forget_ended()

    @rule(
        name=which,
        number=number,
        failure=st.sampled_from(
            [
                LOST,
                NotSent("no"),
                NotSent("401", refused_key=True),
                Lost("slow", timed_out=True),
                Busy("full"),
            ]
        ),
        times=st.integers(1, 4),
    )
    def go_wrong(self, name: str, number: int, failure: Failure, times: int) -> None:
        for _ in range(times):
            if (grant := self.some(name, number)) is not None:
                self.house.fail(grant, failure)
        self.forget_ended()

    @rule(name=which, ok=st.booleans())
    def check(self, name: str, ok: bool) -> None:
        self.house.health.probed(name, ok)
        self.forget_ended()

    @rule(name=which, state=st.sampled_from(NodeState))
    def report(self, name: str, state: NodeState) -> None:
        self.here.add(name)
        self.house.put(name, state, self.capacities[name])
        self.forget_ended()

    @rule(name=which)
    def remove(self, name: str) -> None:
        self.here.discard(name)
        self.house.registry.remove(name)
        self.house.running.pop(name, None)
        self.house.running[name] = []
        self.trials[name].clear()

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0, 3.0, 20.0]))
    def pass_time(self, seconds: float) -> None:
        self.house.clock.advance(seconds)
        self.forget_ended()

    @precondition(lambda self: self.house.room("good"))
    @rule()
    def use_the_good_one(self) -> None:
        self.house.succeed(self.house.begin("good"))

    @invariant()
    def slots_are_those_of_who_may_be_used(self) -> None:
        assert set(self.house.health.slots) == self.here
        for name, slots in self.house.health.slots.items():
            node = self.house.registry.get(name)
            assert node is not None
            assert 0 <= slots <= node.capacity
            state = self.house.state(name)
            if node.state is not READY or state is BreakerState.OPEN:
                assert slots == 0
            elif state is BreakerState.CLOSED:
                assert slots == node.capacity

    @invariant()
    def one_trial_at_a_time(self) -> None:
        for trials in self.trials.values():
            assert len(trials) <= 1

    @invariant()
    def the_good_one_is_not_affected(self) -> None:
        assert self.house.health.slots["good"] == self.capacities["good"]
        view = self.house.view("good")
        assert (view.state, view.failures, view.openings) == ("closed", 0, 0)

    @invariant()
    def timers_are_few(self) -> None:
        assert self.house.clock.pending <= len(self.here)

    def teardown(self) -> None:
        """Once everything that runs has ended and all requests succeed, every node is soon in full use."""
        if not hasattr(self, "house"):
            return
        house = self.house
        for name, capacity in self.capacities.items():
            for grant in list(house.running.get(name, ())):
                house.let_go(grant)
            house.put(name, capacity=capacity)
        for _ in range(12):
            house.clock.advance(1.5)
            for name in self.capacities:
                if house.room(name) > 0:
                    house.succeed(house.begin(name))
        assert house.health.slots == self.capacities
        assert house.clock.pending == 0


TestHealth = HealthMachine.TestCase
