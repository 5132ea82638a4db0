"""The embedded ledger over its journal: what is answered when, what is written, and what an outage or a crash costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from headrace.adapters.ledger.blocks import BlockSize
from headrace.adapters.ledger.breaker import OnUnavailable
from headrace.adapters.ledger.memory import LedgerOptions, MemoryLedger
from headrace.domain.quota import Measure, Period, Window
from headrace.ports.ledger import Charge, Journal, Verdict, WindowState
from headrace.testing import ManualClock
from headrace.testing.journal import MemoryJournal
from support.ledger_contract import NOON, places, uses, window

TOKENS, REQUESTS = Measure.TOKENS, Measure.REQUESTS
DAY = Period.DAY.bounds(NOON)[0]
DAILY = window(10_000)
BLOCK = 1_000  # of that limit: a tenth, for 4,096 would be more


class Scene:
    """A ledger over a journal whose commits are carried out by hand."""

    def __init__(self, options: LedgerOptions | None = None, journal: MemoryJournal | None = None) -> None:
        self.clock = ManualClock(NOON)
        self.journal = journal or MemoryJournal()
        self.journal.hold()
        self.ledger = MemoryLedger(self.journal, self.clock, options)

    async def open(self) -> Scene:
        await self.ledger.open()
        return self

    def reserve(self, reservation: str, *charges: tuple[Window, int]) -> list[Verdict]:
        """Verdicts arrive in the list that is returned."""
        heard: list[Verdict] = []
        self.ledger.reserve(reservation, [Charge(*charge) for charge in charges], heard.append)
        return heard

    def used(self, single: Window = DAILY) -> int:
        heard: list[Verdict] = []
        self.ledger.peek([single], heard.append)
        return uses(heard[0])[0]

    def granted(self, measure: Measure = TOKENS, subject: str = "user:ann") -> tuple[int, int]:
        """What the journal has settled, and granted in advance."""
        state = self.journal.state(subject, measure, Period.DAY, DAY)
        return state.settled, state.block

    def write(self) -> None:
        """Let what is to be written be written."""
        self.clock.advance(0.1)
        self.journal.carry_out()


@pytest.fixture
async def scene() -> Scene:
    return await Scene().open()


async def warm(options: LedgerOptions | None = None) -> Scene:
    """A scene whose journal has granted the first block."""
    scene = await Scene(options).open()
    heard = scene.reserve("first", (DAILY, 100))
    scene.journal.carry_out()
    assert heard[0].granted
    return scene


@pytest.mark.parametrize(
    ("measure", "limit", "block"),
    [
        (REQUESTS, 5, 0),
        (REQUESTS, 60, 6),
        (REQUESTS, 1_000, 16),
        (REQUESTS, 100_000, 1_000),
        (TOKENS, 10_000, 1_000),
        (TOKENS, 100_000, 4_096),
        (TOKENS, 10_000_000, 100_000),
    ],
)
def test_a_block_is_a_small_part_of_the_limit(measure: Measure, limit: int, block: int) -> None:
    assert BlockSize().of(measure, limit) == block


async def test_the_first_reservation_waits_for_a_block_and_the_next_ones_do_not(scene: Scene) -> None:
    first = scene.reserve("r1", (DAILY, 100))
    assert first == []
    assert scene.ledger.waiting == 1
    scene.journal.carry_out()
    assert first[0].granted
    assert scene.granted() == (0, 100 + BLOCK)
    for n in range(5):
        assert scene.reserve(f"next{n}", (DAILY, 100))[0].granted, "answered before reserve returned"
    assert scene.journal.commits == 1


async def test_a_block_is_raised_ahead_of_need_and_never_beyond_the_limit(scene: Scene) -> None:
    for n in range(99):
        heard = scene.reserve(f"r{n}", (DAILY, 100))
        assert len(heard) == (n > 0), "only the first one waits"
        scene.journal.carry_out()
        scene.write()
        assert scene.granted()[1] <= DAILY.limit
    assert scene.reserve("last", (DAILY, 100))[0].granted
    assert scene.reserve("more", (DAILY, 1))[0].refused == (DAILY,)
    assert scene.granted() == (0, DAILY.limit)
    assert scene.journal.commits < 25


async def test_refusals_and_concurrency_need_no_journal(scene: Scene) -> None:
    assert scene.reserve("r1", (window(50), 51))[0].refused == (window(50),)
    assert scene.reserve("r2", (places(1), 1))[0].granted
    assert scene.reserve("r3", (places(1), 1))[0].refused == (places(1),)
    scene.ledger.settle("r2", {})
    scene.clock.advance(1)
    assert scene.journal.waiting == scene.journal.commits == 0


@pytest.mark.req("E15")
async def test_settlements_are_written_together_each_in_its_windows() -> None:
    scene = await warm()
    requests = window(10_000, REQUESTS)
    asked = [scene.reserve(f"r{n}", (DAILY, 50), (requests, 1)) for n in range(3)]
    scene.journal.carry_out()
    assert all(heard[0].granted for heard in asked)
    before = scene.journal.commits
    for n in range(3):
        scene.ledger.settle(f"r{n}", {TOKENS: 10 + n})
    assert scene.journal.waiting == 0
    scene.write()
    assert scene.journal.commits == before + 1
    assert [(e.reservation, e.measure, e.amount, e.starts_at, e.at) for e in scene.journal.entries] == [
        (f"r{n}", measure, amount, DAY, NOON + 0.1)  # when it was written
        for n in range(3)
        for measure, amount in ((TOKENS, 10 + n), (REQUESTS, 1))
    ]
    assert scene.granted()[0] == 33
    assert scene.granted(REQUESTS)[0] == 3


async def test_many_settlements_do_not_wait_for_the_time_to_be_up() -> None:
    scene = await warm(LedgerOptions(flush_entries=3))
    for n in range(3):
        scene.reserve(f"r{n}", (DAILY, 1))
        scene.ledger.settle(f"r{n}", {})
    assert scene.journal.waiting == 1


@pytest.mark.parametrize("ending", ["settle", "release"])
async def test_what_was_not_needed_is_given_back_with_the_next_commit(scene: Scene, ending: str) -> None:
    heard = scene.reserve("big", (DAILY, 9_000))
    scene.journal.carry_out()
    assert heard[0].granted
    assert scene.granted() == (0, DAILY.limit)
    if ending == "settle":
        scene.ledger.settle("big", {TOKENS: 500})
    else:
        scene.ledger.release("big")
    scene.write()
    scene.write()
    assert scene.granted() == ((500, BLOCK) if ending == "settle" else (0, BLOCK))


async def test_what_is_being_given_back_is_not_handed_out_meanwhile(scene: Scene) -> None:
    scene.reserve("big", (DAILY, 9_000))
    scene.journal.carry_out()
    scene.ledger.settle("big", {TOKENS: 500})
    scene.clock.advance(0.1)
    assert scene.journal.waiting == 1
    heard = scene.reserve("next", (DAILY, 5_000))
    assert heard == [], "the journal is about to say that less is granted"
    scene.journal.carry_out(1)
    assert heard == []
    scene.journal.carry_out()
    assert heard[0].granted
    assert sum(scene.granted()) >= 5_500


async def test_what_is_charged_beyond_its_reservation_is_written_at_once() -> None:
    scene = await warm()
    scene.ledger.settle("first", {TOKENS: 50_000})
    assert scene.journal.waiting == 1
    scene.journal.carry_out()
    assert scene.granted() == (50_000, 0)


@pytest.mark.req("E15")
async def test_a_crash_costs_one_block_and_what_was_open() -> None:
    scene = await warm()
    scene.reserve("r1", (DAILY, 300))
    scene.ledger.settle("first", {TOKENS: 40})
    scene.write()
    scene.ledger.settle("r1", {TOKENS: 10})  # on its way when the process ends
    scene.reserve("r2", (DAILY, 200))
    assert scene.used() == 250
    scene.journal.crash()
    again = await Scene(journal=scene.journal).open()
    assert 250 <= again.used() <= 40 + 300 + 200 + BLOCK
    charged = again.used()
    heard = again.reserve("r3", (DAILY, DAILY.limit - charged))
    again.journal.carry_out()
    assert heard[0].granted
    assert again.reserve("r4", (DAILY, 1))[0].refused
    again.ledger.settle("r3", {TOKENS: 1})
    again.write()
    assert again.used() == charged + 1, "what the crash left stays charged until its window ends"


@pytest.mark.req("E15")
async def test_strict_commits_each_reservation_and_a_crash_costs_what_was_open() -> None:
    scene = await Scene(LedgerOptions(strict=True)).open()
    for n in range(3):
        heard = scene.reserve(f"r{n}", (DAILY, 100))
        assert heard == []
        scene.journal.carry_out()
        assert heard[0].granted
    scene.ledger.settle("r0", {TOKENS: 30})
    scene.ledger.release("r1")
    scene.write()
    assert scene.granted() == (30, 100)
    again = await Scene(journal=scene.journal).open()
    assert again.used() == 130


async def test_after_an_orderly_end_only_what_is_open_stays_charged() -> None:
    scene = await warm()
    scene.reserve("open", (DAILY, 70))
    scene.ledger.settle("first", {TOKENS: 40})
    scene.journal.let_go()
    await scene.ledger.close()
    assert scene.granted() == (40, 70)


async def test_a_reservation_that_was_settled_before_a_restart_is_not_charged_twice() -> None:
    scene = await warm()
    scene.ledger.settle("first", {TOKENS: 40})
    scene.journal.let_go()
    await scene.ledger.close()
    again = await Scene(journal=scene.journal).open()
    again.reserve("first", (DAILY, 100))
    again.journal.carry_out()
    again.ledger.settle("first", {TOKENS: 40})
    again.journal.let_go()
    await again.ledger.close()
    assert sum(again.granted()) == 40


async def test_a_reservation_settles_in_its_own_window_after_that_ended(scene: Scene) -> None:
    scene.reserve("old", (DAILY, 100))
    scene.journal.carry_out()
    scene.clock.advance(86_400)
    scene.ledger.settle("old", {TOKENS: 60})
    scene.write()
    assert [(e.starts_at, e.amount) for e in scene.journal.entries] == [(DAY, 60)]
    assert scene.granted() == (60, 0), "and nothing more is granted in a window that ended"
    assert scene.used() == 0


async def fail(scene: Scene) -> None:
    """Let commits fail until the ledger has noticed."""
    scene.journal.failing = True
    scene.reserve("seen to fail", (window(10**9, subject="user:bob"), 10**6))
    for _ in range(5):
        scene.journal.carry_out()
        scene.clock.advance(0.3)


async def test_while_the_journal_fails_nothing_is_reserved_and_nothing_is_lost() -> None:
    scene = await warm()
    await fail(scene)
    scene.ledger.settle("first", {TOKENS: 40})
    for n in range(50):
        assert scene.reserve(f"r{n}", (DAILY, 1))[0].unavailable
    assert scene.used() == 40
    scene.journal.failing = False
    scene.clock.advance(2)
    scene.journal.carry_out()
    assert scene.reserve("r0", (DAILY, 1))[0].granted, "that it was unavailable was no answer"
    scene.write()
    assert [(e.reservation, e.amount) for e in scene.journal.entries] == [("first", 40)]


async def test_a_journal_that_fails_once_keeps_nobody_from_being_granted(scene: Scene) -> None:
    heard = scene.reserve("r1", (DAILY, 100))
    scene.journal.failing = True
    scene.journal.carry_out()
    assert heard == []
    scene.journal.failing = False
    scene.clock.advance(0.05)
    scene.journal.carry_out()
    assert heard[0].granted


async def test_while_the_journal_fails_blocks_can_be_used_up_if_that_is_wanted() -> None:
    scene = await warm(LedgerOptions(on_unavailable=OnUnavailable.ALLOW))
    await fail(scene)
    granted = [scene.reserve(f"r{n}", (DAILY, 100))[0].granted for n in range(15)]
    assert granted == [True] * 10 + [False] * 5
    assert scene.reserve("other", (window(100, subject="user:eve"), 1))[0].unavailable
    assert scene.used() <= sum(scene.granted())
    scene.ledger.settle("r0", {TOKENS: 0})
    assert scene.reserve("again", (DAILY, 100))[0].granted


async def test_a_journal_that_hangs_is_waited_for_only_so_long() -> None:
    scene = await warm(LedgerOptions(wait_s=1.0))
    heard = [scene.reserve(f"r{n}", (DAILY, 3_000)) for n in range(3)]
    assert heard == [[], [], []]
    scene.clock.advance(0.9)
    assert heard == [[], [], []]
    scene.clock.advance(0.1)
    assert all(verdicts[0].unavailable for verdicts in heard)
    assert scene.used() == 100
    assert scene.reserve("next", (DAILY, 1))[0].unavailable
    scene.journal.carry_out()
    assert scene.reserve("late", (DAILY, 1))[0].granted, "it answers again"
    for _ in range(3):
        scene.write()
    assert 101 <= sum(scene.granted()) <= 101 + BLOCK


async def test_no_more_wait_than_may(scene: Scene) -> None:
    small = await Scene(LedgerOptions(most_waiting=2)).open()
    heard = [small.reserve(f"r{n}", (DAILY, 10)) for n in range(4)]
    assert [bool(verdicts and verdicts[0].unavailable) for verdicts in heard] == [False, False, True, True]
    small.journal.carry_out()
    small.journal.carry_out()
    assert [verdicts[0].granted for verdicts in heard] == [True, True, False, False]
    assert small.used() == 20


async def test_when_too_much_is_unwritten_reservations_are_refused_and_settlements_kept() -> None:
    scene = await warm(LedgerOptions(most_unwritten=5, on_unavailable=OnUnavailable.ALLOW))
    scene.journal.failing = True
    heard = [scene.reserve(f"r{n}", (DAILY, 10)) for n in range(6)]
    assert [verdicts[0].granted for verdicts in heard] == [True] * 4 + [False] * 2
    for n in range(4):
        scene.ledger.settle(f"r{n}", {TOKENS: 7})
    assert scene.ledger.unwritten == 5
    assert scene.reserve("more", (DAILY, 1))[0].unavailable
    for _ in range(8):
        scene.write()
    scene.journal.failing = False
    scene.clock.advance(5)
    scene.journal.carry_out()
    assert [(e.reservation, e.amount) for e in scene.journal.entries] == [(f"r{n}", 7) for n in range(4)]
    assert scene.reserve("more", (DAILY, 1))[0].granted


async def test_who_is_released_while_waiting_is_told_so_and_keeps_nothing(scene: Scene) -> None:
    heard = scene.reserve("r1", (DAILY, 100))
    again = scene.reserve("r1", (DAILY, 100))
    scene.ledger.release("r1")
    assert scene.used() == 0
    scene.journal.carry_out()
    assert [len(heard), len(again)] == [1, 1]
    assert heard[0].unavailable
    assert scene.used() == 0


async def test_a_listener_that_raises_harms_nobody_else(scene: Scene) -> None:
    def broken(verdict: Verdict) -> None:
        raise RuntimeError("listener")

    scene.ledger.reserve("r1", [Charge(DAILY, 1)], broken)
    heard = scene.reserve("r2", (DAILY, 1))
    scene.journal.carry_out()
    scene.journal.carry_out()
    assert heard[0].granted


class Raising(MemoryJournal):
    """A journal that is broken in a way of its own."""

    def commit(self, entries: Sequence[object], blocks: Sequence[object], told: object) -> None:
        raise RuntimeError("no journal today")


async def test_a_journal_that_raises_is_one_that_fails() -> None:
    scene = await Scene(journal=Raising()).open()
    heard = scene.reserve("r1", (DAILY, 1))
    scene.clock.advance(5)
    assert heard[0].unavailable


async def test_closing_does_not_hang_with_a_journal_that_hangs() -> None:
    scene = await warm(LedgerOptions(close_s=5))
    scene.ledger.settle("first", {TOKENS: 1})
    waiting = scene.reserve("waits", (DAILY, 5_000))
    async with asyncio.TaskGroup() as group:
        group.create_task(scene.ledger.close())
        await scene.clock.until_pending(1)
        await asyncio.sleep(0)
        scene.clock.advance(5)
    assert waiting[0].unavailable


async def test_before_it_is_open_nothing_is_known() -> None:
    scene = Scene()
    assert scene.reserve("r1", (DAILY, 1))[0].unavailable
    heard: list[Verdict] = []
    scene.ledger.peek([DAILY], heard.append)
    assert heard[0].unavailable


class Slow(MemoryJournal):
    """Says how single windows stand when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Callable[[], None]] = []

    def look(
        self, windows: Sequence[tuple[Window, int]], told: Callable[[Sequence[WindowState] | None], object]
    ) -> None:
        look = super().look
        self.asked.append(lambda: look(windows, told))

    def answer(self) -> None:
        asked, self.asked = self.asked, []
        for one in asked:
            one()


