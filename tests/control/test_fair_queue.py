"""The fair queue: what it promises about shares, held by an auditor that only watches who waits and who is granted."""

from __future__ import annotations

import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.control.fair_queue import MOST_POOLS, FairQueue
from headrace.control.turns import CLASS_WEIGHTS
from headrace.control.waiter import Waiter
from headrace.domain.inference import Priority

M = frozenset({"m"})
SIZE = 8
WEIGHTS = {"one": 1.0, "two": 1.0, "three": 1.0, "heavy": 3.0}
POOLS = [frozenset(names) for names in ("a", "ab", "bc", "abc")]
NODES = ["n0", "n1"]


def waiter(key: str = "one", tokens: int = 10, model: str = "m", **given: object) -> Waiter:
    return Waiter(key=key, model=model, tokens=tokens, **given)  # type: ignore[arg-type]


def cost(waiter: Waiter) -> float:
    return max(1, waiter.tokens) / waiter.weight


@dataclass
class Race:
    """Two that wait for the same thing: how far what they get drifts apart while both do."""

    got: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0

    def add(self, amount: float) -> None:
        self.got += amount
        self.lowest, self.highest = min(self.lowest, self.got), max(self.highest, self.got)


@dataclass
class Races:
    """All pairs of those who wait for one thing."""

    largest: dict[Hashable, float] = field(default_factory=lambda: defaultdict(float))
    races: dict[tuple[Hashable, Hashable], Race] = field(default_factory=dict)

    def granted(self, who: Hashable, amount: float) -> None:
        for (first, second), race in self.races.items():
            if who in (first, second):
                race.add(amount if who == first else -amount)
                allowed = self.largest[first] + self.largest[second]
                assert race.highest - race.lowest <= allowed * (1 + 1e-9), (first, second, race, allowed)

    def keep(self, waiting: set[Hashable]) -> None:
        """Those in *waiting* still do; who doesn't runs no race, and begins a new one when it comes again."""
        pairs = set(itertools.combinations(sorted(waiting, key=repr), 2))
        self.races = {pair: self.races.get(pair) or Race() for pair in pairs}


class Auditor:
    """Watches one pool."""

    def __init__(self, models: frozenset[str]) -> None:
        self.models = models
        self.keys = {priority: Races() for priority in Priority}
        self.classes = Races()
        self.ahead: dict[
            Waiter, float
        ] = {}  # tokens of its own key that are before it, or were granted just before
        self.passed: dict[Waiter, Counter[str]] = {}
        self.newcomers: set[Waiter] = set()
        self.known: set[tuple[Priority, str]] = set()

    def pushed(self, new: Waiter, waiting: Iterable[Waiter]) -> None:
        if new.model not in self.models:
            return
        largest = self.keys[new.priority].largest
        largest[new.key] = max(largest[new.key], cost(new))
        weight = CLASS_WEIGHTS[new.priority]
        self.classes.largest[new.priority] = max(
            self.classes.largest[new.priority], cost(new) * new.weight / weight
        )
        own = [
            w for w in waiting if (w.key, w.priority) == (new.key, new.priority) and w.model in self.models
        ]
        self.ahead[new] = sum(cost(w) for w in own) + largest[new.key]
        self.passed[new] = Counter()
        if (new.priority, new.key) not in self.known:
            self.newcomers.add(new)
            self.known.add((new.priority, new.key))

    def granted(self, winner: Waiter) -> None:
        self.keys[winner.priority].granted(winner.key, cost(winner))
        self.classes.granted(winner.priority, max(1, winner.tokens) / CLASS_WEIGHTS[winner.priority])
        for waiter, passed in self.passed.items():
            if waiter.priority is not winner.priority or waiter.key == winner.key:
                continue
            passed[winner.key] += round(cost(winner) * 6)
            largest = self.keys[winner.priority].largest[winner.key]
            assert passed[winner.key] <= 6 * (self.ahead[waiter] + largest) + 6, (
                "a request is passed by too much"
            )
            if waiter in self.newcomers:
                assert passed[winner.key] <= 6 * largest + 1, "a new key is passed once by each other"

    def keep(self, waiting: Iterable[Waiter]) -> None:
        here = [w for w in waiting if w.model in self.models and not w.put_back]
        for priority, races in self.keys.items():
            races.keep({w.key for w in here if w.priority is priority})
        self.classes.keep({w.priority for w in here})
        self.passed = {w: passed for w, passed in self.passed.items() if w in here}
        self.newcomers &= self.passed.keys()


