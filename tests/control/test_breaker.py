"""The circuit breaker: the table in docs/health.md, row by row, and its rules on numbers and times."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.breaker import Breaker, BreakerPolicy, BreakerState, weight_of
from headrace.ports.connector import Broken, Busy, Failure, Loading, Lost, NotSent

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "health.md"
POLICY = BreakerPolicy()
CAPACITY = 8
LOST = Lost("it broke off")
GONE = NotSent("no connection")


@dataclass
class Stage:
    """A breaker, and the time."""

    breaker: Breaker = field(default_factory=lambda: Breaker(POLICY, lambda: 0.0))
    now: float = 100.0

    def succeed(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.succeeded(self.now, self.now)

    def fail(self, times: int = 1, failure: Failure = LOST) -> None:
        for _ in range(times):
            self.breaker.failed(failure, self.now, self.now)

    def wait(self, seconds: float) -> int:
        self.now += seconds
        return self.breaker.allowed(self.now, CAPACITY)

    def due_in(self) -> float:
        at = self.breaker.changes_at(self.now, CAPACITY)
        assert at is not None
        return at - self.now

    @property
    def state(self) -> BreakerState:
        self.breaker.allowed(self.now, CAPACITY)
        return self.breaker.state


def stage(state: str, because: Failure = LOST) -> Stage:
    """One in that state; an open one for the second time, and 1.5 of 2 seconds ago."""
    made = Stage()
    if state != "closed":
        made.fail(5, because)
        made.wait(1)
    if state == "open":
        made.fail(1, because)
        made.wait(1.5)
    if state == "recovering":
        made.succeed()
    assert made.state == state
    return made


def after(act: Callable[[Stage], object], because: Failure = LOST) -> Callable[[str], Stage]:
    def run(state: str) -> Stage:
        made = stage(state, because)
        act(made)
        return made

    return run


def busy(it: Stage) -> None:
    it.fail(9, Busy("full"))
    it.fail(9, Loading("soon"))


ROWS: dict[str, Callable[[str], Stage]] = {
    "a success": after(lambda s: s.succeed()),
    "a success more, and it has all of its slots": after(lambda s: s.succeed(CAPACITY)),
    "a failure": after(lambda s: s.fail()),
    "a failure more, and it is too much": after(lambda s: s.fail(5)),
    "our key is refused": after(lambda s: s.fail(1, NotSent("401", refused_key=True))),
    "it is busy, or loads": after(busy),
    "what began before the trial succeeds": after(lambda s: s.breaker.succeeded(100.5, s.now)),
    "what began before the trial fails": after(lambda s: s.breaker.failed(LOST, 100.5, s.now)),
    "a check is answered, after it couldn't be reached": after(lambda s: s.breaker.probed(True, s.now), GONE),
    "a check is answered, after it failed otherwise": after(lambda s: s.breaker.probed(True, s.now)),
    "a check isn't answered": after(lambda s: s.breaker.probed(False, s.now)),
    "it is ready again, after it wasn't": after(lambda s: s.breaker.returned(s.now)),
    "its pause is over": after(lambda s: s.wait(s.due_in())),
    "its slow start is over": after(lambda s: s.wait(POLICY.ramp_s)),
}


def documented() -> list[tuple[str, str, str]]:
    """What happens, in which state, and what the state is then; as the document has it."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    head = next(place for place, line in enumerate(lines) if line.startswith("| what happens | "))
    states = [cell.strip() for cell in lines[head].split("|")[2:-1]]
    cells = []
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        event, *results = (cell.strip() for cell in line.split("|")[1:-1])
        cells += [(event, state, result) for state, result in zip(states, results, strict=True)]
    return cells


def test_the_table_has_every_state_and_every_event() -> None:
    assert {event for event, _, _ in documented()} == set(ROWS)
    assert {state for _, state, _ in documented()} == set(BreakerState)


@pytest.mark.parametrize(("event", "state", "result"), [row for row in documented() if row[2] != "-"])
def test_each_row_of_the_table(event: str, state: str, result: str) -> None:
    assert ROWS[event](state).state == result


def test_the_numbers_in_the_document_are_the_defaults() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for said, number in (
        (r"\*\*Too much\*\* is (\d+) failures", POLICY.in_a_row),
        (r"in the last (\d+) seconds, where that is", POLICY.window_s),
        (r"where that is (\d+) at least", POLICY.least),
        (r"\*\*The pause\*\* is (\d+) second at first", POLICY.first_pause_s),
        (r"trial fails, (\d+) seconds at most", POLICY.longest_pause_s),
        (r"the pause is (\d+) seconds at most, or a tenth", POLICY.awaited_pause_s),
        (r"to all slots after (\d+) seconds", POLICY.ramp_s),
    ):
        found = re.search(said, text)
        assert found is not None, said
        assert float(found[1]) == number
    assert POLICY.calm_s == 60  # "worked for a minute"
    assert POLICY.awaited_share == 0.1  # "a tenth of the time"
    assert POLICY.share == 0.5  # "half of what ended"


