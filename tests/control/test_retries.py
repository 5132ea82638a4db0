"""Trying again: after which failure, after how long, and how much of it there may be."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.retries import MOST_ATTEMPTS, RetryBudget, backoff, is_counted, may_rerun
from headrace.ports.connector import Broken, Busy, Failure, Loading, Lost, NotSent


@pytest.mark.parametrize("reruns", [False, True])
@pytest.mark.parametrize("cancel_confirmed", [False, True])
@pytest.mark.parametrize(
    ("failure", "free", "by_leave"),
    [
        (NotSent("no connection"), True, True),
        (NotSent("401", refused_key=True), True, True),
        (Busy("full"), True, True),
        (Loading("soon", 2.0), True, True),
        (Lost("cut"), False, True),
        (Lost("slow", timed_out=True), False, True),
        (Broken("cut"), False, False),
        (Broken("stalled", timed_out=True), False, False),
        (Failure("unknown"), False, False),
    ],
)
def test_what_may_be_tried_again(
    failure: Failure, free: bool, by_leave: bool, reruns: bool, cancel_confirmed: bool
) -> None:
    expected = by_leave if reruns or cancel_confirmed else free
    assert may_rerun(failure, reruns=reruns, cancel_confirmed=cancel_confirmed) is expected


@pytest.mark.parametrize(
    ("failure", "counted"),
    [(NotSent("no"), True), (Lost("cut"), True), (Busy("full"), False), (Loading("soon"), False)],
)
def test_waiting_for_a_busy_backend_is_no_attempt(failure: Failure, counted: bool) -> None:
    assert is_counted(failure) is counted
    assert MOST_ATTEMPTS == 5


def test_pauses_are_bounded_by_a_doubling_time() -> None:
    assert [backoff(attempt, lambda: 1.0) for attempt in range(1, 9)] == [
        0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0,
    ]  # fmt: skip
    assert backoff(1_000_000, lambda: 1.0) == 2.0
    assert backoff(3, lambda: 0.0) == 0.0


def test_pauses_are_spread_over_all_of_that_time() -> None:
    numbers = random.Random(7)
    pauses = [backoff(4, numbers.random) for _ in range(400)]
    assert min(pauses) < 0.02
    assert max(pauses) > 0.38
    assert 0.18 < sum(pauses) / len(pauses) < 0.22


def spend_all(budget: RetryBudget, now: float) -> int:
    spent = 0
    while budget.try_spend(now):
        spent += 1
        assert spent < 100_000
    return spent


class TestBudget:
    def test_a_quiet_service_may_try_again_a_little(self) -> None:
        budget = RetryBudget(100.0)
        assert spend_all(budget, 100.0) == 3
        assert spend_all(budget, 100.1) == 0
        assert spend_all(budget, 100.4) == 1
        assert spend_all(budget, 500.0) == 3, "no more than a second's worth is saved up"
        assert budget.refused == 4

    def test_a_busy_one_may_as_a_share_of_its_requests(self) -> None:
        budget = RetryBudget(100.0, least_per_s=0)
        for _ in range(1000):
            budget.request()
        assert spend_all(budget, 100.0) == 200
        assert spend_all(budget, 105.0) == 0

    def test_what_came_long_ago_earns_nothing(self) -> None:
        budget = RetryBudget(100.0, least_per_s=0)
        for _ in range(1000):
            budget.request()
        budget.try_spend(100.0)
        assert spend_all(budget, 200.0) == 0

    def test_requests_between_two_looks_are_taken_to_have_come_evenly(self) -> None:
        budget = RetryBudget(100.0, least_per_s=0)
        for _ in range(1000):
            budget.request()
        assert spend_all(budget, 200.0) == 19  # ten a second, for ten seconds

    def test_a_steady_load_earns_its_share_of_the_window(self) -> None:
        budget = RetryBudget(0.0, least_per_s=0)
        for second in range(1, 101):
            for _ in range(50):
                budget.request()
            assert budget.try_spend(float(second))
        left = spend_all(budget, 100.0)
        assert left == pytest.approx((0.2 * 50 - 1) * 10, rel=0.06)  # one was spent in each second

    def test_nothing_at_all_can_be_allowed(self) -> None:
        budget = RetryBudget(0.0, share=0.0, least_per_s=0.0)
        budget.request()
        assert not budget.try_spend(1000.0)

    def test_less_than_one_a_second_is_saved_up(self) -> None:
        budget = RetryBudget(0.0, share=0.0, least_per_s=0.5)
        assert spend_all(budget, 0.0) == 1
        assert spend_all(budget, 1.9) == 0
        assert spend_all(budget, 2.1) == 1

    def test_a_clock_that_stands_still_or_goes_back_earns_nothing(self) -> None:
        budget = RetryBudget(100.0)
        assert spend_all(budget, 100.0) == 3
        assert spend_all(budget, 50.0) == 0
        assert spend_all(budget, 100.0) == 0

    @given(
        st.lists(
            st.tuples(st.integers(0, 60), st.integers(0, 30), st.floats(0, 15)), min_size=1, max_size=40
        ),
        st.sampled_from([0.0, 0.1, 0.2, 1.0]),
        st.sampled_from([0.0, 0.5, 3.0]),
    )
    def test_there_are_never_more_than_it_says(
        self, steps: list[tuple[int, int, float]], share: float, least_per_s: float
    ) -> None:
        budget = RetryBudget(0.0, share=share, least_per_s=least_per_s)
        now = 0.0
        requests = spent = 0
        for came, wanted, passed in steps:
            now += passed
            requests += came
            for _ in range(came):
                budget.request()
            spent += sum(budget.try_spend(now) for _ in range(wanted))
            saved = max(1.0, least_per_s) if least_per_s else 0.0
            assert spent <= share * requests + least_per_s * now + saved + 1e-6
