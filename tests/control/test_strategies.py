"""Each strategy: what it chooses, and what holds of all of them, whatever there is to choose from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.strategies import Candidates, Cursor, Load, Wish, choose
from headrace.control.strategies.choice import EXPLORED, FEW, REMEMBERED
from headrace.domain.fleet import Node
from headrace.domain.routing import Strategy

MODEL = "m"
AFFINITY = (Strategy.SESSION, Strategy.PREFIX)
SPREADING = tuple(one for one in Strategy if one not in AFFINITY)


def node(name: str, slots: int = 4, *, weight: float = 1.0, cold: bool = False) -> Node:
    return Node(
        name, "direct", capacity=slots, weight=weight, loaded=frozenset() if cold else frozenset({MODEL})
    )


def fleet(count: int, slots: int = 4) -> list[Node]:
    return [node(f"n{number}", slots) for number in range(count)]


def loaded(nodes: Iterable[Node], busy: dict[str, int] | None = None) -> Load:
    """All of them may run what they have the capacity for."""
    load = Load()
    for one in nodes:
        load.allow(one.id, one.capacity)
    for name, count in (busy or {}).items():
        for _ in range(count):
            load.take(name)
    return load


class Choosing:
    """Chooses again and again, and takes the slots."""

    def __init__(self, nodes: Sequence[Node], load: Load, strategy: Strategy, **weights: float) -> None:
        self.candidates = Candidates(nodes, MODEL, weights)
        self.load = load
        self.cursor = Cursor()
        self.strategy = strategy

    def next(self, key: int = 1, *avoid: str, taking: bool = True) -> str:
        wish = Wish(self.strategy, MODEL, f"session {key}", key)
        chosen = choose(self.candidates, wish, self.load, self.cursor, avoid)
        if chosen is None:
            return ""
        if taking:
            self.load.take(chosen.id)
        return chosen.id

    def row(self, count: int) -> list[str]:
        """What is chosen, one after the other, while nothing becomes busier."""
        return [self.next(taking=False) for _ in range(count)]


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Node], Load, frozenset[str]]:
    """Up to two dozen backends: some are down, full, used beyond what they are allowed, cold, without weight, unknown to the load,
    or to be avoided."""
    load, nodes = Load(), []
    for number in range(draw(st.integers(0, 24))):
        one = node(
            f"n{number}",
            draw(st.integers(1, 9)),
            weight=draw(st.sampled_from([0.0, 0.5, 1.0, 7.0])),
            cold=draw(st.booleans()),
        )
        nodes.append(one)
        slots = draw(st.none() | st.integers(0, 3))
        if slots is not None:
            load.allow(one.id, slots)
        for _ in range(draw(st.integers(0, 4))):
            load.take(one.id)
        if draw(st.booleans()):
            load.observe(one.id, MODEL, draw(st.floats(0.0, 9.0)), draw(st.none() | st.floats(0.0, 1.0)))
    avoid = draw(st.frozensets(st.sampled_from([*(one.id for one in nodes), "gone"]), max_size=5))
    return draw(st.permutations(nodes)), load, avoid


def usable(nodes: Iterable[Node], load: Load, avoid: Iterable[str]) -> list[Node]:
    return [
        one
        for one in nodes
        if load.busy.get(one.id, 0) < load.slots.get(one.id, 0) and one.id not in set(avoid)
    ]


@pytest.mark.req("C14", "C15")
@pytest.mark.parametrize("strategy", Strategy)
@given(fleets(), st.integers(0, 2**64))
def test_one_with_a_free_slot_is_chosen_whenever_there_is_one_and_a_warm_one_first(
    strategy: Strategy, some: tuple[list[Node], Load, frozenset[str]], key: int
) -> None:
    nodes, load, avoid = some
    choosing = Choosing(nodes, load, strategy)
    while free := usable(nodes, load, avoid):
        warm = [one.id for one in free if not one.is_cold(MODEL)]
        assert choosing.next(key, *avoid) in (warm or [one.id for one in free])
    assert choosing.next(key, *avoid) == ""


@pytest.mark.parametrize("strategy", Strategy)
@given(fleets(), st.lists(st.integers(0, 5), max_size=20))
def test_the_same_calls_choose_the_same(
    strategy: Strategy, some: tuple[list[Node], Load, frozenset[str]], keys: list[int]
) -> None:
    nodes, load, avoid = some
    one, other = Choosing(nodes, load, strategy), Choosing(nodes, load, strategy)
    for key in keys:
        assert one.next(key, *avoid, taking=False) == other.next(key, *avoid, taking=False)


@pytest.mark.req("C14")
@given(fleets())
def test_round_robin_visits_all_before_it_comes_back(some: tuple[list[Node], Load, frozenset[str]]) -> None:
    nodes, load, _ = some
    free = usable(nodes, load, ())
    warm = [one.id for one in free if not one.is_cold(MODEL)] or [one.id for one in free]
    choosing = Choosing(nodes, load, Strategy.ROUND_ROBIN)
    assert sorted(choosing.row(len(warm))) == sorted(warm)
    assert choosing.row(len(warm)) == choosing.row(len(warm))


@given(fleets())
def test_least_busy_has_the_most_free_slots_of_all(some: tuple[list[Node], Load, frozenset[str]]) -> None:
    nodes, load, _ = some
    nodes = [one for one in nodes if not one.is_cold(MODEL)]
    free = {one.id: load.slots[one.id] - load.busy.get(one.id, 0) for one in usable(nodes, load, ())}
    chosen = Choosing(nodes, load, Strategy.LEAST_BUSY).next(taking=False)
    assert free.get(chosen, 0) == max(free.values(), default=0)


def test_of_equally_busy_ones_each_has_its_turn() -> None:
    nodes = fleet(5)
    choosing = Choosing(nodes, loaded(nodes, {"n2": 1}), Strategy.LEAST_BUSY)
    assert choosing.row(6) == ["n0", "n1", "n3", "n4", "n0", "n1"]


SLOW, FAST = (2.0, 0.05), (0.1, 0.01)


@pytest.mark.req("C17")
@pytest.mark.parametrize(
    ("paces", "busy", "chosen"),
    [
        ({"n0": SLOW, "n1": FAST, "n2": SLOW}, {}, "n1"),
        ({"n0": SLOW, "n1": FAST, "n2": SLOW}, {"n1": 3}, "n1"),  # with four it is still faster
        ({"n0": SLOW, "n1": FAST, "n2": SLOW}, {"n1": 4}, "n0"),  # full
        ({"n0": SLOW, "n1": (1.9, 0.05), "n2": (2.5, 0.05)}, {"n1": 1}, "n0"),  # not any more
        ({"n0": (0.2, 0.1), "n1": (1.0, 0.01), "n2": SLOW}, {}, "n1"),  # slow to begin, and still sooner done
        ({"n0": FAST, "n1": FAST}, {}, "n2"),  # nobody knows yet
        ({"n0": FAST, "n1": FAST}, {"n2": 1}, "n0"),  # somebody is about to know
        ({}, {"n0": 1, "n1": 1}, "n2"),
    ],
)
def test_latency_chooses_what_is_expected_first(
    paces: dict[str, tuple[float, float]], busy: dict[str, int], chosen: str
) -> None:
    nodes = fleet(3)
    load = loaded(nodes, busy)
    for name, pace in paces.items():
        load.observe(name, MODEL, *pace)
    same = {name for name, pace in paces.items() if pace == paces.get(chosen) and name not in busy}
    assert Choosing(nodes, load, Strategy.LATENCY).next(taking=False) in {chosen} | same


@pytest.mark.req("C17")
def test_one_that_was_slow_is_tried_now_and_then() -> None:
    nodes = fleet(3)
    load = loaded(nodes)
    for name, pace in zip(("n0", "n1", "n2"), (FAST, SLOW, SLOW), strict=True):
        load.observe(name, MODEL, *pace)
    seen = Counter(Choosing(nodes, load, Strategy.LATENCY).row(20 * EXPLORED))
    assert seen["n0"] >= 19 * EXPLORED
    assert set(seen) == {"n0", "n1", "n2"}


@pytest.mark.req("C17")
def test_of_many_the_fastest_is_found_and_kept_to() -> None:
    nodes = fleet(200)
    load = loaded(nodes)
    for one in nodes:
        load.observe(one.id, MODEL, *(FAST if one.id == "n77" else SLOW))
    choosing = Choosing(nodes, load, Strategy.LATENCY)
    choosing.row(200)
    assert Counter(choosing.row(EXPLORED))["n77"] >= EXPLORED - 1


@pytest.mark.req("C18")
@pytest.mark.parametrize("count", [3, 10, 100, 1000])
@pytest.mark.parametrize("full", [0.0, 0.5, 0.9])
def test_work_is_shared_by_weight_among_those_that_have_room(count: int, full: float) -> None:
    nodes = [node(f"n{number}", weight=1.0 + number % 4) for number in range(count)]
    without = [one for number, one in enumerate(nodes) if number * 7 % 10 < full * 10]
    choosing = Choosing(nodes, loaded(nodes, {one.id: 4 for one in without}), Strategy.WEIGHTED)
    left = {one.id: one.weight for one in nodes if one not in without}
    rounds = 200 if count < 100 else 20
    weight = sum(left.values())
    chosen = Counter(choosing.row(round(rounds * weight)))
    for name, its in left.items():
        assert chosen[name] == pytest.approx(rounds * its, rel=0.15), name
    if count == 3:
        assert chosen == pytest.approx({name: rounds * its for name, its in left.items()}, rel=0.02)


@pytest.mark.req("C18")
@pytest.mark.parametrize("count", [4, 40])
def test_a_routes_weights_go_before_the_backends_own_and_nothing_means_nothing(count: int) -> None:
    nodes = fleet(count)
    choosing = Choosing(nodes, loaded(nodes), Strategy.WEIGHTED, n0=0.0, n1=3.0)
    chosen = Counter(choosing.row(300 * (count + 1)))
    assert chosen["n0"] == 0
    assert chosen["n1"] == pytest.approx(3 * chosen["n2"], rel=0.05)


@pytest.mark.parametrize("count", [4, 40])
def test_one_without_weight_is_better_than_none(count: int) -> None:
    nodes = fleet(count)
    weights = {one.id: 0.0 for one in nodes}
    assert Choosing(nodes, loaded(nodes), Strategy.WEIGHTED, **weights).next() != ""
    weights["n3"] = 1.0
    full = loaded(nodes, {"n3": 4})
    assert Choosing(nodes, full, Strategy.WEIGHTED, **weights).next() not in ("", "n3")


def test_weights_without_bounds_have_a_sum() -> None:
    nodes = [node(f"n{number}", weight=1e308) for number in range(40)]
    assert len(set(Choosing(nodes, loaded(nodes), Strategy.WEIGHTED).row(400))) == 40


@pytest.mark.parametrize("strategy", AFFINITY)
def test_a_key_stays_where_it_belongs_and_other_keys_belong_elsewhere(strategy: Strategy) -> None:
    nodes = fleet(8, slots=16)
    load = loaded(nodes)
    for _ in range(4):
        homes = [Choosing(nodes, load, strategy).next(key, taking=False) for key in range(1, 800)]
        again = [Choosing(nodes[::-1], load, strategy).next(key, taking=False) for key in range(1, 800)]
        assert homes == again
        shares = Counter(homes)
        assert min(shares.values()) > 60
        assert max(shares.values()) < 150


@pytest.mark.parametrize("strategy", AFFINITY)
def test_without_a_key_the_least_busy_one_is_chosen(strategy: Strategy) -> None:
    nodes = fleet(3)
    load = loaded(nodes, {"n0": 2, "n1": 1, "n2": 2})
    assert choose(Candidates(nodes, MODEL), Wish(strategy, MODEL), load, Cursor()) == nodes[1]


@pytest.mark.parametrize("strategy", AFFINITY)
@pytest.mark.parametrize("count", [2, 5, 12, 60])
def test_one_that_comes_or_goes_moves_its_share_of_the_keys_and_no_others(
    strategy: Strategy, count: int
) -> None:
    nodes = [node(f"n{number}", (4, 16)[number % 2]) for number in range(count + 1)]
    load = loaded(nodes)
    with_it, without = Choosing(nodes, load, strategy), Choosing(nodes[:-1], load, strategy)
    keys = range(1, 2000)
    moved = 0
    for key in keys:
        home, other = with_it.next(key, taking=False), without.next(key, taking=False)
        assert home in (other, nodes[-1].id)
        moved += home != other
    share = nodes[-1].capacity / sum(one.capacity for one in nodes)
    assert 0.4 * share < moved / len(keys) < 1.7 * share


@pytest.mark.parametrize("strategy", AFFINITY)
@given(
    slots=st.lists(st.integers(1, 12), min_size=1, max_size=FEW),
    keys=st.lists(st.integers(1, 4), max_size=100),
    ended=st.lists(st.integers(0, 3), max_size=100),
)
def test_none_gets_more_than_its_part_of_what_runs_a_quarter_and_one(
    strategy: Strategy, slots: list[int], keys: list[int], ended: list[int]
) -> None:
    nodes = [node(f"n{number}", its) for number, its in enumerate(slots)]
    load = loaded(nodes)
    choosing = Choosing(nodes, load, strategy)
    for position, key in enumerate(keys):
        name = choosing.next(key)
        if not name:
            break
        total = sum(load.busy.values())
        assert load.busy[name] <= ceil(1.25 * total * load.slots[name] / sum(slots)) + 1
        if position < len(ended) and ended[position] == 0:
            load.give_back(name)


@pytest.mark.parametrize("strategy", AFFINITY)
def test_a_key_that_many_have_belongs_to_several_and_a_rare_one_stays_where_it_was(
    strategy: Strategy,
) -> None:
    nodes = fleet(8, slots=100)
    load = loaded(nodes, {one.id: 20 for one in nodes})
    choosing = Choosing(nodes, load, strategy)
    rare = [choosing.next(key, taking=False) for key in range(2, 200)]
    crowd = Counter(choosing.next(1) for _ in range(30))
    assert len(crowd) == 3
    assert max(crowd.values()) <= 13
    assert [choosing.next(key, taking=False) for key in range(2, 200)] == rare


def test_the_latest_keys_are_counted_and_older_ones_forgotten() -> None:
    cursor = Cursor()
    assert [cursor.share(1) for _ in range(5)] == [0.0, 0.0, 0.0, 1.0, 1.0]
    for key in range(2, 2 + REMEMBERED):
        assert cursor.share(key) == 0.0
    assert len(cursor._latest) == len(cursor._counts) == REMEMBERED
    assert cursor.share(1) == 0.0


@pytest.mark.parametrize("strategy", AFFINITY)
def test_what_one_cannot_take_is_spread_over_all_others(strategy: Strategy) -> None:
    nodes = fleet(8, slots=1000)
    load = loaded(nodes, {"n3": 1000})
    away = Choosing(nodes, load, strategy)
    mine = Choosing(nodes, loaded(nodes), strategy)
    others = Counter(
        away.next(key, taking=False) for key in range(1, 3000) if mine.next(key, taking=False) == "n3"
    )
    assert len(others) == 7
    assert max(others.values()) < 2.5 * sum(others.values()) / 7


@pytest.mark.parametrize("strategy", AFFINITY)
def test_a_key_belongs_to_one_of_those_that_hold_the_model_while_one_of_them_has_room(
    strategy: Strategy,
) -> None:
    nodes = [node(f"n{number}", cold=number > 2) for number in range(60)]
    load = loaded(nodes)
    homes = {key: Choosing(nodes, load, strategy).next(key, taking=False) for key in range(1, 100)}
    assert set(homes.values()) == {"n0", "n1", "n2"}
    fewer = [node(one.id, cold=one.id not in ("n0", "n1")) for one in nodes]
    for key, home in homes.items():
        now = Choosing(fewer, load, strategy).next(key, taking=False)
        assert now == home if home != "n2" else now in ("n0", "n1")


@pytest.mark.parametrize("strategy", AFFINITY)
def test_a_key_has_a_place_of_its_own_even_where_nearly_all_backends_are_down(strategy: Strategy) -> None:
    nodes = fleet(200)
    load = loaded(nodes)
    for one in nodes[4:]:
        load.allow(one.id, 0)
    choosing = Choosing(nodes, load, strategy)
    homes = [choosing.next(key, taking=False) for key in range(1, 200)]
    assert homes == [choosing.next(key, taking=False) for key in range(1, 200)]
    assert set(homes) == {"n0", "n1", "n2", "n3"}


def test_candidates_know_when_a_seat_is_anothers() -> None:
    nodes = fleet(3)
    load = loaded(nodes)
    choosing = Choosing(nodes, load, Strategy.ROUND_ROBIN)
    choosing.next()
    load.forget("n1")
    load.allow("stranger", 4)
    assert set(choosing.row(10)) == {"n0", "n2"}
    assert choose(choosing.candidates, Wish(Strategy.ROUND_ROBIN, MODEL), Load(), Cursor()) is None


def test_candidates_say_who_they_are() -> None:
    candidates = Candidates(fleet(2), MODEL)
    assert "n1" in candidates
    assert "n2" not in candidates
    assert [one.id for one in candidates.nodes] == ["n0", "n1"]


def test_a_ring_is_made_once_for_the_same_backends() -> None:
    nodes = fleet(3)
    before = Candidates(nodes, MODEL)
    ring = before.ring(warm=False)
    assert before.ring(warm=True) is ring
    unchanged = Candidates([node("n2"), node("n1"), node("n0")], MODEL, {}, before)
    assert unchanged.ring(warm=False) is ring
    cold = Candidates([node("n0", cold=True), *nodes[1:]], MODEL, {}, unchanged)
    assert cold.ring(warm=False) is ring
    assert cold.ring(warm=True) is not ring
