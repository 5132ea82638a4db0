from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.supervision import (
    Delay,
    DelayOver,
    Effect,
    Event,
    Exited,
    GiveUp,
    Launch,
    Life,
    Loaded,
    LoadFailed,
    Phase,
    RestartPolicy,
    Watch,
    decide,
)

POLICY = RestartPolicy(most_failures=3, first_delay_s=1, most_delay_s=30, steady_s=60)
L, R, B, F = Phase.LOADING, Phase.READY, Phase.BACKOFF, Phase.FAILED


@pytest.mark.req("D12", "D36")
@pytest.mark.parametrize(
    ("life", "event", "after", "effect"),
    [
        (Life(L), Loaded(), Life(R), Watch()),
        (Life(L, 2, "why"), Loaded(), Life(R, 2), Watch()),
        (Life(L), LoadFailed("no"), Life(B, 1, "no"), Delay(1)),
        (Life(L, 1), LoadFailed("no"), Life(B, 2, "no"), Delay(2)),
        (Life(L), LoadFailed("no", fatal=True), Life(F, 1, "no"), GiveUp()),
        (Life(R), Exited("left", 5), Life(B, 1, "The engine left."), Delay(1)),
        (Life(R, 1), Exited("left", 59), Life(B, 2, "The engine left."), Delay(2)),
        (Life(R, 2), Exited("left", 60), Life(B, 1, "The engine left."), Delay(1)),
        (Life(B, 1, "no"), DelayOver(), Life(L, 1, "no"), Launch()),
    ],
)
def test_the_table(life: Life, event: Event, after: Life, effect: Effect) -> None:
    assert decide(life, event, POLICY) == (after, effect)


@pytest.mark.parametrize("event", [LoadFailed("no."), Exited("left", 1)])
def test_after_so_many_failures_in_a_row_it_is_left_alone(event: Event) -> None:
    phase = L if isinstance(event, LoadFailed) else R
    life, effect = decide(Life(phase, 2), event, POLICY)
    assert (life.phase, effect) == (F, GiveUp())
    assert "failed 3 times in a row" in life.detail


@pytest.mark.parametrize(
    ("phase", "event"),
    [(L, DelayOver()), (L, Exited("left", 1)), (R, Loaded()), (R, DelayOver()), (B, Loaded()), (F, Loaded())],
)
def test_what_cannot_happen_is_an_error(phase: Phase, event: Event) -> None:
    with pytest.raises(ValueError, match="in phase"):
        decide(Life(phase), event, POLICY)


@given(failures=st.integers(1, 10_000))
def test_delays_grow_and_are_bounded(failures: int) -> None:
    assert 1 <= POLICY.delay_s(failures) <= POLICY.delay_s(failures + 1) <= 30


@given(steps=st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=60))
def test_it_never_starts_more_often_than_allowed(steps: list[tuple[bool, float]]) -> None:
    life, row = Life(L), 0
    for loads, served_s in steps:
        life, effect = decide(life, Loaded() if loads else LoadFailed("no"), POLICY)
        if loads:
            row = 0 if served_s >= POLICY.steady_s else row
            life, effect = decide(life, Exited("left", served_s), POLICY)
        row += 1
        assert life.failures == row
        assert isinstance(effect, GiveUp) == (row >= POLICY.most_failures)
        if isinstance(effect, GiveUp):
            return
        life, effect = decide(life, DelayOver(), POLICY)
        assert effect == Launch()
