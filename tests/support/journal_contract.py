"""What every `Journal` must do: each sentence of the port's docstrings, as a test.

A subclass gives the fixture `stage`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import pytest

from headrace.domain.quota import Measure, Period, Window
from headrace.ports.ledger import Journal, JournalEntry, WindowState

NOON = 1_700_049_600.0  # 2023-11-15 12:00:00 UTC
MINUTE, DAY, MONTH = (int(period.bounds(NOON)[0]) for period in (Period.MINUTE, Period.DAY, Period.MONTH))
WAIT_S = 20.0


class JournalStage(Protocol):
    """A journal over a store that outlives it."""

    journal: Journal

    async def reopened(self) -> Journal:
        """Another journal over the same store, as after a restart; the first isn't used any more."""

    def fail(self, failing: bool) -> None:
        """Let every commit that is given from now on fail, or no longer."""


def entry(
    reservation: str,
    amount: int,
    subject: str = "user:ann",
    period: Period = Period.DAY,
    starts_at: int = DAY,
    at: float = NOON,
) -> JournalEntry:
    """A settlement of tokens."""
    return JournalEntry(reservation, subject, Measure.TOKENS, period, starts_at, amount, at)


def state(
    settled: int, block: int, subject: str = "user:ann", period: Period = Period.DAY, starts_at: int = DAY
) -> WindowState:
    """How a window of tokens stands."""
    return WindowState(subject, Measure.TOKENS, period, starts_at, settled, block)


async def committed(
    journal: Journal, entries: Sequence[JournalEntry] = (), blocks: Sequence[WindowState] = ()
) -> bool:
    """Commit, and wait for what is told."""
    told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    journal.commit(entries, blocks, told.set_result)
    return await asyncio.wait_for(told, WAIT_S)


async def looked(journal: Journal, *windows: tuple[Window, int]) -> list[WindowState]:
    """Look, and wait for what is told."""
    told: asyncio.Future[Sequence[WindowState] | None] = asyncio.get_running_loop().create_future()
    journal.look(windows, told.set_result)
    states = await asyncio.wait_for(told, WAIT_S)
    assert states is not None
    return by_place(states)


def by_place(states: Sequence[WindowState]) -> list[WindowState]:
    """In an order of their own: `open` promises none."""
    return sorted(states, key=lambda s: (s.subject, s.measure, s.period, s.starts_at))