@pytest.mark.parametrize(
    ("failure", "weight"),
    [
        (NotSent("refused"), 1),
        (NotSent("401", refused_key=True), POLICY.in_a_row),
        (LOST, 1),
        (Lost("slow", timed_out=True), 2),
        (Broken("cut"), 1),
        (Broken("stalled", timed_out=True), 2),
        (Busy("full"), 0),
        (Loading("soon", 3.0), 0),
    ],
)
def test_how_much_a_failure_counts(failure: Failure, weight: float) -> None:
    assert weight_of(failure) == weight


class TestOpening:
    def test_a_success_between_failures_begins_the_count_again(self) -> None:
        it = Stage()
        it.fail(4)
        it.succeed()
        it.fail(4)
        assert (it.state, it.breaker.failures) == ("closed", 4)
        it.fail()
        assert (it.state, it.breaker.failures) == ("open", 5)

    def test_three_time_outs_are_enough(self) -> None:
        it = Stage()
        slow = Lost("slow", timed_out=True)
        states = []
        for _ in range(3):
            it.fail(1, slow)
            states.append(it.state)
        assert states == ["closed", "closed", "open"]

    @pytest.mark.parametrize(("successes", "opens"), [(1, True), (2, False)])
    def test_half_of_enough_outcomes_are_too_many(self, successes: int, opens: bool) -> None:
        it = Stage()
        for _ in range(10):
            it.fail()
            it.succeed(successes)
        it.fail()
        assert it.state is (BreakerState.OPEN if opens else BreakerState.CLOSED)

    @pytest.mark.parametrize(("more", "state"), [(0, "open"), (1, "closed")])
    def test_exactly_half_is_enough(self, more: int, state: str) -> None:
        it = Stage()
        it.fail()
        it.succeed(2 + more)
        for _ in range(8):
            it.fail()
            it.succeed()
        it.fail()  # 10 of 20, or of 21
        assert it.state == state

    def test_what_opened_it_is_not_counted_again_once_it_works(self) -> None:
        it = Stage()
        for _ in range(9):
            it.fail()
            it.succeed()
        it.fail(5)
        it.wait(1)
        it.succeed(CAPACITY)
        assert it.wait(0) == CAPACITY
        it.fail()
        assert it.state is BreakerState.CLOSED

    def test_few_outcomes_are_no_share(self) -> None:
        it = Stage()
        for _ in range(9):
            it.fail()
            it.succeed()
        it.fail()  # 10 of 19
        assert it.state is BreakerState.CLOSED

    def test_what_is_longer_ago_than_the_window_does_not_count(self) -> None:
        it = Stage()
        for _ in range(9):
            it.fail()
            it.succeed()
        it.wait(POLICY.window_s)
        for _ in range(9):
            it.fail()
            it.succeed()
        assert it.state is BreakerState.CLOSED

    def test_an_hour_of_successes_does_not_hide_what_fails_now(self) -> None:
        it = Stage()
        it.succeed(100_000)
        it.wait(3600)
        for _ in range(11):
            it.fail()
            it.succeed()
        assert it.state is BreakerState.OPEN

    @given(st.lists(st.tuples(st.floats(0, 40), st.booleans()), max_size=200))
    def test_what_is_kept_of_the_past_is_bounded(self, outcomes: list[tuple[float, bool]]) -> None:
        it = Stage()
        for passed, good in outcomes:
            it.wait(passed)
            it.succeed() if good else it.fail()
            assert len(it.breaker._tally._older) <= 7