async def at_rest(used: int = 40, **options: int) -> tuple[Scene, Slow]:
    """A scene in which the window of a day was used and is no longer in memory."""
    journal = Slow()
    scene = await Scene(LedgerOptions(most_windows=0, **options), journal).open()  # type: ignore[arg-type]
    scene.reserve("first", (DAILY, 100))
    scene.journal.carry_out()
    scene.ledger.settle("first", {TOKENS: used})
    for n in range(4):  # each commit is an occasion to look for windows that may rest
        scene.reserve(f"other{n}", (window(100, period=Period.MINUTE), 1))
        scene.ledger.release(f"other{n}")
        scene.write()
    assert scene.ledger.windows == 1, "that of a minute"
    assert scene.granted() == (used, 0)
    return scene, journal


async def test_a_window_that_nothing_happens_in_is_left_to_the_journal_and_comes_back() -> None:
    scene, journal = await at_rest()
    heard = scene.reserve("next", (DAILY, 100))
    assert (heard, scene.ledger.waiting, len(journal.asked)) == ([], 1, 1)
    journal.answer()
    scene.journal.carry_out()
    assert (heard[0].granted, heard[0].standings[0].used) == (True, 140)
    assert scene.used() == 140
    assert scene.reserve("too much", (DAILY, DAILY.limit - 139))[0].refused == (DAILY,)
    scene.ledger.settle("next", {})
    scene.write()
    assert scene.granted()[0] == 140


