"""Where requests go: routes, their fallbacks, tags, and backends that load first."""

from __future__ import annotations

import pytest

from headrace.adapters.ledger.memory import MemoryLedger
from headrace.control.allowances import AllowancePlane
from headrace.control.destinations import RouteFinder
from headrace.control.plane import LocalControlPlane
from headrace.control.registry import Registry
from headrace.domain.access import Principal
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Operation, Timeouts, Usage
from headrace.domain.routing import Route, Selector, Strategy, Target, TimeLimits, best_route
from headrace.kernel.errors import ModelNotFound, RequestError, Unavailable, UpstreamFailed
from headrace.ports.connector import Failure, Loading, Lost, NotSent
from headrace.ports.control import Admission, Ask, Ending, Grant, Outcome, Waiting
from headrace.testing.clock import ManualClock
from headrace.testing.journal import MemoryJournal
from support.waiting import until

DONE = Outcome(Ending.COMPLETED, Usage(3, 5))


class Routes(RouteFinder):
    """Some routes, which can be others."""

    def __init__(self, *routes: Route) -> None:
        self.routes = list(routes)
        self._listeners: list[object] = []

    def route_for(self, model: str) -> Route | None:
        return best_route(self.routes, model)

    def on_change(self, listener: object) -> None:
        self._listeners.append(listener)

    def become(self, *routes: Route) -> None:
        self.routes = list(routes)
        for listener in self._listeners:
            listener()  # type: ignore[operator]


class Asker(Admission):
    """One request, and what it was told."""

    def __init__(self, house: House, ask: Ask) -> None:
        self.house = house
        self.ask = ask
        self.grants: list[Grant] = []
        self.refusal: RequestError | None = None
        self.waiting: Waiting = house.front.admit(house.front.resolved(ask), self)

    def granted(self, grant: Grant) -> None:
        self.grants.append(grant)

    def refused(self, refusal: RequestError) -> None:
        self.refusal = refusal

    @property
    def at(self) -> list[tuple[str, str]]:
        """The nodes that it was granted, and the models that they are asked for."""
        return [(grant.target, grant.model) for grant in self.grants]

    def finish(self, outcome: Outcome = DONE) -> None:
        self.house.front.finish(self.grants[-1], outcome)

    def fail(self, failure: Failure) -> None:
        self.waiting = self.house.front.retry(self.grants[-1], failure, self)

    def answers(self) -> None:
        self.house.front.answering(self.grants[-1])


class House:
    """A plane with routes and nodes."""

    def __init__(self, *nodes: Node, routes: tuple[Route, ...] = ()) -> None:
        self.clock = ManualClock()
        self.registry = Registry(self.clock.now)
        for node in nodes:
            self.registry.upsert(node)
        self.routes = Routes(*routes)
        self.plane = LocalControlPlane(
            self.registry, self.clock, queue_size=600, queue_wait_s=60, routes=self.routes
        )
        self.ledger = MemoryLedger(MemoryJournal(), self.clock)
        self.front = AllowancePlane(self.plane, self.ledger, self.clock)
        self.front.limit(any(target.tokens_per_day for route in routes for target in route.targets))
        self.count = 0

    def ask(self, model: str = "m", tags: tuple[str, ...] = (), tokens: int = 8, **more: object) -> Asker:
        self.count += 1
        ask = Ask(f"r{self.count}", Principal("p"), Operation.CHAT, model, tokens, tags=tags, **more)  # type: ignore[arg-type]
        return Asker(self, ask)

    def down(self, *names: str) -> None:
        for name in names:
            self.registry.update(name, NodeState.DOWN, "connection refused")

    def up(self, *names: str) -> None:
        for name in names:
            self.registry.update(name, NodeState.READY)


def node(
    name: str, *models: str, tags: str = "", capacity: int = 1, loaded: frozenset[str] | None = None
) -> Node:
    infos = tuple(ModelInfo(model) for model in models or ("m",))
    return Node(name, "direct", infos, capacity, frozenset(tags.split()), NodeState.READY, loaded=loaded)


def route(model: str, *targets: Target, **more: object) -> Route:
    return Route(f"to-{model}", model, targets, **more)  # type: ignore[arg-type]