class TestPauses:
    def test_they_double_up_to_the_longest(self) -> None:
        it = Stage()
        it.fail(5)
        pauses = []
        for _ in range(9):
            pauses.append(it.due_in())
            assert it.wait(it.due_in()) == 1
            it.fail()
        assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
        assert it.breaker.openings == 10

    def test_chance_takes_up_to_half_away(self) -> None:
        numbers = random.Random(7)
        pauses = set()
        for _ in range(200):
            it = Stage(Breaker(POLICY, numbers.random))
            it.fail(5)
            pauses.add(it.due_in())
        assert 0.5 <= min(pauses) < 0.6
        assert 0.9 < max(pauses) <= 1.0

    @pytest.mark.parametrize(("calm_s", "next_pause_s"), [(59.0, 2.0), (60.0, 1.0)])
    def test_they_are_short_again_after_a_calm_minute(self, calm_s: float, next_pause_s: float) -> None:
        it = stage("recovering")
        it.wait(POLICY.ramp_s + calm_s)
        it.fail(5)
        assert it.due_in() == next_pause_s

    def test_one_that_is_waited_for_is_tried_sooner(self) -> None:
        it = Stage()
        it.fail(5)
        for _ in range(3):
            it.wait(it.due_in())
            it.fail()
        assert it.due_in() == 8
        it.wait(0.5)
        it.breaker.awaited(it.now)
        assert it.due_in() == 1.5
        assert it.wait(1.5) == 1

    def test_the_longer_it_fails_the_less_often_it_is_tried_for_those_who_wait(self) -> None:
        it, pauses = Stage(), []
        it.fail(5)
        began, trials = it.now, 0
        while it.now < began + 3600:
            it.breaker.awaited(it.now)
            pauses.append(it.due_in())
            it.wait(it.due_in())
            it.fail()
            trials += 1
        assert pauses == pytest.approx(sorted(pauses))
        assert pauses[:4] == [1, 2, 2, 2]
        assert pauses[-1] == pytest.approx(60)
        assert trials < 120

    def test_an_answer_makes_the_pauses_of_those_who_wait_short_again(self) -> None:
        it = Stage()
        it.fail(5)
        for _ in range(10):
            it.wait(it.due_in())
            it.fail()
        it.wait(it.due_in())
        it.succeed()
        it.fail()
        it.breaker.awaited(it.now)
        assert it.due_in() == 2

    def test_a_short_pause_is_no_longer_when_somebody_waits(self) -> None:
        it = stage("open")
        due_in = it.due_in()
        it.breaker.awaited(it.now)
        assert it.due_in() == due_in <= POLICY.first_pause_s

    def test_waiting_changes_nothing_where_it_is_used(self) -> None:
        for name in ("closed", "half-open", "recovering"):
            it = stage(name)
            before = it.breaker.allowed(it.now, 8)
            it.breaker.awaited(it.now)
            assert (it.state, it.breaker.allowed(it.now, 8)) == (BreakerState(name), before)

    def test_an_answered_check_does_not_end_the_first_second(self) -> None:
        it = stage("half-open", GONE)
        it.fail(1, GONE)  # the second time: 2 seconds
        it.breaker.probed(True, it.now)
        assert it.state is BreakerState.OPEN
        assert it.due_in() == 1
        assert it.wait(1) == 1

    def test_failures_while_it_is_open_change_nothing(self) -> None:
        it = stage("open")
        before = it.due_in(), it.breaker.openings, it.breaker.failures
        it.fail(20)
        assert (it.due_in(), it.breaker.openings, it.breaker.failures) == before
        it.breaker.probed(False, it.now)
        assert (it.due_in(), it.breaker.openings) == before[:2]


class TestSlowStart:
    def test_time_gives_all_slots_evenly(self) -> None:
        it = stage("recovering")
        assert [it.wait(1.25) for _ in range(8)] == [2, 2, 3, 4, 5, 6, 7, 8]
        assert it.breaker.state is BreakerState.CLOSED

    def test_each_round_of_successes_doubles_them(self) -> None:
        it = stage("half-open")
        rounds = [it.wait(0)]
        while it.state is not BreakerState.CLOSED:
            it.succeed(rounds[-1])
            rounds.append(it.wait(0))
        assert rounds == [1, 2, 4, 8]

    @pytest.mark.parametrize("capacity", [1, 2, 8, 1000])
    def test_whoever_wakes_when_told_sees_every_slot_in_time(self, capacity: int) -> None:
        it = stage("recovering")
        began, wakes, seen = it.now, 0, [it.breaker.allowed(it.now, capacity)]
        while (at := it.breaker.changes_at(it.now, capacity)) is not None:
            assert at > it.now
            it.now = at
            seen.append(it.breaker.allowed(at, capacity))
            wakes += 1
        assert seen == sorted(seen)
        assert seen[-1] == capacity
        assert it.now <= began + POLICY.ramp_s
        assert wakes <= min(capacity, 110)

    def test_one_with_a_single_slot_needs_no_slow_start(self) -> None:
        it = stage("half-open")
        it.succeed()
        assert it.breaker.allowed(it.now, 1) == 1
        assert it.breaker.state is BreakerState.CLOSED

    def test_one_without_slots_gets_none(self) -> None:
        for state in BreakerState:
            it = stage(state)
            assert it.breaker.allowed(it.now, 0) == 0
            assert it.breaker.state is state

    def test_each_begins_anew(self) -> None:
        it = stage("recovering")
        it.succeed(4)
        assert it.wait(0) == 6
        it.fail()
        assert it.wait(it.due_in()) == 1
        it.succeed()
        assert it.wait(0) == 2

    def test_it_is_left_alone_longer_when_it_fails_again(self) -> None:
        it = stage("recovering")
        it.fail()
        assert it.due_in() == 2


def test_what_began_before_it_was_known_says_nothing() -> None:
    it = Stage(Breaker(POLICY, lambda: 0.0, known_at=100.0))
    for _ in range(9):
        it.breaker.failed(LOST, 99.0, 100.0)
    assert it.breaker.failures == 0
    assert it.state is BreakerState.CLOSED