async def test_all_who_ask_for_a_window_that_rests_are_answered_each_once() -> None:
    scene, journal = await at_rest()
    heard = [scene.reserve(f"r{n}", (DAILY, 4_000), (places(9), 1)) for n in range(4)]
    again = scene.reserve("r0", (DAILY, 4_000), (places(9), 1))
    scene.ledger.settle("r1", {})  # before it was decided: it is closed
    peeked: list[Verdict] = []
    scene.ledger.peek([DAILY, places(9)], peeked.append)
    assert (heard, again, peeked) == ([[]] * 4, [], [])
    journal.answer()
    scene.journal.carry_out()
    assert [len(one) for one in heard] == [1, 1, 1, 1]
    assert [one[0].granted for one in heard] == [True, False, True, False]
    assert heard[1][0].unavailable
    assert heard[3][0].refused == (DAILY,)
    assert again == heard[0]
    assert uses(peeked[0]) == [8_040, 2]
    assert scene.ledger.open_reservations == 2
    assert scene.ledger.waiting == 0


async def test_while_the_journal_cannot_say_how_a_window_stands_nothing_of_it_is_reserved() -> None:
    scene, journal = await at_rest()
    journal.failing = True
    heard = scene.reserve("r", (DAILY, 1), (places(9), 1))
    peeked: list[Verdict] = []
    scene.ledger.peek([DAILY], peeked.append)
    journal.answer()
    assert heard[0].unavailable
    assert peeked[0].unavailable
    assert scene.used(places(9)) == scene.ledger.open_reservations == 0
    journal.failing = False
    heard = scene.reserve("r", (DAILY, 1))
    journal.answer()
    scene.journal.carry_out()
    assert heard[0].granted, "unavailable is no answer: this was the first attempt"