class JournalContract:
    """Subclass it, and give the fixture `stage`."""

    @pytest.fixture
    def journal(self, stage: JournalStage) -> Journal:
        return stage.journal

    async def test_a_fresh_one_knows_no_window(self, journal: Journal) -> None:
        assert await journal.open(NOON) == []

    async def test_entries_raise_what_is_settled_in_their_window_and_no_other(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        entries = [
            entry("r1", 5),
            entry("r2", 7),
            entry("r1", 5, "key:k1"),
            entry("r1", 5, period=Period.MONTH, starts_at=MONTH),
            JournalEntry("r1", "user:ann", Measure.REQUESTS, Period.DAY, DAY, 1, NOON),
        ]
        assert await committed(journal, entries)
        assert by_place(await (await stage.reopened()).open(NOON)) == by_place(
            [
                state(12, 0),
                state(5, 0, "key:k1"),
                state(5, 0, period=Period.MONTH, starts_at=MONTH),
                WindowState("user:ann", Measure.REQUESTS, Period.DAY, DAY, 1, 0),
            ]
        )

    async def test_an_entry_that_is_already_there_changes_nothing(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        assert await committed(journal, [entry("r1", 5), entry("r1", 5)])
        assert await committed(journal, [entry("r1", 6), entry("r2", 1)])
        again = await stage.reopened()
        await again.open(NOON)
        assert await committed(again, [entry("r1", 5)])
        assert await (await stage.reopened()).open(NOON) == [state(6, 0)]

    async def test_a_block_is_set_and_settled_beside_it_is_not_looked_at(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        assert await committed(journal, [], [state(999, 100)])
        assert await committed(journal, [entry("r1", 5)], [state(-3, 40)])
        assert await committed(journal, [entry("r2", 5)])
        assert await (await stage.reopened()).open(NOON) == [state(10, 40)]

    async def test_a_block_of_a_window_without_entries_is_kept(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        assert await committed(journal, [], [state(0, 100)])
        assert await (await stage.reopened()).open(NOON) == [state(0, 100)]

    async def test_windows_that_ended_are_not_opened(self, journal: Journal, stage: JournalStage) -> None:
        assert await committed(
            journal,
            [entry("r1", 1, period=Period.MINUTE, starts_at=MINUTE), entry("r1", 1)],
            [state(0, 9, period=Period.MONTH, starts_at=MONTH)],
        )
        ended = (await stage.reopened()).open
        assert [s.period for s in by_place(await ended(MINUTE + 59.9))] == ["day", "minute", "month"]
        assert [s.period for s in by_place(await ended(MINUTE + 60))] == ["day", "month"]
        assert [s.period for s in await ended(DAY + 86_400)] == ["month"]
        assert await ended(MONTH + 31 * 86_400) == []

    async def test_windows_of_one_series_are_apart(self, journal: Journal, stage: JournalStage) -> None:
        later = DAY + 86_400
        assert await committed(journal, [entry("r1", 1), entry("r2", 2, starts_at=later)])
        found = by_place(await (await stage.reopened()).open(NOON))
        assert found == [state(1, 0), state(2, 0, starts_at=later)]

    async def test_a_late_entry_is_counted_in_its_own_window(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        late = entry("r1", 3, period=Period.MINUTE, starts_at=MINUTE - 60)
        assert await committed(journal, [late])
        assert await (await stage.reopened()).open(NOON - 60) == [
            state(3, 0, period=Period.MINUTE, starts_at=MINUTE - 60)
        ]

    async def test_commits_are_told_once_in_order_and_on_the_event_loop(self, journal: Journal) -> None:
        heard: list[tuple[int, bool, int]] = []
        last = asyncio.Event()

        def hear(place: int, durable: bool) -> None:
            heard.append((place, durable, threading.get_ident()))
            if place == 49:
                last.set()

        for place in range(50):
            journal.commit([entry(f"r{place}", 1)], [state(0, place)], partial(hear, place))
        await asyncio.wait_for(last.wait(), WAIT_S)
        assert heard == [(place, True, threading.get_ident()) for place in range(50)]

    async def test_what_was_told_is_durable_and_later_commits_win(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        first = asyncio.get_running_loop().create_future()
        journal.commit([], [state(0, 10)], first.set_result)
        assert await committed(journal, [], [state(0, 20)])
        assert first.done()
        assert await (await stage.reopened()).open(NOON) == [state(0, 20)]

    async def test_of_a_failed_commit_nothing_is_kept_and_it_may_be_given_again(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        assert await committed(journal, [entry("r1", 5)], [state(0, 10)])
        stage.fail(True)
        assert not await committed(journal, [entry("r2", 5)], [state(0, 20)])
        stage.fail(False)
        assert await committed(journal)
        assert await (await stage.reopened()).open(NOON) == [state(5, 10)]

    async def test_a_failed_commit_counts_once_when_it_is_given_again(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        stage.fail(True)
        assert not await committed(journal, [entry("r1", 5)], [state(0, 10)])
        stage.fail(False)
        assert await committed(journal, [entry("r1", 5)], [state(0, 10)])
        assert await (await stage.reopened()).open(NOON) == [state(5, 10)]

    async def test_an_empty_commit_is_durable(self, journal: Journal) -> None:
        assert await committed(journal)

    async def test_a_large_commit(self, journal: Journal, stage: JournalStage) -> None:
        entries = [entry(f"r{n}", 1, f"user:{n % 50}") for n in range(4_000)]
        assert await committed(journal, entries, [state(0, 7, f"user:{n}") for n in range(50)])
        found = await (await stage.reopened()).open(NOON)
        assert by_place(found) == by_place([state(80, 7, f"user:{n}") for n in range(50)])

    async def test_amounts_of_64_bits_are_kept(self, journal: Journal, stage: JournalStage) -> None:
        assert await committed(journal, [entry("r1", 2**40)], [state(0, 2**53)])
        assert await (await stage.reopened()).open(NOON) == [state(2**40, 2**53)]

    async def test_single_windows_can_be_looked_at(self, journal: Journal) -> None:
        entries = [
            entry("r1", 5),
            entry("r1", 5, period=Period.MONTH, starts_at=MONTH),
            entry("r2", 9, "key:k1"),
        ]
        assert await committed(journal, entries, [state(0, 7), state(0, 3, "user:eve")])
        day, month = (
            Window("user:ann", Measure.TOKENS, Period.DAY, 1),
            Window("user:ann", Measure.TOKENS, Period.MONTH, 1),
        )
        eve = Window("user:eve", Measure.TOKENS, Period.DAY, 1)
        assert await looked(journal, (day, DAY), (eve, DAY)) == [state(5, 7), state(0, 3, "user:eve")]
        assert await looked(journal, (month, MONTH)) == [state(5, 0, period=Period.MONTH, starts_at=MONTH)]
        assert await looked(journal, (day, DAY - 86_400), (month, DAY)) == []
        assert await looked(journal) == []
        await journal.prune(0.0, NOON + 1)
        assert await looked(journal, (day, DAY)) == [state(5, 7)], "what is folded counts"

    async def test_pruning_forgets_what_ended_and_only_that(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        past = DAY - 86_400
        kept = [entry("r1", 4), entry("r1", 4, period=Period.MONTH, starts_at=MONTH)]
        ended = [entry("old", 2, starts_at=past)]
        assert await committed(journal, [*kept, *ended], [state(0, 9, starts_at=past)])
        await journal.prune(float(DAY), NOON)
        found = by_place(await (await stage.reopened()).open(float(past)))
        assert found == [state(4, 0), state(4, 0, period=Period.MONTH, starts_at=MONTH)]

    async def test_old_entries_are_folded_and_every_window_stays_as_it_is(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        windows = [(Period.MINUTE, MINUTE), (Period.DAY, DAY), (Period.MONTH, MONTH)]
        for n in range(20):
            entries = [
                entry(f"r{n}", n, subject, period, starts_at, NOON - 60 * n)
                for subject in ("user:ann", "key:k1")
                for period, starts_at in windows
            ]
            assert await committed(journal, entries, [state(0, 100 - n)])
        before = by_place(await (await stage.reopened()).open(NOON))
        for horizon in (NOON - 600, NOON - 600, NOON - 300):
            await journal.prune(0.0, horizon)
            assert by_place(await (await stage.reopened()).open(NOON)) == before
        assert await committed(journal, [entry("late", 5, at=NOON - 9_999)])
        await journal.prune(0.0, NOON + 1)
        found = await (await stage.reopened()).open(NOON)
        assert state(sum(range(20)) + 5, 81) in found
        assert len(found) == len(before)

    async def test_an_entry_within_the_horizon_is_known_after_pruning_and_an_older_one_is_not(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        old, new = entry("old", 4, at=NOON - 3_601), entry("new", 8, at=NOON - 3_600)
        assert await committed(journal, [old, new])
        await journal.prune(NOON, NOON - 3_600)
        assert await committed(journal, [new])
        assert await (await stage.reopened()).open(NOON) == [state(12, 0)]
        assert await committed(journal, [old, new])
        assert await (await stage.reopened()).open(NOON) == [state(16, 0)]

    async def test_a_late_entry_of_a_window_that_is_forgotten_harms_nothing(
        self, journal: Journal, stage: JournalStage
    ) -> None:
        past = DAY - 86_400
        assert await committed(journal, [entry("r1", 4, starts_at=past)])
        await journal.prune(NOON, 0.0)
        assert await committed(journal, [entry("r2", 3, starts_at=past), entry("r3", 1)])
        await journal.prune(NOON, NOON + 1)
        assert await (await stage.reopened()).open(float(past)) == [state(1, 0)]
