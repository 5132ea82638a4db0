"""Admission, the queue, slots: what the control plane promises."""

from __future__ import annotations

import pytest

from headrace.control.plane import LocalControlPlane
from headrace.control.registry import Registry
from headrace.domain.access import Principal
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Operation, Usage
from headrace.kernel.errors import Internal, ModelNotFound, RequestError, Unavailable
from headrace.ports.control import Admission, Ask, Ending, Grant, Outcome, Waiting
from headrace.testing.clock import ManualClock

DONE = Outcome(Ending.COMPLETED, Usage(1, 2))


class Asker(Admission):
    """One who asks, and remembers what it was told."""

    def __init__(self) -> None:
        self.grant: Grant | None = None
        self.refusal: RequestError | None = None

    def granted(self, grant: Grant) -> None:
        assert self.grant is None
        assert self.refusal is None
        self.grant = grant

    def refused(self, refusal: RequestError) -> None:
        assert self.grant is None
        assert self.refusal is None
        self.refusal = refusal

    @property
    def served(self) -> bool:
        return self.grant is not None

    @property
    def target(self) -> str:
        assert self.grant is not None
        return self.grant.target


class House:
    """A control plane with nodes."""

    def __init__(self, **capacities: int) -> None:
        self.clock = ManualClock()
        self.registry = Registry()
        self.plane = LocalControlPlane(self.registry, self.clock, queue_size=3, queue_wait_s=10)
        self.asked = 0
        for name, capacity in capacities.items():
            self.put(name, capacity)

    def put(self, name: str, capacity: int = 1, state: NodeState = NodeState.READY, model: str = "m") -> None:
        self.registry.upsert(Node(name, "direct", (ModelInfo(model),), capacity=capacity, state=state))

    def ask(self, model: str = "m") -> tuple[Asker, Waiting]:
        self.asked += 1
        asker = Asker()
        waiting = self.plane.admit(Ask(f"r{self.asked}", Principal("p"), Operation.CHAT, model), asker)
        return asker, waiting

    def finish(self, asker: Asker) -> None:
        assert asker.grant is not None
        self.plane.finish(asker.grant, DONE)


@pytest.mark.req("C14")
def test_requests_go_round_over_the_nodes_that_hold_the_model() -> None:
    house = House(a=9, b=9, c=9)
    house.put("other", 9, model="x")
    assert [house.ask()[0].target for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]
    assert house.ask("x")[0].target == "other"


@pytest.mark.req("C15")
def test_a_model_is_never_sent_to_a_node_that_lacks_it() -> None:
    house = House(a=9)
    asker, _ = house.ask("other")
    assert isinstance(asker.refusal, ModelNotFound)


def test_full_and_unready_nodes_are_passed_over() -> None:
    house = House(a=1, b=9)
    house.put("loading", 9, NodeState.LOADING)
    assert [house.ask()[0].target for _ in range(4)] == ["a", "b", "b", "b"]


def test_who_finds_no_slot_waits_and_gets_the_next_one_in_order() -> None:
    house = House(a=1)
    first, _ = house.ask()
    second, _ = house.ask()
    third, _ = house.ask()
    assert (second.served, third.served, house.plane.waiting) == (False, False, 2)
    house.finish(first)
    assert second.target == "a"
    assert not third.served
    house.finish(second)
    assert third.target == "a"
    assert house.plane.waiting == 0


def test_nobody_overtakes_those_who_wait() -> None:
    house = House(a=1)
    first, _ = house.ask()
    second, _ = house.ask()
    house.finish(first)
    third, _ = house.ask()
    assert second.target == "a"
    assert not third.served


def test_the_queue_is_bounded_and_says_so_at_once() -> None:
    house = House(a=1)
    for _ in range(4):
        house.ask()
    asker, _ = house.ask()
    assert isinstance(asker.refusal, Unavailable)
    assert asker.refusal.code == "queue_full"


