"""The embedded ledger against a simple model, in every order of calls, commits, failures, ends of windows and crashes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.adapters.ledger.blocks import EACH_COMMITTED, BlockSize
from headrace.adapters.ledger.breaker import OnUnavailable
from headrace.adapters.ledger.memory import LedgerOptions, MemoryLedger
from headrace.domain.quota import Measure, Period, Window
from headrace.ports.ledger import Charge, JournalEntry, Verdict, WindowState
from headrace.testing import ManualClock
from headrace.testing.journal import MemoryJournal
from support.quota_model import Place, QuotaModel

NOON = 1_700_049_600.0
WINDOWS = (
    Window("user:ann", Measure.REQUESTS, Period.MINUTE, 7),
    Window("user:ann", Measure.TOKENS, Period.MINUTE, 200),
    Window("user:ann", Measure.TOKENS, Period.DAY, 500),
    Window("key:k1", Measure.CONCURRENCY, Period.NOW, 4),
)
ELSEWHERE = Window("user:eve", Measure.REQUESTS, Period.MINUTE, 50)
BLOCK = BlockSize(share=10, least_requests=2, least_tokens=30, largest_share=5)
amounts = st.integers(0, 120)
which = st.integers(0, 50)
several = st.sets(st.integers(0, 3), min_size=1)


def charges_of(amount: int, places: set[int]) -> list[Charge]:
    """Charges on the windows at *places*."""
    return [
        Charge(window, amount if window.measure is Measure.TOKENS else 1)
        for place, window in enumerate(WINDOWS)
        if place in places
    ]


class Watched(MemoryJournal):
    """Remembers how many endings the ledger knew of when it gave the latest commit that was carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = 0
        self.ended_in_journal = 0

    def commit(
        self,
        entries: Sequence[JournalEntry],
        blocks: Sequence[WindowState],
        told: Callable[[bool], object],
    ) -> None:
        known = self.ended

        def carried_out(durable: bool) -> None:
            if durable:
                self.ended_in_journal = known
            told(durable)

        super().commit(entries, blocks, carried_out)