def to(selector: str = "any", model: str = "", **more: object) -> Target:
    return Target(Selector.parse(selector), model, **more)  # type: ignore[arg-type]


@pytest.mark.req("C16", "C19", "C35")
def test_a_route_selects_backends_by_tag_and_name() -> None:
    house = House(
        node("a", "m", "n", tags="cpu"), node("b", "m", "n", tags="gpu"), node("c", "m", "n", tags="gpu eu"),
        routes=(route("m", to("tag:gpu & node:b,a")), route("n*", to("node:c"))),
    )  # fmt: skip
    assert house.ask("m").at == [("b", "m")]
    assert house.ask("n").at == [("c", "n")]
    waits = house.ask("n")
    assert not waits.grants
    assert waits.refusal is None


@pytest.mark.req("C16")
def test_tags_of_a_request_narrow_the_choice_by_field_and_by_suffix() -> None:
    house = House(
        node("a", capacity=9), node("b", tags="gpu eu", capacity=9), node("c", tags="gpu", capacity=9)
    )
    assert house.ask("m", ("gpu", "eu")).at == [("b", "m")]
    assert house.ask("m@gpu+eu").at == [("b", "m")]
    assert house.ask("m@gpu", ("eu",)).at == [("b", "m")]
    nobody = house.ask("m@gpu+mars")
    assert isinstance(nobody.refusal, ModelNotFound)
    assert "Did you mean 'm'" in nobody.refusal.message


def test_a_model_whose_name_has_an_at_is_that_model() -> None:
    house = House(
        node("a", "claude@2024", "claude", capacity=9), node("b", "claude", tags="2024", capacity=9)
    )
    assert house.ask("claude@2024").at == [("a", "claude@2024")]


def test_an_alias_asks_the_backends_for_another_model() -> None:
    house = House(node("a", "llama-3.1-8b"), routes=(route("default", to(model="llama-3.1-8b")),))
    assert house.ask("default").at == [("a", "llama-3.1-8b")]


def test_a_fallback_is_used_once_nothing_before_it_works_and_no_longer() -> None:
    house = House(
        node("a"), node("b", "other", capacity=5), routes=(route("m", to("node:a"), to("node:b", "other")),)
    )
    first, waits = house.ask(), house.ask()
    assert first.at == [("a", "m")]
    assert not waits.grants, "busy is no reason"
    house.down("a")
    assert waits.at == [("b", "other")], "who waited goes there as soon as it may"
    assert house.ask().at == [("b", "other")]
    first.fail(NotSent("gone"))
    assert first.at == [("a", "m"), ("b", "other")]
    house.up("a")
    assert house.ask().at == [("a", "m")]


def test_a_fallback_for_the_busy_takes_what_finds_no_slot() -> None:
    house = House(node("a"), node("b"), routes=(route("m", to("node:a"), to("node:b", when_busy=True)),))
    assert [house.ask().at for _ in range(2)] == [[("a", "m")], [("b", "m")]]
    waits = house.ask()
    assert not waits.grants


def test_a_backend_that_keeps_failing_opens_the_fallback_until_it_is_well() -> None:
    house = House(
        node("a", capacity=50), node("b", capacity=50), routes=(route("m", to("node:a"), to("node:b")),)
    )
    for _ in range(20):
        asker = house.ask()
        if asker.grants[0].target == "b":
            break
        asker.fail(Lost("it answered 500"))
        assert isinstance(asker.refusal, UpstreamFailed)
    assert house.ask().at == [("b", "m")]
    house.clock.advance(60)
    trial = house.ask()
    assert trial.at == [("a", "m")]
    trial.finish()
    assert house.ask().at == [("a", "m")]


def test_routes_are_others_from_one_request_to_the_next_also_for_those_who_wait() -> None:
    house = House(node("a"), node("b"), routes=(route("m", to("node:a")),))
    running, waits = house.ask(), house.ask()
    assert running.at == [("a", "m")]
    assert not waits.grants
    house.routes.become(route("m", to("node:b")))
    assert waits.at == [("b", "m")]
    house.routes.become()
    running.finish()
    assert house.ask().at == [("a", "m")]


