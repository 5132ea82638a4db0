"""The queue inside of the control plane: times, places that come and go, who comes back, and what is counted."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.control.plane import LocalControlPlane
from headrace.control.registry import Registry
from headrace.domain.access import Principal
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Operation, Priority, Usage
from headrace.kernel.errors import ModelNotFound, RequestError, Unavailable
from headrace.ports.connector import Busy, Lost, NotSent
from headrace.ports.control import Admission, Ask, Ending, Grant, Outcome, Waiting
from headrace.testing.clock import ManualClock

DONE = Outcome(Ending.COMPLETED, Usage(1, 2))
GONE = NotSent("connection refused")


class Asker(Admission):
    """One who asks, and notes what it is told."""

    def __init__(self, house: House, ask: Ask) -> None:
        self.house = house
        self.ask = ask
        self.grants: list[Grant] = []
        self.refusal: RequestError | None = None
        self.left = False
        self.running = False
        self.tried: set[str] = set()
        self.waiting: Waiting = house.plane.admit(ask, self)

    def granted(self, grant: Grant) -> None:
        assert not self.running
        assert self.refusal is None
        assert not self.left
        assert grant.target not in self.tried, "never again where it failed"
        self.running = True
        self.grants.append(grant)
        self.house.order.append(self)

    def refused(self, refusal: RequestError) -> None:
        assert not self.running
        assert self.refusal is None
        assert not self.left
        self.refusal = refusal

    @property
    def grant(self) -> Grant:
        """The latest."""
        return self.grants[-1]

    @property
    def waits(self) -> bool:
        """Nothing was said yet, or nothing since the last failure."""
        return not (self.running or self.left or self.refusal or self.done)

    @property
    def done(self) -> bool:
        """It was finished."""
        return self in self.house.finished

    @property
    def unavailable(self) -> Unavailable:
        """The refusal, of that kind."""
        assert isinstance(self.refusal, Unavailable)
        return self.refusal

    def finish(self) -> None:
        assert self.running
        self.running = False
        self.house.finished.add(self)
        self.house.plane.finish(self.grant, DONE)

    def fail(self, failure: NotSent | Busy | Lost = GONE) -> None:
        assert self.running
        self.running = False
        if isinstance(failure, NotSent):
            self.tried.add(self.grant.target)
        self.waiting = self.house.plane.retry(self.grant, failure, self)

    def leave(self) -> None:
        self.left = True
        self.waiting.withdraw()


class House:
    """A control plane with nodes."""

    def __init__(self, *, size: int = 8, wait_s: float = 10.0, **capacities: int) -> None:
        self.clock = ManualClock()
        self.registry = Registry()
        self.plane = LocalControlPlane(self.registry, self.clock, queue_size=size, queue_wait_s=wait_s)
        self.order: list[Asker] = []
        self.finished: set[Asker] = set()
        self.numbers = itertools.count()
        for name, capacity in capacities.items():
            self.put(name, capacity)

    def put(
        self, name: str, capacity: int = 1, state: NodeState = NodeState.READY, models: str = "m"
    ) -> None:
        infos = tuple(ModelInfo(model) for model in models)
        self.registry.upsert(Node(name, "direct", infos, capacity=capacity, state=state))

    def ask(
        self,
        key: str = "one",
        model: str = "m",
        *,
        tokens: int = 100,
        priority: Priority = Priority.NORMAL,
        deadline_s: float | None = None,
    ) -> Asker:
        principal = Principal(key)
        number = f"r{next(self.numbers)}"
        return Asker(self, Ask(number, principal, Operation.CHAT, model, tokens, priority, deadline_s))

    def keys(self) -> list[str]:
        """Whose requests were granted, in order."""
        return [asker.ask.principal.id for asker in self.order]

    def serve(self, times: int) -> None:
        """Finish the oldest running request, so many times."""
        for _ in range(times):
            next(asker for asker in self.order if asker.running).finish()


def test_a_flood_does_not_keep_another_key_waiting() -> None:
    house = House(size=400, a=1)
    for _ in range(301):
        house.ask("flood")
    calm = [house.ask("calm") for _ in range(10)]
    house.serve(20)
    assert all(asker.grants for asker in calm)
    assert [asker.grant.position for asker in calm] == [2 * n for n in range(1, 11)]
    house.serve(291)
    assert house.plane.waiting == 0
    house.clock.advance(2)  # the lookout sees that nobody waits
    assert house.clock.pending == 0


def test_a_flooder_makes_room_in_a_full_queue_and_is_told_when_to_come_back() -> None:
    house = House(size=4, a=1)
    flood = [house.ask("flood") for _ in range(6)]
    assert flood[5].unavailable.code == "queue_full"
    assert flood[5].unavailable.retry_after_s == 1, "nothing is known of the pace"
    for _ in range(3):
        house.clock.advance(2)
        house.serve(1)
        house.ask("flood")
    calm = house.ask("calm")
    assert calm.waits
    assert house.plane.totals.refusals == {"queue_full": 2}, "one more of the flood gave way"
    last = house.ask("flood")
    assert last.unavailable.code == "queue_full"
    assert last.unavailable.retry_after_s == pytest.approx(4 * 2, rel=0.5), (
        "four wait, one goes in two seconds"
    )


def test_the_grant_says_how_long_it_took_and_from_which_position() -> None:
    house = House(a=1)
    first, second = house.ask(), house.ask()
    assert (first.grant.position, first.grant.waited_s) == (0, 0)
    assert house.plane.oldest_wait_s == 0
    house.clock.advance(3)
    assert house.plane.oldest_wait_s == 3
    first.finish()
    assert (second.grant.position, second.grant.waited_s) == (1, 3)
    assert house.plane.oldest_wait_s == 0


def test_classes_are_counted_and_the_higher_goes_first() -> None:
    house = House(a=1)
    house.ask()
    low, normal, high = (house.ask(str(p), priority=p) for p in Priority)
    assert house.plane.waiting_by_class == dict.fromkeys(Priority, 1)
    house.serve(3)
    assert house.order[1:] == [high, normal, low]
    assert house.plane.waiting_by_class == dict.fromkeys(Priority, 0)


def test_a_request_has_its_own_deadline_where_it_names_one() -> None:
    house = House(a=1, wait_s=10)
    first = house.ask()
    short, long = house.ask(deadline_s=2), house.ask(deadline_s=100)
    house.clock.advance(1.9)
    assert short.waits
    house.clock.advance(0.2)
    assert short.unavailable.code == "deadline_passed"
    house.clock.advance(8)
    assert long.unavailable.code == "no_free_slot"
    first.finish()
    assert house.plane.totals.refusals == {"deadline_passed": 1, "no_free_slot": 1}
    assert house.clock.pending == 0


def test_where_nobody_may_wait_the_refusal_comes_at_once() -> None:
    house = House(a=1, wait_s=0)
    house.ask()
    assert house.ask().unavailable.code == "no_free_slot"
    assert House(a=1, wait_s=5).ask(deadline_s=0).running, "a free place needs no time"
    assert house.clock.pending == 0


def test_time_under_way_is_no_time_in_the_queue_but_counts_for_the_own_deadline() -> None:
    house = House(a=2, wait_s=10)
    patient, hurried = house.ask(), house.ask(deadline_s=50)
    house.put("c", 2)
    others = [house.ask(), house.ask()]
    assert all(asker.running for asker in others)
    house.clock.advance(45)
    patient.fail()
    hurried.fail()
    house.clock.advance(4.9)
    assert patient.waits
    assert hurried.waits
    house.clock.advance(0.2)
    assert hurried.unavailable.code == "deadline_passed"
    house.clock.advance(4.8)
    assert patient.waits
    house.clock.advance(0.2)
    assert patient.unavailable.code == "no_free_slot"


def test_one_that_failed_over_goes_before_those_who_wait_and_is_not_charged_again() -> None:
    house = House(a=1, b=1)
    first, second = house.ask("one", tokens=5000), house.ask("two")
    waiting = [house.ask("one"), house.ask("two")]
    first.fail()  # "a" is free at once, for one who waits
    assert first.waits
    assert waiting[0].grant.target == "a"
    second.finish()
    assert first.grant.target == "b"
    assert (first.grant.attempts, first.grant.executions) == (2, 1)
    assert first.grant.position == 1
    house.serve(2)
    assert waiting[1].running


def test_one_that_failed_over_waits_even_in_a_full_queue_and_can_leave() -> None:
    house = House(size=1, a=1, b=1)
    first, second = house.ask(), house.ask()
    house.ask(), house.ask()
    first.fail()
    second.fail()
    assert first.running or first.waits
    for asker in (first, second):
        if asker.waits:
            asker.leave()
            asker.waiting.withdraw()
    assert house.plane.waiting == 0
    assert house.plane.totals.withdrawn == 1
    assert house.plane.totals.requests[Ending.CANCELLED] == 1


def test_a_node_that_says_it_is_busy_is_not_sent_the_whole_queue() -> None:
    house = House(a=3)
    running = [house.ask() for _ in range(3)]
    waiting = [house.ask() for _ in range(5)]
    running[0].fail(Busy("full", retry_after_s=4))
    assert not any(asker.grants for asker in waiting)
    late = house.ask()
    assert not late.grants, "it doesn't overtake those who wait"
    running[1].finish()
    assert [bool(asker.grants) for asker in waiting] == [True, False, False, False, False]
    house.clock.advance(4.1)
    assert running[0].running, "it keeps its place"
    assert sum(bool(asker.grants) for asker in waiting) == 1
    assert house.plane.busy("a") == 3


def test_a_node_that_comes_back_is_filled_whatever_it_said_before() -> None:
    house = House(a=2)
    running = [house.ask(), house.ask()]
    waiting = [house.ask() for _ in range(2)]
    for asker in running:
        asker.fail(Busy("full", retry_after_s=5))
    house.registry.update("a", NodeState.LOADING)
    house.registry.update("a", NodeState.READY)
    assert all(asker.running for asker in waiting)


def test_those_whose_model_is_gone_are_told() -> None:
    house = House(a=1)
    house.put("b", models="mx")
    house.ask(), house.ask(model="x")
    waiting = house.ask(model="x")
    kept = house.ask(model="m")
    house.registry.remove("b")
    assert isinstance(waiting.refusal, ModelNotFound)
    assert kept.waits
    assert house.plane.totals.refusals == {"model_not_found": 1}


def test_requests_for_a_model_without_a_place_hold_up_nobody() -> None:
    house = House()
    house.put("small", 1, models="xy")
    house.put("large", 2, models="y")
    first = house.ask("one", "x")
    blocked = [house.ask("one", "x") for _ in range(3)]
    running = [house.ask("one", "y"), house.ask("two", "y")]
    assert all(asker.running for asker in running)
    behind = [house.ask("one", "y"), house.ask("two", "y")]
    for asker in running:
        asker.finish()
    assert {asker.grant.target for asker in behind} == {"large"}
    first.finish()
    assert [asker.running for asker in blocked] == [True, False, False]


def test_one_who_ends_at_once_each_time_does_not_nest_without_end() -> None:
    """Those who are told end inside the call that tells them: with a stack frame for each, 2,000 of them were too many."""
    house = House(size=4000, a=1)

    class Hasty(Asker):
        def granted(self, grant: Grant) -> None:
            super().granted(grant)
            self.finish()

    first = house.ask()
    hasty = [Hasty(house, Ask(f"h{n}", Principal(f"k{n % 7}"), Operation.CHAT, "m", 10)) for n in range(2000)]
    last = house.ask("last")
    first.finish()
    last.finish()
    assert all(asker.done for asker in hasty)
    assert house.plane.running == house.plane.waiting == 0


def test_one_whose_client_breaks_down_leaves_the_others_their_turn() -> None:
    house = House(a=1)

    class Broken(Asker):
        def granted(self, grant: Grant) -> None:
            super().granted(grant)
            raise RuntimeError("a defect of ours")

    first = house.ask()
    broken = Broken(house, Ask("b", Principal("b"), Operation.CHAT, "m"))
    last = house.ask("last")
    with pytest.raises(RuntimeError):
        first.finish()
    broken.finish()
    assert last.running


class Plane(RuleBasedStateMachine):
    """Any order of events: nobody is told twice, no place is over-filled, and none stays free that suits one who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(size=5, wait_s=30.0)
        self.house.put("n0", 1, models="ab")
        self.house.put("n1", 2, models="b")
        self.house.put("n2", 1, models="abc")
        self.askers: list[Asker] = []

    def running(self) -> list[Asker]:
        return [asker for asker in self.askers if asker.running]

    @rule(
        key=st.sampled_from(["one", "two", "three"]),
        model=st.sampled_from("abc"),
        tokens=st.integers(0, 1000),
        priority=st.sampled_from(Priority),
        deadline_s=st.none() | st.integers(0, 40),
    )
    def ask(self, key: str, model: str, tokens: int, priority: Priority, deadline_s: int | None) -> None:
        self.askers.append(
            self.house.ask(key, model, tokens=tokens, priority=priority, deadline_s=deadline_s)
        )

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.running())).finish()

    @precondition(lambda self: self.running())
    @rule(
        data=st.data(),
        failure=st.sampled_from([GONE, Lost("cut"), Busy("full"), Busy("full", retry_after_s=20)]),
    )
    def fail(self, data: st.DataObject, failure: NotSent | Lost | Busy) -> None:
        data.draw(st.sampled_from(self.running())).fail(failure)

    @precondition(lambda self: any(asker.waits for asker in self.askers))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([asker for asker in self.askers if asker.waits])).leave()

    @rule(
        name=st.sampled_from(["n0", "n1", "n2"]),
        capacity=st.integers(0, 3),
        state=st.sampled_from(
            [NodeState.READY, NodeState.READY, NodeState.DOWN, NodeState.LOADING, NodeState.FAILED]
        ),
        models=st.sampled_from(["a", "b", "ab", "abc", ""]),
    )
    def change(self, name: str, capacity: int, state: NodeState, models: str) -> None:
        self.house.put(name, capacity, state, models)

    @rule(name=st.sampled_from(["n0", "n1", "n2"]))
    def remove(self, name: str) -> None:
        self.house.registry.remove(name)

    @rule(seconds=st.sampled_from([0.5, 1.0, 7.0, 31.0]))
    def pass_time(self, seconds: float) -> None:
        self.house.clock.advance(seconds)

    @invariant()
    def everybody_is_accounted_for(self) -> None:
        plane = self.house.plane
        waiting = [asker for asker in self.askers if asker.waits]
        assert plane.waiting == len(waiting) == sum(plane.waiting_by_class.values())
        assert plane.running == len(self.running()) == sum(plane.busy(f"n{n}") for n in range(3))
        assert 0 <= plane.oldest_wait_s <= 30.0 + 1e-6
        assert all(0 <= asker.grant.waited_s <= 30.0 + 1e-6 for asker in self.running())

    @invariant()
    def no_place_stays_free_that_suits_one_who_waits(self) -> None:
        plane = self.house.plane
        now = self.house.clock.monotonic()
        for node in self.house.registry.nodes():
            if not plane.placement.is_free(node) or node.id in plane.resting:
                continue
            for asker in self.askers:
                if asker.waits and node.has(asker.ask.model):
                    assert node.id in asker.waiting.avoid(now)  # type: ignore[attr-defined]

    def teardown(self) -> None:
        for asker in self.running():
            if asker.running:
                asker.finish()
        while running := self.running():
            running[0].finish()
        self.house.clock.advance(100)
        while running := self.running():
            running[0].finish()
        assert not any(asker.waits for asker in self.askers)
        self.house.plane.health.close()
        assert self.house.clock.pending == 0
        assert self.house.plane.waiting == self.house.plane.running == 0


TestPlane = Plane.TestCase
TestPlane.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
