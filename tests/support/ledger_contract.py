"""What every `QuotaLedger` must do: each sentence of the port's docstrings, as a test.

A subclass gives the fixture `stage`, whose clock stands at `NOON` until a test moves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import pytest

from headrace.domain.quota import Limits, Measure, Period, Window
from headrace.ports.ledger import Charge, QuotaLedger, Verdict
from support.stepping_clock import SteppingClock

NOON = 1_700_049_600.0  # 2023-11-15 12:00:00 UTC
MINUTE_ENDS, DAY_ENDS, MONTH_ENDS = (
    int(p.bounds(NOON)[1]) for p in (Period.MINUTE, Period.DAY, Period.MONTH)
)
WAIT_S = 20.0
REQUESTS, TOKENS, CONCURRENCY = Measure.REQUESTS, Measure.TOKENS, Measure.CONCURRENCY


class LedgerStage(Protocol):
    """A fresh ledger that is open, and whose time is moved by hand."""

    ledger: QuotaLedger
    clock: SteppingClock


def window(
    limit: int, measure: Measure = TOKENS, period: Period = Period.DAY, subject: str = "user:ann"
) -> Window:
    """A limit."""
    return Window(subject, measure, period, limit)


def places(limit: int, subject: str = "key:k1") -> Window:
    """A limit on what runs at once."""
    return Window(subject, CONCURRENCY, Period.NOW, limit)


async def reserved(ledger: QuotaLedger, reservation: str, *charges: tuple[Window, int]) -> Verdict:
    """Reserve, and wait for the verdict."""
    told: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
    ledger.reserve(reservation, [Charge(*charge) for charge in charges], told.set_result)
    return await asyncio.wait_for(told, WAIT_S)


async def peeked(ledger: QuotaLedger, *windows: Window) -> Verdict:
    """Peek, and wait for the verdict."""
    told: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
    ledger.peek(windows, told.set_result)
    return await asyncio.wait_for(told, WAIT_S)


async def used(ledger: QuotaLedger, *windows: Window) -> list[int]:
    """What is used of each."""
    return uses(await peeked(ledger, *windows))


def uses(verdict: Verdict) -> list[int]:
    """What a verdict says is used of each."""
    assert not verdict.unavailable
    return [standing.used for standing in verdict.standings]


class LedgerContract:
    """Subclass it, and give the fixture `stage`."""

    @pytest.fixture
    def ledger(self, stage: LedgerStage) -> QuotaLedger:
        return stage.ledger

    async def test_a_grant_says_how_each_window_stands_in_the_order_of_the_charges(
        self, ledger: QuotaLedger
    ) -> None:
        asked = [
            (window(10, REQUESTS, Period.MINUTE), 1),
            (window(1_000), 300),
            (window(9_000, period=Period.MONTH), 300),
            (places(2), 1),
        ]
        verdict = await reserved(ledger, "r1", *asked)
        assert verdict.granted
        assert [standing.window for standing in verdict.standings] == [window for window, _ in asked]
        assert uses(verdict) == [1, 300, 300, 1]
        assert [s.remaining for s in verdict.standings] == [9, 700, 8_700, 1]
        assert [s.resets_at for s in verdict.standings] == [MINUTE_ENDS, DAY_ENDS, MONTH_ENDS, 0]

    async def test_a_reservation_is_made_of_all_its_charges_or_of_none(self, ledger: QuotaLedger) -> None:
        tokens, requests, running = window(100), window(1, REQUESTS), places(1)
        assert (await reserved(ledger, "r1", (requests, 1), (tokens, 10), (running, 1))).granted
        verdict = await reserved(ledger, "r2", (tokens, 10), (requests, 1), (running, 1))
        assert not verdict.granted
        assert verdict.refused == (requests, running)
        assert uses(verdict) == [10, 1, 1]
        assert await used(ledger, tokens, requests, running) == [10, 1, 1]

    @pytest.mark.parametrize("amounts", [(60, 41), (101,), (100, 1)])
    async def test_a_reservation_never_goes_beyond_the_limit(
        self, ledger: QuotaLedger, amounts: Sequence[int]
    ) -> None:
        verdicts = [
            await reserved(ledger, f"r{n}", (window(100), amount)) for n, amount in enumerate(amounts)
        ]
        assert [verdict.granted for verdict in verdicts] == [True] * (len(amounts) - 1) + [False]
        assert uses(verdicts[-1]) == [sum(amounts[:-1])]

    async def test_the_whole_limit_can_be_reserved(self, ledger: QuotaLedger) -> None:
        assert (await reserved(ledger, "r1", (window(100), 60))).granted
        assert (await reserved(ledger, "r2", (window(100), 40))).granted
        assert (await reserved(ledger, "r3", (window(2**40, subject="user:bob"), 2**40))).granted

    @pytest.mark.req("E03", "E15")
    @pytest.mark.parametrize(
        "limited", [window(50, REQUESTS), window(50, REQUESTS, Period.MONTH), places(50)]
    )
    async def test_300_callers_at_once_get_exactly_the_50_that_there_are(
        self, ledger: QuotaLedger, limited: Window
    ) -> None:
        other = window(1_000_000)
        verdicts = await asyncio.gather(
            *(reserved(ledger, f"r{n}", (other, 7), (limited, 1)) for n in range(300))
        )
        assert sum(verdict.granted for verdict in verdicts) == 50
        assert all(verdict.refused in ((), (limited,)) for verdict in verdicts)
        assert await used(ledger, limited, other) == [50, 350]

    @pytest.mark.req("E03", "E15")
    async def test_callers_who_settle_less_let_others_in_and_all_is_counted(
        self, ledger: QuotaLedger
    ) -> None:
        limited, done = window(1_000), 0

        async def call(n: int) -> None:
            nonlocal done
            if (await reserved(ledger, f"r{n}", (limited, 100), (places(5), 1))).granted:
                ledger.settle(f"r{n}", {TOKENS: 10})
                done += 1

        for batch in range(10):
            await asyncio.gather(*(call(n) for n in range(batch * 20, batch * 20 + 20)))
        verdict = await peeked(ledger, limited, places(5))
        assert uses(verdict) == [10 * done, 0]
        assert 50 <= done <= 91

    @pytest.mark.req("E15")
    async def test_settled_is_what_was_really_used_and_the_rest_is_free_again(
        self, ledger: QuotaLedger
    ) -> None:
        tokens, requests, running = window(100), window(10, REQUESTS), places(1)
        assert (await reserved(ledger, "r1", (tokens, 80), (requests, 1), (running, 1))).granted
        ledger.settle("r1", {TOKENS: 30})
        assert await used(ledger, tokens, requests, running) == [30, 1, 0]
        assert (await reserved(ledger, "r2", (tokens, 70), (running, 1))).granted

    async def test_what_is_not_named_is_settled_as_reserved_and_zero_as_zero(
        self, ledger: QuotaLedger
    ) -> None:
        tokens, requests = window(100), window(10, REQUESTS)
        assert (await reserved(ledger, "r1", (tokens, 40), (requests, 1))).granted
        ledger.settle("r1", {})
        assert (await reserved(ledger, "r2", (tokens, 40), (requests, 1))).granted
        ledger.settle("r2", {TOKENS: 0, REQUESTS: 0})
        assert await used(ledger, tokens, requests) == [40, 1]

    async def test_more_than_was_reserved_is_charged_and_keeps_the_next_one_out(
        self, ledger: QuotaLedger
    ) -> None:
        tokens = window(100)
        assert (await reserved(ledger, "r1", (tokens, 10))).granted
        ledger.settle("r1", {TOKENS: 130})
        verdict = await reserved(ledger, "r2", (tokens, 1))
        assert verdict.refused == (tokens,)
        assert uses(verdict) == [130]
        assert verdict.standings[0].remaining == 0

    async def test_a_release_gives_everything_back(self, ledger: QuotaLedger) -> None:
        asked = [window(100), window(1, REQUESTS), places(1)]
        assert (await reserved(ledger, "r1", (asked[0], 100), (asked[1], 1), (asked[2], 1))).granted
        ledger.release("r1")
        assert await used(ledger, *asked) == [0, 0, 0]
        assert (await reserved(ledger, "r2", (asked[0], 100), (asked[1], 1), (asked[2], 1))).granted

    async def test_a_repeated_reserve_is_answered_as_the_first_and_charges_once(
        self, ledger: QuotaLedger
    ) -> None:
        tokens = window(100)
        first = await reserved(ledger, "r1", (tokens, 60), (places(1), 1))
        assert (await reserved(ledger, "r0", (tokens, 5))).granted
        again = await asyncio.gather(
            *(reserved(ledger, "r1", (tokens, 60), (places(1), 1)) for _ in range(5))
        )
        assert again == [first] * 5
        assert await used(ledger, tokens, places(1)) == [65, 1]

    async def test_a_reserve_repeated_at_once_is_told_once_each_and_charges_once(
        self, ledger: QuotaLedger
    ) -> None:
        tokens = window(100)
        verdicts = await asyncio.gather(*(reserved(ledger, "r1", (tokens, 60)) for _ in range(5)))
        assert verdicts == [verdicts[0]] * 5
        assert verdicts[0].granted
        assert await used(ledger, tokens) == [60]

    async def test_a_repeated_reserve_that_was_refused_stays_refused(self, ledger: QuotaLedger) -> None:
        tokens = window(100)
        assert (await reserved(ledger, "r1", (tokens, 60))).granted
        first = await reserved(ledger, "r2", (tokens, 60))
        ledger.release("r1")
        assert await reserved(ledger, "r2", (tokens, 60)) == first
        assert first.refused == (tokens,)
        assert await used(ledger, tokens) == [0]

    async def test_closing_again_does_nothing(self, ledger: QuotaLedger) -> None:
        tokens, running = window(100), places(5)
        for reservation in ("r1", "r2", "r3"):
            assert (await reserved(ledger, reservation, (tokens, 20), (running, 1))).granted
        ledger.settle("r1", {TOKENS: 10})
        ledger.settle("r1", {TOKENS: 10})
        ledger.release("r1")
        ledger.release("r2")
        ledger.release("r2")
        ledger.settle("r2", {TOKENS: 20})
        assert await used(ledger, tokens, running) == [30, 1]

    @pytest.mark.parametrize("settled", [True, False])
    async def test_what_is_closed_is_not_reserved_again(self, ledger: QuotaLedger, settled: bool) -> None:
        tokens = window(100)
        assert (await reserved(ledger, "r1", (tokens, 20))).granted
        if settled:
            ledger.settle("r1", {TOKENS: 20})
        else:
            ledger.release("r1")
        before = await used(ledger, tokens)
        verdict = await reserved(ledger, "r1", (tokens, 20))
        assert verdict.unavailable
        assert not verdict.granted
        assert await used(ledger, tokens) == before

    @pytest.mark.parametrize("settled", [True, False])
    async def test_a_reserve_that_comes_after_its_own_end_reserves_nothing(
        self, ledger: QuotaLedger, settled: bool
    ) -> None:
        tokens = window(100)
        if settled:
            ledger.settle("r1", {TOKENS: 20})
        else:
            ledger.release("r1")
        assert not (await reserved(ledger, "r1", (tokens, 20))).granted
        assert await used(ledger, tokens) == [0]

    @pytest.mark.req("E16")
    async def test_windows_of_other_subjects_measures_and_periods_are_apart(
        self, ledger: QuotaLedger
    ) -> None:
        asked = [
            window(100),
            window(100, REQUESTS),
            window(100, period=Period.MINUTE),
            window(100, period=Period.MONTH),
            window(100, subject="user:bob"),
            window(100, subject="key:ann"),
            window(100, subject="address:::1"),
            places(100),
            places(100, "user:ann"),
        ]
        for n, single in enumerate(asked, start=1):
            assert (await reserved(ledger, f"r{n}", (single, n))).granted
        assert await used(ledger, *asked) == list(range(1, len(asked) + 1))

    async def test_a_limit_that_changed_looks_at_the_same_count(self, ledger: QuotaLedger) -> None:
        assert (await reserved(ledger, "r1", (window(100), 60))).granted
        assert not (await reserved(ledger, "r2", (window(50), 1))).granted
        assert (await reserved(ledger, "r3", (window(200), 100))).granted
        assert await used(ledger, window(10)) == [160]

    @pytest.mark.req("E16", "E17")
    @pytest.mark.parametrize(
        ("period", "ends_at"), [("minute", MINUTE_ENDS), ("day", DAY_ENDS), ("month", MONTH_ENDS)]
    )
    async def test_a_window_ends_with_its_unit_of_utc_however_often_it_is_used(
        self, ledger: QuotaLedger, stage: LedgerStage, period: str, ends_at: int
    ) -> None:
        limited = window(100, period=Period(period))
        step = (ends_at - NOON) / 8
        for n in range(8):
            assert (await reserved(ledger, f"r{n}", (limited, 10))).granted
            stage.clock.advance(step if n < 7 else step - 0.5)
        assert uses(await peeked(ledger, limited)) == [80]
        assert not (await reserved(ledger, "more", (limited, 21))).granted
        stage.clock.advance(0.5)
        assert (await peeked(ledger, limited)).standings[0].used == 0
        fresh = await reserved(ledger, "next", (limited, 100))
        assert fresh.granted
        assert fresh.standings[0].resets_at == Period(period).bounds(ends_at)[1]

    @pytest.mark.parametrize("ending", ["settle less", "settle more", "release"])
    async def test_a_reservation_that_outlives_its_window_leaves_the_next_one_alone(
        self, ledger: QuotaLedger, stage: LedgerStage, ending: str
    ) -> None:
        minute, day = window(100, period=Period.MINUTE), window(1_000)
        assert (await reserved(ledger, "old", (minute, 80), (day, 80))).granted
        stage.clock.advance(60)
        assert (await reserved(ledger, "new", (minute, 50), (day, 50))).granted
        if ending == "release":
            ledger.release("old")
        else:
            ledger.settle("old", {TOKENS: 10 if ending == "settle less" else 200})
        assert await used(ledger, minute) == [50]
        assert await used(ledger, day) == [{"settle less": 60, "settle more": 250, "release": 50}[ending]]

    async def test_what_is_running_does_not_end_with_any_window(
        self, ledger: QuotaLedger, stage: LedgerStage
    ) -> None:
        assert (await reserved(ledger, "r1", (places(1), 1))).granted
        for _ in range(20):
            stage.clock.advance(5)
            await asyncio.sleep(0)
        assert not (await reserved(ledger, "r2", (places(1), 1))).granted
        ledger.settle("r1", {})
        assert (await reserved(ledger, "r3", (places(1), 1))).granted

    async def test_a_peek_changes_nothing_and_names_what_has_nothing_left(self, ledger: QuotaLedger) -> None:
        full, half, untouched = window(100), window(10, REQUESTS), window(5, subject="user:bob")
        assert (await reserved(ledger, "r1", (full, 100), (half, 5))).granted
        first = await peeked(ledger, full, half, untouched, places(1))
        assert first.refused == (full,)
        assert uses(first) == [100, 5, 0, 0]
        assert [s.resets_at for s in first.standings] == [DAY_ENDS, DAY_ENDS, DAY_ENDS, 0]
        assert await peeked(ledger, full, half, untouched, places(1)) == first

    async def test_nothing_asked_for_is_granted(self, ledger: QuotaLedger) -> None:
        assert (await reserved(ledger, "r1")).granted
        assert (await peeked(ledger)).granted
        assert (await reserved(ledger, "r2", (window(10), 10))).granted
        assert (await reserved(ledger, "r3", (window(10), 0))).granted
        ledger.settle("r1", {TOKENS: 5})
        ledger.settle("r3", {TOKENS: 5})
        assert await used(ledger, window(10)) == [15]

    async def test_a_listener_may_call_the_ledger(self, ledger: QuotaLedger) -> None:
        tokens, told = window(100), asyncio.Event()

        def second(verdict: Verdict) -> None:
            assert verdict.granted
            ledger.settle("r2", {TOKENS: 2})
            told.set()

        def first(verdict: Verdict) -> None:
            assert verdict.granted
            ledger.settle("r1", {TOKENS: 1})
            ledger.reserve("r2", [Charge(tokens, 50)], second)

        ledger.reserve("r1", [Charge(tokens, 60)], first)
        await asyncio.wait_for(told.wait(), WAIT_S)
        assert await used(ledger, tokens) == [3]

    async def test_every_limit_that_a_key_can_have_is_counted(self, ledger: QuotaLedger) -> None:
        limits = Limits(5, 50, 500, 1_000, 10_000, 100_000, 3)
        windows = limits.windows("key:k1")
        charges = [(single, 100 if single.measure is TOKENS else 1) for single in windows]
        for n in range(3):
            assert (await reserved(ledger, f"r{n}", *charges)).granted
        assert (await reserved(ledger, "r3", *charges)).refused == (places(3),)
        ledger.settle("r0", {TOKENS: 50})
        assert uses(await peeked(ledger, *windows)) == [3, 3, 3, 250, 250, 250, 2]

    async def test_a_clock_that_is_set_back_does_not_reopen_a_window(
        self, ledger: QuotaLedger, stage: LedgerStage
    ) -> None:
        minute = window(100, period=Period.MINUTE)
        stage.clock.advance(60)
        assert (await reserved(ledger, "r1", (minute, 90))).granted
        stage.clock.step(-3)
        assert (await peeked(ledger, minute)).standings[0].used == 90
        assert not (await reserved(ledger, "r2", (minute, 20))).granted
        ledger.settle("r1", {TOKENS: 50})
        assert (await reserved(ledger, "r3", (minute, 50))).granted

    async def test_after_closing_nothing_is_reserved_and_closing_again_does_nothing(
        self, ledger: QuotaLedger
    ) -> None:
        assert (await reserved(ledger, "r1", (window(100), 60))).granted
        await ledger.close()
        await ledger.close()
        assert (await reserved(ledger, "r2", (window(100), 1))).unavailable
        ledger.settle("r1", {})
        ledger.release("r1")