def test_a_lost_execution_is_done_again_only_where_the_route_says_so() -> None:
    for reruns in (False, True):
        house = House(node("a"), node("b"), routes=(route("m", to("any"), reruns=reruns),))
        asker = house.ask()
        asker.fail(Lost("cut"))
        house.clock.advance(5)
        assert (len(asker.grants), asker.refusal is None) == ((2, True) if reruns else (1, False))
        if reruns:
            assert asker.grants[-1].executions == 2


def test_one_who_leaves_in_the_break_before_a_rerun_is_gone() -> None:
    house = House(node("a"), node("b"), routes=(route("m", to("any"), reruns=True),))
    asker = house.ask()
    asker.fail(Lost("cut"))
    asker.waiting.withdraw()
    house.clock.advance(5)
    assert len(asker.grants) == 1
    assert asker.refusal is None
    assert house.plane.running == house.plane.waiting == 0
    assert house.plane.totals.requests[Ending.CANCELLED] == 1


def test_retries_are_a_small_share_of_the_requests() -> None:
    house = House(
        *(node(f"n{number}", capacity=500) for number in range(8)),
        routes=(route("m", to("any"), reruns=True),),
    )
    askers = [house.ask() for _ in range(200)]
    for asker in askers:
        asker.fail(Lost("cut"))
    house.clock.advance(5)
    refused = [asker for asker in askers if asker.refusal is not None]
    assert 150 <= len(refused) < 200
    assert all(isinstance(asker.refusal, UpstreamFailed) for asker in refused)


def test_a_route_says_how_long_its_backends_may_take() -> None:
    house = House(
        node("a"), routes=(route("m", to("any"), time_limits=TimeLimits(first_byte=2.0, total=9.0)),)
    )
    assert house.ask().grants[0].timeouts == Timeouts(5.0, 2.0, 600.0, 9.0)
    assert House(node("a")).ask().grants[0].timeouts is None


async def test_a_daily_allowance_sends_the_rest_to_the_fallback_until_it_is_renewed() -> None:
    hosted = to("node:hosted", tokens_per_day=100)
    house = House(
        node("hosted", capacity=9), node("own", capacity=9), routes=(route("m", hosted, to("node:own")),)
    )
    await house.ledger.open()

    async def ask(tokens: int) -> Asker:
        asker = house.ask(tokens=tokens)
        await until(lambda: bool(asker.grants))
        return asker

    askers = [await ask(40) for _ in range(3)]
    assert [asker.at[-1][0] for asker in askers] == ["hosted", "hosted", "own"]
    assert askers[2].grants[-1].executions == 1
    for asker in askers:
        asker.finish(Outcome(Ending.COMPLETED, Usage(20, 20)))
    assert (await ask(1)).at == [("own", "m")], "left alone until the day is over"
    house.clock.advance(86_400)
    assert (await ask(40)).at == [("hosted", "m")]
    await house.ledger.close()


def test_500_who_come_to_a_cold_model_load_it_once() -> None:
    house = House(node("a", capacity=64, loaded=frozenset()))
    askers = [house.ask() for _ in range(500)]
    assert sum(bool(asker.grants) for asker in askers) == 1
    assert askers[0].grants[0].watched
    askers[0].answers()
    assert sum(bool(asker.grants) for asker in askers) == 64
    assert not any(asker.grants[0].watched for asker in askers[1:64])


def test_when_the_one_that_loads_fails_or_leaves_another_does() -> None:
    house = House(node("a", capacity=64, loaded=frozenset()))
    first, second, third = (house.ask() for _ in range(3))
    first.finish(Outcome(Ending.CANCELLED, Usage(), status=0))
    assert second.grants[0].watched
    assert not third.grants
    second.fail(Lost("out of memory"))
    assert third.grants[0].watched


def test_a_warm_backend_goes_before_one_that_would_have_to_load() -> None:
    cold, warm = node("a", loaded=frozenset(), capacity=2), node("b", loaded=frozenset({"m"}), capacity=2)
    house = House(cold, warm)
    assert [house.ask().at[0][0] for _ in range(3)] == ["b", "b", "a"]
    assert not house.ask().grants, "it loads for one"


