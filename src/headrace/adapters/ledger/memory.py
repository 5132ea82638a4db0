"""The quota ledger of one process: counts in memory, over a journal that is told ahead of what may be handed out.

Where everything lies within what the journal has granted in advance, a reservation is answered before `reserve` returned, and
costs no write. Settlements are written together, a few times a second. What was reserved is charged to the limit at once, in
the order of the calls; a reservation beyond the ceiling is only *told* later, when a commit has raised it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import structlog

from headrace.adapters.ledger.blocks import EACH_COMMITTED, Asleep, BlockSize, Count, Windows
from headrace.adapters.ledger.breaker import OnUnavailable
from headrace.adapters.ledger.closed import CLOSED, Closed
from headrace.adapters.ledger.group_commit import GroupCommit
from headrace.adapters.ledger.waiters import Hold, Waiter, Waiters
from headrace.domain.quota import Measure, Window
from headrace.kernel.clock import Clock
from headrace.ports.ledger import Charge, Journal, QuotaLedger, Standing, Told, Verdict, WindowState

log = structlog.get_logger(__name__)

NOT_OPEN = "the quota ledger isn't open"
NOT_WRITTEN = "the quota journal can't be written at present"
FULL = "too many reservations are open or unwritten"
MOST_LOOKED_AT = 4_000
"""Windows that are asked at once whether they may rest."""


class LedgerOptions(msgspec.Struct, frozen=True):
    """How an embedded ledger behaves.

    strict: each reservation is committed before it is told, so a crash over-charges only what was open. flush_s: how long a
    settlement may wait for others to be written with it; flush_entries: how many charges of them that may be. wait_s: the longest that a
    reservation waits for its commit. most_waiting: how many may. most_unwritten: charges that are open or not yet written;
    further reservations are refused. most_windows: in memory, as far as that can be: beyond, those of a day or a month that nothing
    happens in are left to the journal, and asked for when somebody uses them again; each takes about 500 bytes. remembered: how many closed reservations are known at least. close_s: the longest that
    `close` takes.
    """

    strict: bool = False
    on_unavailable: OnUnavailable = OnUnavailable.REFUSE
    block: BlockSize = BlockSize()
    flush_s: float = 0.1
    flush_entries: int = 1000
    wait_s: float = 1.0
    most_waiting: int = 10_000
    most_unwritten: int = 100_000
    most_windows: int = 1_000_000
    remembered: int = 32_768
    close_s: float = 5.0


class MemoryLedger(QuotaLedger):
    """Counts in memory, and keeps its truth in *journal*. `open` it, in the event loop, before use.

    After a crash each window counts as used what the journal had granted: what was settled and open, and at most one block
    more; never less than what was told as granted. (What a settlement charged beyond its reservation is written at once, but
    can be lost with the process in that instant.) Concurrency isn't journalled: what ran has ended with the process.
    The last `remembered` closed or refused reservations are known as such, and after a restart those that charged something,
    for the journal takes a reservation's entry only once.

    While the journal fails, or an answer is overdue, reservations hear `unavailable` at once, or (`OnUnavailable.ALLOW`) are
    granted from blocks that are already committed. Settlements wait for it, in bounded number: each open reservation has its
    place there from the beginning, so none is ever dropped.
    """

    def __init__(self, journal: Journal, clock: Clock, options: LedgerOptions | None = None) -> None:
        self._options = options = options or LedgerOptions()
        self._journal = journal
        self._clock = clock
        self._windows = Windows(EACH_COMMITTED if options.strict else options.block)
        self._waiters = Waiters(clock, options.wait_s, self._journal_overdue)
        self._commits = GroupCommit(
            journal, clock, options.flush_s, self._journal_written, self._journal_changed
        )
        self._unwritten = self._commits.unwritten
        self._holds: dict[str, Hold] = {}
        self._closed = Closed(options.remembered)
        self._most_unwritten = options.most_unwritten
        self._flush_entries = options.flush_entries
        self._charges = 0  # open or unwritten
        self._looking = 0  # reservations and peeks that wait until the journal said how windows stand
        self._hindrance = NOT_OPEN  # why nothing may be reserved; empty where it may
        self._opened = self._ended = False

    @property
    def open_reservations(self) -> int:
        """Reservations that are neither settled nor released."""
        return len(self._holds)

    @property
    def waiting(self) -> int:
        """Reservations that wait for a commit, and questions that wait for the journal."""
        return len(self._waiters) + self._looking

    @property
    def unwritten(self) -> int:
        """Charges that are open, or settled and not in the journal."""
        return self._charges

    @property
    def windows(self) -> int:
        """Windows in memory."""
        return len(self._windows)

    @property
    def remembered(self) -> int:
        """Closed or refused reservations that are known as such."""
        return len(self._closed)

    async def open(self) -> None:
        """Take over what the journal knows. The journal's errors come through; nothing is reserved before this ended."""
        now = self._clock.now()
        for state in await self._journal.open(now):
            self._windows.restore(state, now)
        self._opened = True
        self._hindrance = ""

    def reserve(self, reservation: str, charges: Sequence[Charge], told: Told) -> None:
        """Reserve all or nothing; answered at once unless a commit is needed first."""
        closed = self._closed
        if reservation in self._holds or reservation in closed.fresh or reservation in closed.stale:
            self._answer_again(reservation, told)
            return
        if self._hindrance or self._charges >= self._most_unwritten:
            told(Verdict(unavailable=self._hindrance or FULL))
            return
        windows = self._windows
        if (now := self._clock.now()) >= windows.next_end:
            windows.roll(now)
        live = windows.live
        counts, amounts, passing, standings = [], [], [], []
        fits, asking = True, False
        try:
            for charge in charges:
                window, amount = charge.window, charge.amount
                count = live.get(window) or windows.find(window)
                count.used = used = count.used + amount
                if used > count.swift_to:
                    asking = True
                    fits = fits and used <= window.limit
                if count.free:
                    passing.append((count, amount))
                else:
                    counts.append(count)
                    amounts.append(amount)
                standings.append(Standing(window, used, count.resets_at))
        except Asleep:
            self._take_back(counts, amounts, passing)
            asked = [charge.window for charge in charges]
            self._wake(asked, told, lambda: self.reserve(reservation, charges, told))
            return
        if not fits:
            self._take_back(counts, amounts, passing)
            told(self._refuse(reservation, charges, standings))
            return
        self._charges += len(counts)
        verdict = Verdict(tuple(standings))
        self._holds[reservation] = hold = Hold(counts, amounts, passing, verdict)
        if asking and (short := self._ask(counts)):
            self._wait(Waiter(reservation, hold, short, self._commits.built, told))
        else:
            told(verdict)

    def settle(self, reservation: str, actual: dict[Measure, int]) -> None:
        """Charge what was used; it is in the journal within `flush_s`, or as soon as the journal takes it again."""
        hold = self._holds.pop(reservation, None)
        if hold is None:
            self._close_unopened(reservation)
            return
        self._closed.add(reservation)
        if hold.waiter is not None:
            hold.waiter.hold = None
        for count, amount in hold.passing:
            count.used -= amount
        counts = hold.counts
        if not counts:
            return
        amounts, overdrawn = self._correct(hold, actual) if actual else (hold.amounts, False)
        unwritten = self._unwritten
        if not unwritten.counts:
            self._commits.later()
        unwritten.add(reservation, counts, amounts)
        if overdrawn or len(unwritten.counts) >= self._flush_entries:
            self._commits.soon()  # what is beyond the ceiling would be lost in a crash

    def release(self, reservation: str) -> None:
        """Give everything back."""
        hold = self._holds.pop(reservation, None)
        if hold is None:
            self._close_unopened(reservation)
            return
        self._return(hold)
        self._closed.add(reservation)
        if hold.waiter is not None:
            hold.waiter.hold = None

    def peek(self, windows: Sequence[Window], told: Told) -> None:
        """Answered at once, from memory, also while the journal can't be written."""
        if not self._opened:
            told(Verdict(unavailable=NOT_OPEN))
            return
        here = self._windows
        if (now := self._clock.now()) >= here.next_end:
            here.roll(now)
        live = here.live
        standings = []
        refused: tuple[Window, ...] = ()
        try:
            for window in windows:
                count = live.get(window) or here.known(window)
                if count is None:
                    standings.append(Standing(window, 0, here.resets_at(window.period)))
                else:
                    standings.append(Standing(window, used := count.used, count.resets_at))
                    if used >= window.limit:
                        refused += (window,)
        except Asleep:
            self._wake(windows, told, lambda: self.peek(windows, told))
            return
        told(Verdict(tuple(standings), refused))

    async def close(self) -> None:
        """Write what is unwritten and give blocks back; after `close_s` it gives up, and the log says what was left."""
        if self._ended:
            return
        self._ended, self._hindrance = True, NOT_OPEN
        self._fail_waiters(NOT_OPEN)
        for count in self._windows.counts():
            if count.ceiling > count.used:
                self._commits.mark(count)
        if left := await self._commits.drain(self._options.close_s):
            log.error("settlements were not written", action="ledger.lost", settlements=left)

    # What is rare in a reservation's life.

    def _answer_again(self, reservation: str, told: Told) -> None:
        hold = self._holds.get(reservation)
        if hold is None:
            told(self._closed.get(reservation) or CLOSED)
        elif hold.waiter is not None:
            hold.waiter.told.append(told)
        else:
            told(hold.verdict)

    def _refuse(self, reservation: str, charges: Sequence[Charge], drawn: Sequence[Standing]) -> Verdict:
        """What was drawn for it has been taken back: say how its windows stand."""
        refused = tuple(one.window for one in drawn if one.used > one.window.limit)
        standings = [
            Standing(one.window, one.used - charge.amount, one.resets_at)
            for one, charge in zip(drawn, charges, strict=True)
        ]
        verdict = Verdict(tuple(standings), refused)
        self._closed.add(reservation, verdict)
        return verdict

    def _correct(self, hold: Hold, actual: dict[Measure, int]) -> tuple[list[int], bool]:
        """Count what was really used; says it for each window, and whether one goes beyond its ceiling by it."""
        reals = []
        overdrawn = False
        for count, amount in zip(hold.counts, hold.amounts):  # noqa: B905 - one for each, and strict costs here
            real = actual.get(count.window.measure, amount)
            if real != amount:
                if real <= 0:
                    real = 0
                count.used = used = count.used + real - amount
                if used > count.ceiling:
                    overdrawn = True
                elif not real:
                    self._give_back(count)
            reals.append(real)
        return reals, overdrawn

    def _ask(self, counts: Sequence[Count]) -> list[Count]:
        """Have more granted where little is left; says which counts are beyond their ceiling already."""
        short = []
        for count in counts:
            if count.used > count.ask_at:
                self._commits.mark(count)
                if count.used > count.ceiling:
                    short.append(count)
        self._commits.later()
        return short

    def _wait(self, waiter: Waiter) -> None:
        if self._commits.broken or len(self._waiters) >= self._options.most_waiting:
            self._undo(waiter, NOT_WRITTEN)
        else:
            self._waiters.add(waiter)
            self._commits.soon()

    def _undo(self, waiter: Waiter, reason: str) -> None:
        """As if it had never been asked: the next attempt with this id is the first."""
        if waiter.hold is None:
            waiter.tell(CLOSED)
            return
        del self._holds[waiter.reservation]
        self._return(waiter.hold)
        waiter.tell(Verdict(unavailable=reason))

    def _fail_waiters(self, reason: str) -> None:
        for waiter in self._waiters.take_all():
            self._undo(waiter, reason)

    def _journal_overdue(self) -> None:
        self._commits.overdue()
        self._fail_waiters(NOT_WRITTEN)

    def _journal_changed(self) -> None:
        broken = self._commits.broken
        if not self._ended:
            refusing = broken and self._options.on_unavailable is OnUnavailable.REFUSE
            self._hindrance = NOT_WRITTEN if refusing else ""
        if broken:
            self._fail_waiters(NOT_WRITTEN)

    def _wake(self, windows: Sequence[Window], told: Told, again: Callable[[], object]) -> None:
        """Ask the journal how *windows* stand of which nothing is in memory, and then do it *again*."""
        if self._looking >= self._options.most_waiting:
            told(Verdict(unavailable=FULL))
            return
        self._looking += 1
        asleep = self._windows.asleep(windows)

        def heard(states: Sequence[WindowState] | None) -> None:
            self._looking -= 1
            if states is None:
                told(Verdict(unavailable=NOT_WRITTEN))
            else:
                self._windows.wake(asleep, states)
                again()

        self._journal.look(asleep, heard)

    def _rest(self, excess: int) -> None:
        """Let go of windows that nothing happens in; of those that are open or on their way to the journal, none."""
        in_use = {id(count) for hold in self._holds.values() for count in hold.counts}
        marked = self._commits.is_marked

        def may_rest(count: Count) -> bool:
            return id(count) not in in_use and not marked(count)

        self._windows.rest(min(2 * excess, MOST_LOOKED_AT), may_rest, self._commits.mark)
        self._commits.later()

    def _journal_written(self, charges: int) -> None:
        self._charges -= charges
        self._windows.let_go()
        if (excess := len(self._windows) - self._options.most_windows) > 0:
            self._rest(excess)
        self._waiters.tell_covered()

    def _return(self, hold: Hold) -> None:
        self._charges -= len(hold.counts)
        self._take_back(hold.counts, hold.amounts, hold.passing)

    def _take_back(
        self, counts: Sequence[Count], amounts: Sequence[int], passing: Sequence[tuple[Count, int]]
    ) -> None:
        for count, amount in passing:
            count.used -= amount
        for count, amount in zip(counts, amounts, strict=True):
            count.used -= amount
            self._give_back(count)

    def _give_back(self, count: Count) -> None:
        if count.has_too_much:
            self._commits.mark(count)
            self._commits.later()

    def _close_unopened(self, reservation: str) -> None:
        """It is closed for whoever reserves it later: a `reserve` that was overtaken must not stay open for good."""
        if self._closed.get(reservation) is None:
            self._closed.add(reservation)