async def test_no_more_ask_for_windows_that_rest_than_may() -> None:
    scene, journal = await at_rest(most_waiting=3)
    heard = [scene.reserve(f"r{n}", (DAILY, 1)) for n in range(5)]
    assert [len(one) for one in heard] == [0, 0, 0, 1, 1]
    assert heard[4][0].unavailable
    journal.answer()
    scene.journal.carry_out()
    assert all(one[0].granted for one in heard[:3])


async def test_a_window_whose_stretch_ends_while_it_is_asked_for_is_a_fresh_one() -> None:
    scene, journal = await at_rest()
    heard = scene.reserve("r", (DAILY, 5))
    scene.clock.advance(86_400)
    journal.answer()
    scene.journal.carry_out()
    assert heard[0].standings[0].used == 5


async def test_what_is_open_or_was_granted_before_a_crash_does_not_rest() -> None:
    journal = MemoryJournal()
    crashed = await Scene(journal=journal).open()
    crashed.reserve("open", (DAILY, 100))
    journal.carry_out()
    scene = await Scene(LedgerOptions(most_windows=0), journal).open()
    other = window(1_000, subject="user:eve")
    kept = scene.reserve("nothing", (other, 0))
    for n in range(6):
        scene.reserve(f"other{n}", (window(100, period=Period.MINUTE), 1))
        scene.ledger.release(f"other{n}")
        scene.write()
    assert kept[0].granted
    assert scene.ledger.windows == 3
    assert scene.used() == 100 + BLOCK
    scene.ledger.settle("nothing", {TOKENS: 7})
    assert scene.used(other) == 7