class MemoryLedgerMachine(RuleBasedStateMachine):
    """Nobody waits here: the journal is held, and a step of its own carries commits out."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(NOON)
        self.journal = Watched()
        self.journal.hold()
        self.endings: list[dict[Place, int]] = []  # of each that ended: what was reserved and not used
        self.model = QuotaModel()
        self.life = self.idle = 0
        self.asked = self.heard = self.again = self.heard_again = 0

    @initialize(
        strict=st.booleans(),
        allow=st.booleans(),
        most=st.sampled_from([8, 1000, 1000]),
        most_windows=st.sampled_from([0, 1000]),
    )
    def start(self, strict: bool, allow: bool, most: int, most_windows: int) -> None:
        self.options = LedgerOptions(
            strict=strict,
            on_unavailable=OnUnavailable.ALLOW if allow else OnUnavailable.REFUSE,
            block=BLOCK,
            flush_entries=3,
            most_unwritten=most,
            most_waiting=5,
            most_windows=most_windows,
        )
        self.open()

    def open(self) -> None:
        self.ledger = MemoryLedger(self.journal, self.clock, self.options)
        asyncio.run(self.ledger.open())

    def hear(self, reservation: str, fits: bool, verdict: Verdict) -> None:
        self.heard += 1
        if verdict.unavailable:
            if fits and (undone := self.model.reservations.pop(reservation, None)):
                self.end(undone.amounts)
            return
        assert verdict.granted == fits
        if fits and (one := self.model.reservations.get(reservation)):
            one.told = True

    def reserve_new(self, amount: int, places: set[int]) -> None:
        """One that was never heard of."""
        self.asked += 1
        reservation = f"{self.life}-{self.asked}"
        charges = charges_of(amount, places)
        refused = self.model.refused(charges, self.clock.now())
        if not refused and reservation not in self.model.closed:
            self.model.reserve(reservation, charges, self.clock.now())
        before = self.heard
        self.ledger.reserve(reservation, charges, partial(self.hear_first, reservation, refused))
        assert not refused or self.heard == before + 1, "a refusal waits for nothing"

    @rule(amount=amounts, places=several)
    def reserve(self, amount: int, places: set[int]) -> None:
        self.reserve_new(amount, places)

    @rule(many=st.lists(st.tuples(amounts, several), max_size=5), commits=st.integers(0, 2))
    def reserve_several(self, many: list[tuple[int, set[int]]], commits: int) -> None:
        for amount, places in many:
            self.reserve_new(amount, places)
        self.journal.carry_out(commits)

    @precondition(lambda self: self.asked)
    @rule(chosen=which, amount=amounts, places=several)
    def reserve_again(self, chosen: int, amount: int, places: set[int]) -> None:
        """With an id that was used before: whatever is asked for, nothing more is charged for it."""
        reservation = f"{self.life}-{chosen % self.asked + 1}"
        if reservation in self.model.reservations or reservation in self.model.closed:
            self.again += 1
            self.ledger.reserve(reservation, charges_of(amount, places), self.hear_again)

    def hear_first(self, reservation: str, refused: tuple[Window, ...], verdict: Verdict) -> None:
        if reservation in self.model.closed:
            assert verdict.unavailable, "it was settled or released before, or while it waited"
            self.heard += 1
            return
        if refused and not verdict.unavailable:
            assert verdict.refused == refused
            self.model.closed.add(reservation)
        self.hear(reservation, not refused, verdict)

    def hear_again(self, verdict: Verdict) -> None:
        self.heard_again += 1

    def one(self, chosen: int) -> str:
        """An open reservation, or one that is closed or was never made."""
        open_ones = [name for name, one in self.model.reservations.items() if one.actual is None]
        if open_ones and chosen % 8:
            return open_ones[chosen % len(open_ones)]
        return f"{self.life}-{chosen}"

    @precondition(lambda self: self.asked)
    @rule(chosen=which, actual=st.one_of(st.none(), amounts))
    def settle(self, chosen: int, actual: int | None) -> None:
        reservation, used = self.one(chosen), {} if actual is None else {Measure.TOKENS: actual}
        one = self.model.reservations.get(reservation)
        was_open = one is not None and reservation not in self.model.closed
        self.model.settle(reservation, used)
        if one is not None and was_open:
            self.end({place: max(0, amount - one.uses(place)) for place, amount in one.amounts.items()})
        self.ledger.settle(reservation, used)

    @precondition(lambda self: self.asked)
    @rule(chosen=which)
    def release(self, chosen: int) -> None:
        reservation = self.one(chosen)
        one = self.model.reservations.get(reservation)
        if one is not None and reservation not in self.model.closed:
            self.end(one.amounts)
        self.model.release(reservation)
        self.ledger.release(reservation)

    def end(self, unused: dict[Place, int]) -> None:
        """A reservation has ended; so much of it wasn't used."""
        self.endings.append(unused)
        self.journal.ended = len(self.endings)

    @rule(most=st.integers(1, 3))
    def carry_out(self, most: int) -> None:
        self.journal.carry_out(most)

    @rule(failing=st.booleans())
    def fail(self, failing: bool) -> None:
        self.journal.failing = failing

    @rule(seconds=st.sampled_from([0.05, 0.1, 0.1, 0.3]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([2.0, 31.0, 60.0, 86_400.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def let_rest(self) -> None:
        """Commits come and go, and nothing happens in the windows that the model knows."""
        for _ in range(4):
            self.idle += 1
            self.ledger.reserve(f"idle-{self.idle}", [Charge(ELSEWHERE, 1)], lambda _verdict: None)
            self.journal.carry_out()
            self.ledger.release(f"idle-{self.idle}")
            self.clock.advance(0.1)
            self.journal.carry_out()

    @rule()
    def crash(self) -> None:
        """The process is gone: what runs ends, and what the journal had granted is what counts from now on."""
        self.journal.crash()
        self.life += 1
        self.endings.clear()
        self.journal.ended = self.journal.ended_in_journal = 0
        self.asked = self.heard = self.again = self.heard_again = 0
        kept = asyncio.run(self.journal.open(self.clock.now()))
        self.model = QuotaModel(
            left={
                (s.subject, s.measure, s.period, s.starts_at): s.settled + s.block
                for s in kept
                if s.subject != ELSEWHERE.subject
            }
        )
        self.clock = ManualClock(self.clock.now())
        self.open()

    @rule()
    def settle_down(self) -> None:
        """Once nothing is in the way, the journal grants what is used, and at most one block."""
        self.journal.failing = False
        for _ in range(20):
            self.journal.carry_out()
            self.clock.advance(3.0)
        assert not self.journal.waiting
        assert not self.clock.pending
        assert (self.asked, self.again) == (self.heard, self.heard_again), "everybody has been told"
        sizes = EACH_COMMITTED if self.options.strict else BLOCK
        limits = {(w.subject, w.measure, str(w.period)): w.limit for w in WINDOWS}
        for place in self.model.places():
            if place[1] is not Measure.CONCURRENCY:
                block = sizes.of(place[1], limits[(*place[:2], str(place[2]))])
                assert self.granted(place) - self.model.used(place) <= block
        assert self.written() == {
            (name, *place): amount
            for name, one in self.model.reservations.items()
            if one.actual is not None
            for place in one.amounts
            if (amount := one.uses(place))
        }

    def written(self) -> dict[tuple[str, str, Measure, str, int], int]:
        """What this life's reservations have in the journal."""
        return {
            (e.reservation, e.subject, e.measure, e.period, e.starts_at): e.amount
            for e in self.journal.entries
            if e.reservation.startswith(f"{self.life}-")
        }

    def granted(self, place: Place) -> int:
        """What the journal would count as used after a crash at this moment."""
        subject, measure, period, start = place
        state = self.journal.state(subject, measure, Period(period), start)
        return state.settled + state.block

    @invariant()
    def memory_agrees_with_the_model(self) -> None:
        verdicts: list[Verdict] = []
        self.ledger.peek(WINDOWS, verdicts.append)
        now = self.clock.now()
        assert [standing.used for standing in verdicts[0].standings] == [
            self.model.used(self.model.place(window, now)) for window in WINDOWS
        ]

    @invariant()
    def a_crash_would_not_undercharge(self) -> None:
        """Of every reservation that was told as granted the journal knows, at any moment, at least what of it was reserved
        and used: what was settled beyond the reservation is the one thing that may still be on its way."""
        for place in self.model.places():
            if place[1] is not Measure.CONCURRENCY:
                told = sum(
                    min(one.uses(place), one.amounts.get(place, 0))
                    for one in self.model.reservations.values()
                    if one.told
                )
                assert self.granted(place) >= self.model.left.get(place, 0) + told

    @invariant()
    def a_crash_would_overcharge_by_a_block_and_what_is_open_at_most(self) -> None:
        """At any moment, whatever is on its way. Open is for the journal also what ended since its last commit was made."""
        sizes = EACH_COMMITTED if self.options.strict else BLOCK
        limits = {(w.subject, w.measure, str(w.period)): w.limit for w in WINDOWS}
        unknown = self.endings[self.journal.ended_in_journal :]
        for place in self.model.places().union(*unknown):
            if place[1] is Measure.CONCURRENCY:
                continue
            each = self.model.reservations.values()
            used = self.model.left.get(place, 0) + sum(
                one.uses(place) for one in each if one.actual is not None
            )
            is_open = sum(one.uses(place) for one in each if one.actual is None)
            ended = sum(unused.get(place, 0) for unused in unknown)
            block = sizes.of(place[1], limits[(*place[:2], str(place[2]))])
            assert self.granted(place) <= used + is_open + ended + block

    @precondition(lambda self: self.journal.waiting == 0 and not self.journal.failing)
    @invariant()
    def nobody_waits_without_a_reason(self) -> None:
        assert not self.ledger.waiting or self.clock.pending


TestMemoryLedgerMachine = pytest.mark.slow(MemoryLedgerMachine.TestCase)
TestMemoryLedgerMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
