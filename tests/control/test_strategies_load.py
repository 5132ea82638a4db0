"""Sets of bits, counts by binary digit, and what is kept of what backends run: the same as with plain sets and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.strategies import Load, Pace
from headrace.control.strategies.load import TOKENS
from headrace.control.strategies.sets import Tally, next_in, some_of

numbers = st.frozensets(st.integers(0, 200), min_size=1, max_size=40)


def bits(some: frozenset[int] | set[int]) -> int:
    return sum(1 << number for number in some)


@given(numbers, st.integers(-1, 210))
def test_the_next_number_is_the_lowest_above_or_the_lowest_of_all(some: frozenset[int], after: int) -> None:
    above = [number for number in some if number > after]
    assert next_in(bits(some), after) == min(above or some)


@given(numbers, st.integers(-1, 210), st.integers(0, 50))
def test_some_numbers_are_the_next_ones_round_the_circle(some: frozenset[int], after: int, most: int) -> None:
    ordered = sorted(some)
    turned = [number for number in ordered if number > after] + [n for n in ordered if n <= after]
    assert some_of(bits(some), after, most) == turned[:most]


def test_of_nothing_there_is_nothing() -> None:
    assert some_of(0, 5, 3) == []


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 70))), numbers)
def test_counts_by_digit_are_counts(changes: list[tuple[int, int]], some: frozenset[int]) -> None:
    tally, counts = Tally(), dict.fromkeys(range(201), 0)
    for number, count in changes:
        tally.change(1 << number, counts[number], count)
        counts[number] = count
    highest = max(counts[number] for number in some)
    assert tally.total(bits(some)) == sum(counts[number] for number in some)
    assert tally.highest(bits(some)) == bits({number for number in some if counts[number] == highest})


@dataclass
class Known:
    """What a load should say."""

    busy: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)

    def free(self, name: str) -> int:
        return max(0, self.slots.get(name, 0) - self.busy.get(name, 0))


NAMES = [f"n{number}" for number in range(5)]
events = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["take", "give back", "forget"]) | st.integers(-1, 4)),
    max_size=60,
)


def follow(load: Load, known: Known, name: str, event: str | int) -> None:
    if event == "take":
        load.take(name)
        known.busy[name] = known.busy.get(name, 0) + 1
    elif event == "give back" and known.busy.get(name):
        load.give_back(name)
        known.busy[name] -= 1
    elif event == "forget":
        load.forget(name)
        known.slots.pop(name, None)
    elif isinstance(event, int):
        load.allow(name, event)
        known.slots[name] = max(0, event)


@given(events, st.booleans())
def test_the_sets_say_what_the_numbers_say_whatever_happens(
    events: list[tuple[str, str | int]], asked_each_time: bool
) -> None:
    load, known = Load(), Known()
    for name, event in events:
        follow(load, known, name, event)
        assert load.busy == {name: busy for name, busy in known.busy.items() if busy}
        assert load.slots == known.slots
        assert set(load.seats) == set(known.slots)
        assert len(set(load.seats.values())) == len(load.seats)
        assert load.open == bits({seat for name, seat in load.seats.items() if known.free(name)})
        if asked_each_time:
            agree_on_free_slots(load, known)
    agree_on_free_slots(load, known)


def agree_on_free_slots(load: Load, known: Known) -> None:
    for name, seat in load.seats.items():
        assert load.used(1 << seat) == (known.slots[name] - known.free(name), known.slots[name])
    most = max((known.free(name) for name in load.seats), default=0)
    freest = {seat for name, seat in load.seats.items() if known.free(name) == most}
    assert load.freest(bits(set(load.seats.values()))) == bits(freest)


def test_a_seat_is_used_again_when_a_backend_is_gone() -> None:
    load = Load()
    for number in range(1000):
        load.allow(f"pod-{number}", 1)
        load.forget(f"pod-{number}")
    load.allow("last", 1)
    assert load.open == 1


def test_sums_are_kept_for_a_bounded_number_of_sets() -> None:
    load = Load()
    load.allow("a", 2)
    for within in range(1000):
        load.used(within)
    assert len(load._sums) <= 256
    assert load.used(1) == (0, 2)


def test_a_pace_is_an_average_that_follows() -> None:
    pace = Pace(1.0)
    assert pace.observed(2.0) == Pace(1.2)
    assert pace.observed(1.0, 0.05) == Pace(1.0, 0.05)
    assert Pace(1.0, 0.05).observed(1.0, 0.1).between_s == pytest.approx(0.06)
    assert Pace(1.0, 0.05).observed(1.0) == Pace(1.0, 0.05)
    assert Pace(1.0, 0.05).expected_s == 1.0 + TOKENS * 0.05


def test_paces_are_kept_by_model_and_go_with_the_backend() -> None:
    load = Load()
    load.observe("a", "m", 1.0)
    assert load.paces("m") == {}, "nobody knows it"
    load.allow("a", 1)
    load.allow("b", 1)
    load.observe("a", "m", 1.0, 0.5)
    load.observe("b", "m", 3.0)
    load.observe("a", "other", 2.0)
    assert load.paces("m") == {"a": Pace(1.0, 0.5), "b": Pace(3.0)}
    load.forget("a")
    assert load.paces("m") == {"b": Pace(3.0)}
    assert load.paces("other") == {}