@pytest.mark.slow
async def test_windows_in_memory_are_bounded_by_those_that_something_happens_in() -> None:
    scene = await Scene(LedgerOptions(most_windows=500, most_waiting=10**6)).open()
    for n in range(10_000):
        each = [window(10_000, period=period, subject=f"user:{n}") for period in (Period.DAY, Period.MONTH)]
        scene.reserve(f"r{n}", *((one, 5) for one in each))
        scene.ledger.settle(f"r{n}", {})
        if n % 100 == 99:
            scene.journal.carry_out()
            scene.write()
    for n in range(200):
        scene.reserve(f"last{n}", (window(100, period=Period.MINUTE), 1))
        scene.ledger.release(f"last{n}")
        scene.write()
    assert scene.ledger.windows <= 500
    for n in (0, 5_000, 9_999):
        assert scene.used(window(10_000, subject=f"user:{n}")) == 5
        assert scene.used(window(10_000, period=Period.MONTH, subject=f"user:{n}")) == 5


class Agreeable(Journal):
    """Takes everything, keeps nothing, answers in the next turn."""

    async def open(self, now: float) -> list[object]:  # type: ignore[override]
        return []

    def commit(self, entries: Sequence[object], blocks: Sequence[object], told: object) -> None:
        asyncio.get_running_loop().call_soon(told, True)  # type: ignore[arg-type]

    def look(self, windows: Sequence[object], told: object) -> None:
        told([])  # type: ignore[operator]

    async def prune(self, ended_before: float, settled_before: float) -> None:
        pass


@pytest.mark.slow
async def test_memory_is_independent_of_subjects_that_are_idle() -> None:
    clock = ManualClock(NOON)
    ledger = MemoryLedger(Agreeable(), clock, LedgerOptions(remembered=1000, most_waiting=10**6))
    await ledger.open()
    heard: list[Verdict] = []
    for n in range(100_000):
        subject = f"key:{n}"
        charges = [Charge(window(1000, REQUESTS, Period.MINUTE, subject), 1), Charge(places(5, subject), 1)]
        ledger.reserve(f"r{n}", charges, heard.append)
        ledger.settle(f"r{n}", {})
        if n % 1000 == 0:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert ledger.windows > 100_000
    clock.advance(60)
    for n in range(3_000):
        ledger.reserve(f"last{n}", [Charge(places(5, f"user:{n}"), 1)], heard.append)
    ledger.reserve("last", [Charge(window(1000, REQUESTS, Period.MINUTE), 1)], heard.append)
    assert ledger.windows < 10_000
    assert ledger.open_reservations == 3_001
    assert len(ledger._closed) <= 2_000
    await ledger.close()