class Queue(RuleBasedStateMachine):
    """Any order of coming, leaving, granting and putting back, over pools that overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[Waiter] = FairQueue(SIZE)
        self.waiting: list[Waiter] = []  # in the order of coming
        self.spent: list[Waiter] = []
        self.auditors = [Auditor(models) for models in POOLS]

    def settle(self) -> None:
        for auditor in self.auditors:
            auditor.keep(self.waiting)

    @rule(
        key=st.sampled_from(list(WEIGHTS)),
        model=st.sampled_from("abc"),
        tokens=st.one_of(st.integers(0, 10), st.integers(1, 5000)),
        priority=st.sampled_from([Priority.NORMAL, Priority.NORMAL, Priority.LOW, Priority.HIGH]),
    )
    def push(self, key: str, model: str, tokens: int, priority: Priority) -> None:
        new = waiter(key, tokens, model, priority=priority, weight=WEIGHTS[key], since=float(len(self.spent)))
        before = Counter(w.key for w in self.waiting if not w.put_back)
        gone = self.queue.push(new)
        if gone is None:
            assert before.total() < SIZE
        elif gone is new:
            assert before.total() == SIZE
            assert before[key] + 1 >= max(before.values()), (
                "one that has its share is refused, not one that hasn't"
            )
        else:
            assert before.total() == SIZE
            assert before[gone.key] == max(before.values()) > before[key] + 1
            same = [w for w in self.waiting if w.key == gone.key and not w.put_back]
            assert gone.priority == min(w.priority for w in same)
            assert gone is [w for w in same if w.priority is gone.priority][-1]
            self.waiting.remove(gone)
            self.settle()
        if gone is not new:
            for auditor in self.auditors:
                auditor.pushed(new, [w for w in self.waiting if not w.put_back])
            self.waiting.append(new)
            assert 1 <= self.queue.position(new) <= self.queue.depth
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        leaver = data.draw(st.sampled_from(self.waiting))
        assert self.queue.remove(leaver)
        assert not self.queue.remove(leaver)
        self.waiting.remove(leaver)
        self.settle()

    @rule(auditor=st.integers(0, len(POOLS) - 1), node=st.sampled_from(NODES))
    def grant(self, auditor: int, node: str) -> None:
        models = POOLS[auditor]
        winner = self.queue.pop(models, node)
        able = [w for w in self.waiting if w.model in models and not (w.put_back and node in w.avoid)]
        if winner is None:
            assert not able, "a place stays free only when it suits nobody"
            return
        assert winner in able
        assert self.queue.position(winner) == 0
        if any(w.put_back for w in able):
            assert winner is next(w for w in able if w.put_back), "those put back go first, in their order"
        else:
            own = (w for w in able if (w.key, w.priority) == (winner.key, winner.priority))
            assert winner is next(own), "of one key, the oldest goes first"
            self.auditors[auditor].granted(winner)
        self.waiting.remove(winner)
        self.spent.append(winner)
        self.settle()

    @precondition(lambda self: self.spent)
    @rule(data=st.data(), avoid=st.sets(st.sampled_from(NODES)))
    def come_back(self, data: st.DataObject, avoid: set[str]) -> None:
        again = data.draw(st.sampled_from(self.spent))
        self.spent.remove(again)
        again.avoid = frozenset(avoid)
        self.queue.put_back(again)
        self.waiting.append(again)
        assert self.queue.position(again) == 1
        self.settle()

    @invariant()
    def the_books_agree(self) -> None:
        assert self.queue.depth == len(self.waiting)
        assert self.queue.models() == {w.model for w in self.waiting}
        for priority in Priority:
            assert self.queue.waiting(priority) == sum(w.priority is priority for w in self.waiting)
        for model in "abc":
            awaiting = [w for w in self.waiting if w.model == model]
            assert set(self.queue.waiting_for(model)) == set(awaiting)
            assert self.queue.awaits(model) == any(not w.put_back for w in awaiting)
        assert all(1 <= self.queue.position(w) <= len(self.waiting) for w in self.waiting)
        assert self.queue.remembered <= len(POOLS) * len(Priority) * (2 * SIZE + 1)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)


def drain(queue: FairQueue[Waiter], models: frozenset[str] = M) -> list[Waiter]:
    return list(iter(lambda: queue.pop(models), None))


REQUESTS = st.lists(st.tuples(st.sampled_from(["one", "two", "three"]), st.integers(1, 1000)), max_size=60)


@given(REQUESTS)
def test_two_keys_that_both_wait_never_differ_by_more_than_a_request_of_each(
    requests: list[tuple[str, int]],
) -> None:
    queue: FairQueue[Waiter] = FairQueue(100)
    left: Counter[str] = Counter()
    largest: dict[str, int] = defaultdict(int)
    for key, tokens in requests:
        queue.push(waiter(key, tokens))
        left[key] += 1
        largest[key] = max(largest[key], tokens)
    got: Counter[str] = Counter()
    while (winner := queue.pop(M)) is not None:
        got[winner.key] += winner.tokens
        for one, other in itertools.combinations([key for key in left if left[key]], 2):
            assert abs(got[one] - got[other]) <= largest[one] + largest[other]
        left[winner.key] -= 1
    assert not left.total()


@given(st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=1, max_size=40))
def test_the_position_is_kept_where_requests_are_alike(keys: list[str]) -> None:
    queue: FairQueue[Waiter] = FairQueue(100)
    for key in keys:
        queue.push(waiter(key))
    told = {w: queue.position(w) for w in queue.waiting_for("m")}
    for served, winner in enumerate(drain(queue), start=1):
        assert served <= told[winner]


def test_a_flood_costs_another_key_one_request_for_each_of_its_own() -> None:
    queue: FairQueue[Waiter] = FairQueue(1000)
    for _ in range(300):
        queue.push(waiter("flood", 100))
    for _ in range(5):
        queue.pop(M)
    calm = [waiter("calm", 100) for _ in range(10)]
    for one in calm:
        queue.push(one)
    assert queue.position(calm[0]) == 2
    order = [w.key for w in drain(queue)]
    assert order[:20] == ["calm", "flood"] * 10
    assert order[20:] == ["flood"] * 285


def test_who_asks_for_much_gets_as_many_tokens_as_who_asks_for_little() -> None:
    queue: FairQueue[Waiter] = FairQueue(1000)
    for _ in range(20):
        queue.push(waiter("large", 1000))
    for _ in range(200):
        queue.push(waiter("small", 100))
    got: Counter[str] = Counter()
    for _ in range(110):
        winner = queue.pop(M)
        assert winner is not None
        got[winner.key] += winner.tokens
    assert abs(got["large"] - got["small"]) <= 1100


def test_time_without_requests_is_not_saved_up() -> None:
    queue: FairQueue[Waiter] = FairQueue(1000)
    early = waiter("early")
    queue.push(early)
    for _ in range(100):
        queue.push(waiter("busy"))
    queue.remove(early)
    for _ in range(50):
        queue.pop(M)
    for _ in range(20):
        queue.push(waiter("early"))
    first = [w.key for w in itertools.islice(iter(lambda: queue.pop(M), None), 20)]
    assert abs(first.count("early") - first.count("busy")) <= 2


def test_who_has_one_request_at_a_time_does_not_get_round_its_share() -> None:
    """Its key is idle between each grant and the next request: what it was granted isn't forgotten for that."""
    queue: FairQueue[Waiter] = FairQueue(1000)
    for _ in range(400):
        queue.push(waiter("small", 10))
    queue.push(waiter("large", 500))
    got: Counter[str] = Counter()
    for _ in range(200):
        winner = queue.pop(M)
        assert winner is not None
        got[winner.key] += winner.tokens
        if winner.key == "large":
            queue.push(waiter("large", 500))
    assert abs(got["large"] - got["small"]) <= 510


