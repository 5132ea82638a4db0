"""The manual clock: nothing happens but by `advance`."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.testing import ManualClock


def test_time_stands_still_until_it_is_advanced() -> None:
    clock = ManualClock(now_s=100.0)
    clock.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (102.5, 102.5)


def test_a_timer_runs_once_and_sees_its_own_time() -> None:
    clock = ManualClock(now_s=0.0)
    seen: list[float] = []
    clock.call_later(3, lambda: seen.append(clock.now()))
    clock.advance(2.9)
    assert seen == []
    clock.advance(10)
    clock.advance(10)
    assert seen == [3.0]
    assert clock.now() == pytest.approx(22.9)


def test_a_cancelled_timer_does_not_run() -> None:
    clock = ManualClock()
    seen: list[str] = []
    timer = clock.call_later(1, lambda: seen.append("ran"))
    assert clock.pending == 1
    timer.cancel()
    timer.cancel()
    assert clock.pending == 0
    clock.advance(2)
    assert seen == []


def test_a_timer_set_by_a_timer_runs_in_the_same_advance() -> None:
    clock = ManualClock(now_s=0.0)
    seen: list[float] = []

    def again() -> None:
        seen.append(clock.now())
        clock.call_later(1, again)

    clock.call_later(1, again)
    clock.advance(3.5)
    assert seen == [1.0, 2.0, 3.0]


def test_an_error_in_a_timer_comes_out_and_leaves_the_later_ones_waiting() -> None:
    clock = ManualClock(now_s=0.0)

    def fail() -> None:
        raise RuntimeError("boom")

    clock.call_later(1, fail)
    clock.call_later(2, lambda: None)
    with pytest.raises(RuntimeError, match="boom"):
        clock.advance(5)
    assert (clock.now(), clock.pending) == (1.0, 1)


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="back"):
        ManualClock().advance(-1)


@given(delays=st.lists(st.integers(0, 20), max_size=20), steps=st.lists(st.integers(0, 8), max_size=8))
def test_timers_run_in_the_order_of_their_times_however_time_passes(
    delays: list[int], steps: list[int]
) -> None:
    clock = ManualClock(now_s=0.0)
    ran: list[tuple[int, int]] = []
    for place, delay in enumerate(delays):
        clock.call_later(delay, partial(ran.append, (delay, place)))
    for step in steps:
        clock.advance(step)
    due = [(delay, place) for place, delay in enumerate(delays) if delay <= sum(steps)] if steps else []
    assert ran == sorted(due)


async def test_a_test_can_wait_until_a_timer_is_set() -> None:
    clock = ManualClock()
    passed = asyncio.Event()

    async def sleeper() -> None:
        clock.call_later(60, passed.set)
        await passed.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sleeper())
        await clock.until_pending(1)
        clock.advance(60)
    assert passed.is_set()


async def test_waiting_for_a_timer_that_nobody_sets_ends() -> None:
    with pytest.raises(TimeoutError):
        await ManualClock().until_pending(1, timeout_s=0.001)