def test_a_backend_that_says_it_is_loading_is_asked_by_one_when_its_time_is_over() -> None:
    house = House(node("a", capacity=64))
    first = house.ask()
    first.fail(Loading("loading", 3.0))
    others = [house.ask() for _ in range(20)]
    house.clock.advance(2.9)
    assert not any(asker.grants for asker in others)
    assert len(first.grants) == 1
    house.clock.advance(0.2)
    assert len(first.grants) == 2
    assert not any(asker.grants for asker in others)
    first.answers()
    assert all(asker.grants for asker in others)
    assert first.grants[-1].executions == 1


def test_a_known_model_with_no_backend_that_works_names_which_and_since_when() -> None:
    house = House(node("a"), node("b"))
    house.clock.advance(10)
    house.down("a", "b")
    house.clock.advance(5)
    refusal = house.ask().refusal
    assert isinstance(refusal, Unavailable)
    assert refusal.code == "no_healthy_backend"
    assert "a can't be reached since " in refusal.message
    assert "(5 s)" in refusal.message


def test_a_session_stays_with_its_backend() -> None:
    house = House(
        *(node(f"n{number}", capacity=100) for number in range(4)),
        routes=(route("m", to("any", strategy=Strategy.SESSION)),),
    )
    homes: dict[str, set[str]] = {name: set() for name in ("one", "two", "three", "four", "five")}
    for name in [*homes] * 5:
        asker = house.ask(session=name)
        homes[name].add(asker.at[0][0])
        asker.finish()
    assert all(len(home) == 1 for home in homes.values())
    assert len({frozenset(home) for home in homes.values()}) > 1


def kept_failing(house: House, trials: int) -> None:
    """Node a fails, and fails each of its trials."""
    for _ in range(trials):
        while house.plane.health.slots["a"]:
            house.ask().fail(Lost("it answered 500"))
        while not house.plane.health.slots["a"]:
            house.clock.advance(0.5)
    while house.plane.health.slots["a"]:
        house.ask().fail(Lost("it answered 500"))


def test_a_backend_that_is_waited_for_is_tried_soon_although_it_failed_often() -> None:
    house = House(node("a", capacity=50))
    kept_failing(house, 5)
    house.clock.advance(6)
    assert not house.plane.health.slots["a"], "nobody waits: it is left alone"
    waits = house.ask()
    house.clock.advance(0.2)
    assert waits.at == [("a", "m")]


def test_one_that_is_left_alone_while_somebody_waits_is_tried_within_seconds() -> None:
    house = House(node("a", capacity=4))
    kept_failing(house, 4)
    while not house.plane.health.slots["a"]:
        house.clock.advance(0.5)
    trial, waits = house.ask(), house.ask()
    trial.fail(Lost("it answered 500"))
    house.clock.advance(6)
    assert waits.at == [("a", "m")]


def test_backends_that_are_waited_for_and_not_ready_are_asked_how_they_are() -> None:
    house = House(node("a"), node("b"), node("c"), node("d", "other"))
    asked: list[str] = []
    house.plane.lookout.on_awaited = asked.append
    house.down("b", "d")
    house.registry.update("c", NodeState.LOADING)
    house.ask()
    house.clock.advance(10)
    assert not asked, "nobody waits"
    waits = house.ask()
    house.clock.advance(0.2)
    assert sorted(asked) == ["b", "c"]
    house.clock.advance(3)
    assert sorted(asked) == ["b"] * 4 + ["c"] * 4, "each second, not with each request"
    waits.waiting.withdraw()
    house.clock.advance(10)
    assert sorted(asked) == ["b"] * 4 + ["c"] * 4
    assert not house.clock.pending


def test_a_backend_that_said_it_is_loading_is_asked_how_it_is_and_its_word_ends_the_waiting() -> None:
    house = House(node("a", capacity=4, loaded=frozenset({"m"})))
    asked: list[str] = []
    house.plane.lookout.on_awaited = asked.append
    waits = house.ask()
    waits.fail(Loading("loading", 50.0))
    other = house.ask()
    house.clock.advance(1.2)
    assert asked == ["a", "a"]
    house.registry.upsert(node("a", capacity=4, loaded=frozenset()))
    assert not other.grants
    house.registry.upsert(node("a", capacity=4, loaded=frozenset({"m"})))
    assert len(waits.at) == 2, "as soon as it says so, not after the 50 s"
    assert other.at == [("a", "m")]