def test_what_a_key_gets_elsewhere_does_not_count_and_what_cannot_run_blocks_nothing() -> None:
    queue: FairQueue[Waiter] = FairQueue(1000)
    for _ in range(100):
        queue.push(waiter("both", model="x"))
    for _ in range(20):
        queue.push(waiter("both", model="y"))
        queue.push(waiter("one", model="y"))
    for _ in range(50):
        assert queue.pop(frozenset("x")) is not None
    first = [w.key for w in itertools.islice(iter(lambda: queue.pop(frozenset("y")), None), 20)]
    assert first.count("both") == first.count("one") == 10
    assert queue.pop(frozenset("z")) is None


def test_two_models_of_one_pool_are_not_two_shares() -> None:
    queue: FairQueue[Waiter] = FairQueue(1000)
    for _ in range(20):
        for model in "xyz":
            queue.push(waiter("three models", model=model))
        queue.push(waiter("one model", model="x"))
    pool = frozenset("xyz")
    first = [w.key for w in itertools.islice(iter(lambda: queue.pop(pool), None), 20)]
    assert first.count("one model") == 10


@pytest.mark.parametrize(
    ("high", "low", "ratio"), [("HIGH", "NORMAL", 8), ("NORMAL", "LOW", 8), ("HIGH", "LOW", 64)]
)
def test_a_higher_class_gets_its_multiple_and_a_lower_one_does_not_starve(
    high: str, low: str, ratio: int
) -> None:
    queue: FairQueue[Waiter] = FairQueue(1000)
    for _ in range(10):
        queue.push(waiter("same", priority=Priority[low]))
    for _ in range(5 * ratio):
        queue.push(waiter("same", priority=Priority[high]))
    names = [w.priority.name for w in drain(queue)]
    places = [place for place, name in enumerate(names) if name == low]
    assert places[:4] == [ratio * (n + 1) + n for n in range(4)]


