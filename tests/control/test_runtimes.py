"""What administrators are told of backends: counts, paces, loads and the use of routes, as placement made them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from headrace.control.breaker import BreakerState
from headrace.control.destinations import OTHER_ROUTES, Destinations, NoRoutes
from headrace.control.health import FailureKind
from headrace.control.plane import LocalControlPlane
from headrace.control.registry import Registry
from headrace.control.runtimes import Circuit, Latency, Runtime, RuntimeModel, by_id, runtimes
from headrace.domain.access import Principal
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Operation, Usage
from headrace.domain.routing import Route, Selector, Target, best_route
from headrace.kernel.errors import RequestError
from headrace.ports.connector import Broken, Busy, Failure, Loading, Lost, NotSent
from headrace.ports.control import Admission, Ask, Ending, Grant, Outcome
from headrace.testing.clock import ManualClock


class Asker(Admission):
    """Keeps what it is granted."""

    def __init__(self) -> None:
        self.grants: list[Grant] = []
        self.refusals: list[RequestError] = []

    def granted(self, grant: Grant) -> None:
        self.grants.append(grant)

    def refused(self, refusal: RequestError) -> None:
        self.refusals.append(refusal)


class Routes(NoRoutes):
    """Some routes."""

    def __init__(self, *routes: Route) -> None:
        self.routes = list(routes)

    def route_for(self, model: str) -> Route | None:
        return best_route(self.routes, model)


class House:
    """A plane over nodes."""

    def __init__(self, *nodes: Node, routes: tuple[Route, ...] = ()) -> None:
        self.clock = ManualClock()
        self.registry = Registry(self.clock.now)
        for node in nodes:
            self.registry.upsert(node)
        self.plane = LocalControlPlane(self.registry, self.clock, routes=Routes(*routes))
        self.count = 0

    def ask(self, model: str = "m") -> Asker:
        self.count += 1
        asker = Asker()
        self.plane.admit(Ask(f"r{self.count}", Principal("p"), Operation.CHAT, model), asker)
        return asker

    def finish(
        self,
        asker: Asker,
        ending: Ending = Ending.COMPLETED,
        *,
        tokens: int = 1,
        first_token_at: float | None = None,
        failure: Failure | None = None,
    ) -> None:
        usage = Usage(1, tokens)
        outcome = Outcome(ending, usage, first_token_at=first_token_at, failure=failure)
        self.plane.finish(asker.grants[-1], outcome)

    def told(self, node_id: str) -> Runtime:
        node = self.registry.get(node_id)
        assert node is not None
        return runtimes(self.plane, [node])[0]


def node(name: str, *models: str, capacity: int = 4, loaded: frozenset[str] | None = None) -> Node:
    infos = tuple(ModelInfo(model) for model in models or ("m",))
    return Node(name, "direct", infos, capacity, state=NodeState.READY, loaded=loaded)


@pytest.mark.req("C05")
def test_a_backend_that_did_nothing_yet() -> None:
    house = House(node("a"))
    assert house.told("a") == Runtime(
        id="a",
        kind="openai",
        connector="direct",
        state=NodeState.READY,
        healthy=True,
        since=datetime.fromtimestamp(house.clock.now(), UTC),
        detail="",
        ready_in_s=None,
        tags=(),
        weight=1.0,
        capacity=4,
        slots=4,
        busy=0,
        breaker=Circuit(BreakerState.CLOSED),
        executions=0,
        failures={},
        loads_held=0,
        models=(RuntimeModel("m", None),),
        latencies={},
        last_error="",
        last_error_at=None,
    )


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (NotSent("refused"), FailureKind.NOT_SENT),
        (NotSent("401", refused_key=True), FailureKind.KEY_REFUSED),
        (Busy("full"), FailureKind.BUSY),
        (Loading("loads"), FailureKind.LOADING),
        (Lost("cut"), FailureKind.LOST),
        (Lost("slow", timed_out=True), FailureKind.TIMED_OUT),
        (Broken("cut"), FailureKind.BROKEN),
        (Broken("slow", timed_out=True), FailureKind.TIMED_OUT),
    ],
)
def test_each_failure_is_counted_as_what_it_is(failure: Failure, kind: FailureKind) -> None:
    house = House(node("a"), node("b", "other"))
    house.finish(house.ask(), Ending.FAILED, failure=failure)
    assert house.told("a").failures == {kind: 1}
    assert house.told("a").executions == 1
    assert (house.told("b").failures, house.told("b").executions) == ({}, 0)


def test_every_execution_is_counted_however_it_ends() -> None:
    house = House(node("a"))
    running = house.ask()
    house.finish(house.ask())
    house.finish(house.ask(), Ending.CANCELLED)
    assert (house.told("a").executions, house.told("a").busy) == (3, 1)
    house.finish(house.ask(), Ending.FAILED, failure=Lost("cut"))
    retried = house.ask()
    house.plane.retry(retried.grants[0], NotSent("refused"), retried)
    assert (house.told("a").executions, house.told("a").busy) == (5, 1)
    assert house.told("a").failures == {FailureKind.LOST: 1, FailureKind.NOT_SENT: 1}
    house.finish(running)
    assert (house.told("a").executions, house.told("a").busy) == (5, 0)
    house.registry.remove("a")
    house.registry.upsert(node("a"))
    assert (house.told("a").executions, house.told("a").failures) == (0, {}), "what is gone is forgotten"


def test_a_refused_key_opens_the_breaker_at_once() -> None:
    house = House(node("a"))
    house.finish(house.ask(), Ending.FAILED, failure=NotSent("401", refused_key=True))
    told = house.told("a")
    assert told.breaker.state is BreakerState.OPEN
    assert (told.breaker.openings, told.breaker.failures) == (1, 1)
    assert told.breaker.changes_in_s is not None
    assert (told.healthy, told.slots, told.capacity) == (False, 0, 4)
    assert told.last_error == "401"
    assert told.last_error_at == datetime.fromtimestamp(house.clock.now(), UTC)
    house.clock.advance(1.0)
    half_open = house.told("a")
    assert (half_open.breaker.state, half_open.healthy, half_open.slots) == (BreakerState.HALF_OPEN, False, 1)


def test_paces_are_told_by_model() -> None:
    house = House(node("a", "m", "n"), node("b", "n"))
    for model, tokens in (("m", 5), ("n", 1)):
        asker = house.ask(model)
        assert asker.grants[0].target == "a"
        granted_at = house.clock.monotonic()
        house.clock.advance(2.0)
        house.finish(asker, tokens=tokens, first_token_at=granted_at + 1.0)
    assert house.told("a").latencies == {"m": Latency(1.0, 0.25), "n": Latency(1.0, None)}
    assert house.told("b").latencies == {}


def test_models_that_others_wait_for_while_one_loads_them() -> None:
    house = House(node("a", "m", "n", loaded=frozenset()), node("b", "n", loaded=frozenset({"n"})))
    asker = house.ask("m")
    assert (house.told("a").loads_held, house.told("b").loads_held) == (1, 0)
    assert house.told("b").models == (RuntimeModel("n", True),)
    assert house.told("a").models == (RuntimeModel("m", False), RuntimeModel("n", False))
    house.plane.answering(asker.grants[0])
    assert house.told("a").loads_held == 0


def test_nodes_are_told_in_the_order_in_which_they_are_given() -> None:
    house = House(node("b"), node("a/1"), node("c"))
    assert [told.id for told in runtimes(house.plane, house.registry.nodes())] == ["b", "a/1", "c"]
    assert [found.id for found in by_id(house.registry)] == ["a/1", "b", "c"]
    assert [found.id for found in by_id(house.registry, "a/1")] == ["b", "c"]


def used(house: House) -> dict[tuple[str, int], int]:
    return {place: use.executions for place, use in house.plane.destinations.uses.items()}


def fallen_back(route_id: str = "r", model: str = "m") -> Route:
    return Route(route_id, model, (Target(Selector.parse("node:a")), Target(Selector.parse("node:b"))))


@pytest.mark.req("C47")
def test_each_use_of_a_route_is_counted_by_its_stage() -> None:
    house = House(node("a", capacity=1), node("b", "m", "free"), routes=(fallen_back(),))
    first, second = house.ask(), house.ask()
    assert used(house) == {("r", 0): 1, ("r", 1): 0}
    assert second.grants == [], "busy is no reason for a fallback that doesn't say so"
    house.finish(first)
    assert second.grants[0].target == "a"
    assert used(house) == {("r", 0): 2, ("r", 1): 0}, "those from the queue are counted, too"
    house.finish(second)
    house.registry.update("a", NodeState.DOWN)
    house.finish(house.ask())
    house.finish(house.ask("free"))
    assert used(house) == {("r", 0): 2, ("r", 1): 1}, "what changes meanwhile takes nothing away"


def test_only_so_many_routes_are_counted_by_themselves() -> None:
    registry = Registry()
    registry.upsert(node("a", "m0", "m1", "m2", "m3"))
    routes = Routes(*(fallen_back(f"r{number}", f"m{number}") for number in range(4)))
    known = Destinations(registry, routes, queue_size=1, most_counted=2)
    for number in (0, 1, 2, 3, 0, 3):
        stage = known.of(f"m{number}").stages[0]
        assert stage.use is not None
        stage.use.executions += 1
        known.forget()
    counts = {place: use.executions for place, use in known.uses.items() if use.executions}
    assert counts == {("r0", 0): 2, ("r1", 0): 1, (OTHER_ROUTES, 0): 3}