@pytest.mark.req("D30", "D36")
def test_waiting_ends_after_the_time_with_a_hint_when_to_come_back() -> None:
    house = House()
    house.put("engine", state=NodeState.LOADING)
    house.registry.update("engine", NodeState.LOADING, ready_in_s=42)
    asker, _ = house.ask()
    house.clock.advance(9.9)
    assert house.plane.waiting == 1
    house.clock.advance(0.2)
    assert isinstance(asker.refusal, Unavailable)
    assert asker.refusal.retry_after_s == 42
    assert "loading" in asker.refusal.message
    assert house.clock.pending == 0


@pytest.mark.req("D36")
def test_who_waits_for_a_loading_engine_goes_on_when_it_is_ready_and_others_are_not_blocked() -> None:
    house = House()
    house.put("engine", 2, NodeState.LOADING)
    house.put("other", 1, model="x")
    waiting, _ = house.ask()
    assert house.ask("x")[0].target == "other"
    house.registry.update("engine", NodeState.READY)
    assert waiting.target == "engine"


@pytest.mark.req("D29")
def test_a_failed_engine_refuses_at_once_and_says_why() -> None:
    house = House()
    house.put("engine", 1, NodeState.LOADING)
    waiting, _ = house.ask()
    house.registry.update("engine", NodeState.FAILED, "/x.gguf is not a GGUF file.")
    late, _ = house.ask()
    for asker in (waiting, late):
        assert isinstance(asker.refusal, Internal)
        assert "/x.gguf is not a GGUF file." in asker.refusal.message


def test_a_model_whose_nodes_are_down_is_unavailable_not_unknown() -> None:
    house = House(a=1)
    house.registry.update("a", NodeState.DOWN, "connection refused")
    asker, _ = house.ask()
    assert isinstance(asker.refusal, Unavailable)
    assert "a can't be reached" in asker.refusal.message


def test_a_model_is_not_called_unknown_while_a_backend_was_never_asked() -> None:
    house = House(a=1)
    house.registry.upsert(Node("silent", "direct", state=NodeState.DOWN))
    asker, _ = house.ask("who-knows")
    assert isinstance(asker.refusal, Unavailable)
    assert "silent" in asker.refusal.message


def test_one_who_withdraws_hears_nothing_and_takes_nothing() -> None:
    house = House(a=1)
    first, _ = house.ask()
    second, waiting = house.ask()
    third, _ = house.ask()
    waiting.withdraw()
    waiting.withdraw()
    house.finish(first)
    assert (second.grant, second.refusal) == (None, None)
    assert third.target == "a"
    house.finish(third)
    house.clock.advance(2)  # the lookout sees that nobody waits
    assert house.clock.pending == 0


def test_finishing_twice_counts_once() -> None:
    house = House(a=2)
    asker, _ = house.ask()
    house.finish(asker)
    house.finish(asker)
    assert house.plane.busy("a") == 0
    assert house.plane.totals.requests[Ending.COMPLETED] == 1
    assert house.plane.totals.completion_tokens == 2


@pytest.mark.req("C13")
def test_the_registry_keeps_what_it_is_told() -> None:
    registry = Registry()
    heard: list[str] = []
    registry.on_change(heard.append)
    registry.upsert(Node("a", "direct", (ModelInfo("m"), ModelInfo("org/x"))))
    registry.upsert(Node("a", "direct", (ModelInfo("m"), ModelInfo("org/x"))))
    registry.update("a", NodeState.READY)
    registry.update("nobody", NodeState.READY)
    assert [info.id for info in registry.models()] == ["m", "org/x"]
    assert [node.state for node in registry.nodes()] == [NodeState.READY]
    assert [node.id for node in registry.holders("m")] == ["a"]
    registry.remove("a")
    registry.remove("a")
    assert registry.holders("m") == []
    assert registry.get("a") is None
    assert heard == ["a", "a", "a"]