def test_a_class_does_not_save_up_either() -> None:
    queue: FairQueue[Waiter] = FairQueue(1000)
    for _ in range(200):
        queue.push(waiter(priority=Priority.NORMAL))
    for _ in range(100):
        queue.pop(M)
    for _ in range(100):
        queue.push(waiter(priority=Priority.LOW))
    names = [w.priority for w in drain(queue)][:90]
    assert names.count(Priority.LOW) == 10


def test_a_key_gets_its_weight_in_tokens() -> None:
    queue: FairQueue[Waiter] = FairQueue(1000)
    for _ in range(100):
        queue.push(waiter("heavy", weight=3.0))
        queue.push(waiter("light"))
    names = [w.key for w in drain(queue)][:100]
    assert names.count("heavy") == 75


def test_a_flooder_cannot_keep_others_out_of_a_full_queue() -> None:
    queue: FairQueue[Waiter] = FairQueue(10)
    flood = [waiter("flood") for _ in range(10)]
    assert all(queue.push(one) is None for one in flood)
    extra = waiter("flood")
    assert queue.push(extra) is extra
    gone = [queue.push(waiter(key)) for key in ("a", "b", "a", "b", "a", "b")]
    assert gone == [*reversed(flood[4:])], "its newest requests give way"
    late = waiter("a")
    assert queue.push(late) is late, "four and three and three: all have their share"
    assert queue.push(waiter("c")) is flood[3]


def test_of_a_flooder_the_lowest_class_gives_way() -> None:
    queue: FairQueue[Waiter] = FairQueue(4)
    low = waiter("flood", priority=Priority.LOW)
    queue.push(low)
    for _ in range(3):
        queue.push(waiter("flood", priority=Priority.HIGH))
    assert queue.push(waiter("a")) is low


def test_nobody_waits_in_a_queue_of_no_size_but_those_put_back() -> None:
    queue: FairQueue[Waiter] = FairQueue(0)
    one = waiter()
    assert queue.push(one) is one
    queue.put_back(one)
    assert queue.pop(M) is one


def test_the_oldest_is_known_by_the_times_given() -> None:
    queue: FairQueue[Waiter] = FairQueue(10)
    assert queue.oldest_since() is None
    first = waiter(since=1.0, priority=Priority.LOW)
    queue.push(first)
    queue.push(waiter(since=2.0))
    assert queue.oldest_since() == 1.0
    queue.remove(first)
    assert queue.oldest_since() == 2.0


def test_keys_that_come_and_go_are_forgotten() -> None:
    queue: FairQueue[Waiter] = FairQueue(10)
    queue.pop(M)
    queue.push(waiter("stays", 1_000_000))
    queue.push(waiter("stays", 1_000_000))
    queue.pop(M)
    for number in range(1000):
        queue.push(waiter(f"key {number}", 1000))
        assert queue.pop(M) is not None
        leaver = waiter(f"leaver {number}")
        queue.push(leaver)
        queue.remove(leaver)
        assert queue.remembered <= 21
    drain(queue)
    assert queue.remembered == 0


def test_pools_that_come_and_go_are_forgotten() -> None:
    queue: FairQueue[Waiter] = FairQueue(10)
    queue.push(waiter())
    for number in range(3 * MOST_POOLS):
        queue.push(waiter("other", model=f"x{number}"))
        assert queue.pop(frozenset({f"x{number}"})) is not None
        queue.push(waiter("other", model="m"))
        queue.remove(queue.waiting_for("m")[-1])
    assert len(queue._pools) <= MOST_POOLS
    assert queue.pop(M) is not None


def calls(work: Callable[[], object]) -> int:
    """How many functions *work* calls, those written in C included."""
    count = 0

    def note(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def test_the_work_does_not_grow_with_those_who_wait_nor_with_their_keys() -> None:
    def cycle(keys: int, each: int) -> int:
        queue: FairQueue[Waiter] = FairQueue(keys * each + 3)
        for _ in range(each):
            for key in range(keys):
                queue.push(waiter(f"key {key}"))
        queue.pop(M)

        def work() -> None:
            new, leaver = waiter("new"), waiter("leaver")
            queue.push(new)
            queue.push(leaver)
            queue.position(new)
            queue.oldest_since()
            queue.remove(leaver)
            queue.pop(M)
            queue.pop(M)

        work()
        return min(calls(work) for _ in range(3))  # a finalizer that runs in between is counted, too

    small = cycle(10, 2)
    assert cycle(10, 500) <= small
    assert cycle(2000, 2) <= small


def test_a_full_queue_refuses_and_makes_room_without_looking_through_it() -> None:
    def cycle(each: int) -> int:
        queue: FairQueue[Waiter] = FairQueue(10 * each)
        for number in range(10 * each):
            queue.push(waiter(f"key {number % 5}"))
        return calls(lambda: [queue.push(waiter(key)) for key in ("key 1", "new", "other")])

    assert cycle(1000) <= cycle(10)
