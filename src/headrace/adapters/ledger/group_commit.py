"""What an embedded ledger tells its journal, many windows and settlements at a time, one commit after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

import structlog

from headrace.adapters.ledger.blocks import Count
from headrace.adapters.ledger.breaker import Breaker
from headrace.kernel.clock import Clock, Timer
from headrace.ports.ledger import Journal, JournalEntry, WindowState

log = structlog.get_logger(__name__)

MOST_IN_A_COMMIT = 5_000


class Unwritten:
    """What was used of windows, and isn't written: in three lists, for thousands of tuples are work for the garbage collector.
    What has an amount of 0 is skipped when it is written."""

    __slots__ = ("amounts", "counts", "reservations")

    def __init__(self) -> None:
        self.reservations: list[str] = []
        self.counts: list[Count] = []
        self.amounts: list[int] = []

    def add(self, reservation: str, counts: list[Count], amounts: list[int]) -> None:
        """*reservation* used so much of each of these windows."""
        self.reservations += [reservation] * len(counts)
        self.counts += counts
        self.amounts += amounts

    def take(self, most: int) -> Unwritten:
        """Take out the oldest."""
        taken = Unwritten()
        taken.reservations, self.reservations = self.reservations[:most], self.reservations[most:]
        taken.counts, self.counts = self.counts[:most], self.counts[most:]
        taken.amounts, self.amounts = self.amounts[:most], self.amounts[most:]
        return taken

    def put_back(self, taken: Unwritten) -> None:
        """They are the oldest again."""
        self.reservations[:0] = taken.reservations
        self.counts[:0] = taken.counts
        self.amounts[:0] = taken.amounts

    def entries(self, at: float) -> tuple[list[JournalEntry], dict[Count, None]]:
        """What the journal is to be told, and the windows that it is added to."""
        entries = []
        touched: dict[Count, None] = {}
        for reservation, count, amount in zip(self.reservations, self.counts, self.amounts, strict=True):
            if not amount:
                continue
            if not count.adding:
                touched[count] = None
            count.adding += amount
            window = count.window
            entries.append(
                JournalEntry(
                    reservation, window.subject, window.measure, window.period, count.starts_at, amount, at
                )
            )
        return entries, touched


class GroupCommit:
    """Gathers what is to be written. One commit is in flight at a time; what comes meanwhile goes into the next.

    A commit that failed is given again after a pause, in the same order, until it succeeds: nothing is dropped. *durable* is
    called after each success, with the number of charges that are now written, *hindered* when the breaker opened or closed.
    Who adds to `unwritten` calls `later` or `soon`. `built` counts commits: what is marked now is in a commit
    with a higher number.
    """

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        flush_s: float,
        durable: Callable[[int], object],
        hindered: Callable[[], object],
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._flush_s = flush_s
        self._durable = durable
        self._hindered = hindered
        self._breaker = Breaker()
        self._dirty: dict[Count, None] = {}
        self._in_flight: tuple[Unwritten, dict[Count, None]] | None = None
        self._again = False  # another commit is wanted as soon as this one ended
        self._give_back = False
        self._flush_timer: Timer | None = None
        self._retry_timer: Timer | None = None
        self._moved = asyncio.Event()
        self.unwritten = Unwritten()
        self.built = 0

    @property
    def broken(self) -> bool:
        """Whether the journal can't be written at present."""
        return self._breaker.open

    def mark(self, count: Count) -> None:
        """Say in the next commit how much of that window is granted."""
        self._dirty[count] = None

    def is_marked(self, count: Count) -> bool:
        """Whether a next commit will say something of that window."""
        return count in self._dirty

    def later(self) -> None:
        """Commit within `flush_s`."""
        if self._flush_timer is None:
            self._flush_timer = self._clock.call_later(self._flush_s, self._flush)

    def soon(self) -> None:
        """Commit now, or as soon as the commit in flight, or the pause after a failure, has ended."""
        if self._in_flight or self._retry_timer:
            self._again = True
        else:
            self._commit()

    def overdue(self) -> None:
        """Somebody has waited too long: the journal counts as broken until its next success."""
        if not self._breaker.open:
            self._breaker.trip()
            log.error(
                "the quota journal is too slow",
                action="journal.overdue",
                unwritten=len(self.unwritten.counts),
            )
            self._hindered()

    async def drain(self, within_s: float) -> int:
        """Write everything, granting nothing in advance any more. Says how many settlements were left when time was up."""
        late: list[None] = []

        def give_up() -> None:
            late.append(None)
            self._moved.set()

        timers = [self._clock.call_later(within_s, give_up)]
        self._give_back = True
        self.soon()
        while not late and (self._in_flight or self._retry_timer):
            self._moved.clear()
            await self._moved.wait()
            self.soon()
        timers.extend(timer for timer in (self._flush_timer, self._retry_timer) if timer is not None)
        for timer in timers:
            timer.cancel()
        return len(self.unwritten.counts) + (len(self._in_flight[0].counts) if self._in_flight else 0)

    def _flush(self) -> None:
        self._flush_timer = None
        self.soon()

    def _commit(self) -> None:
        now = self._clock.now()
        batch = self.unwritten.take(MOST_IN_A_COMMIT)
        entries, touched = batch.entries(now)
        self._again = bool(self.unwritten.counts)
        if not entries and not self._dirty and not self._breaker.failures:
            return
        self.built += 1
        blocks = self._blocks(touched, now)
        self._again = self._again or bool(self._dirty)
        self._in_flight = batch, touched
        try:
            self._journal.commit(entries, blocks, self._told)
        except Exception as error:  # noqa: BLE001
            # a journal that raises has kept nothing; the settlements must survive it
            log.error("the quota journal raised", action="journal.raised", error=repr(error))
            self._told(False)

    def _blocks(self, touched: dict[Count, None], now: float) -> list[WindowState]:
        """How much is granted from now on of the windows that asked for it, and of those among *touched* that settling would
        grant too much of; the former are added to *touched*."""
        wanted = dict.fromkeys(islice(self._dirty, MOST_IN_A_COMMIT))
        wanted.update((count, None) for count in touched if self._give_back or count.rises_too_far)
        touched.update(wanted)
        states = []
        for count in wanted:
            self._dirty.pop(count, None)
            ended = 0 < count.resets_at <= now
            states.append(count.prepare(self.built, give_back=self._give_back or ended))
        return states

    def _told(self, durable: bool) -> None:
        if self._in_flight is None:
            return
        (batch, touched), self._in_flight = self._in_flight, None
        if durable:
            self._succeeded(touched, len(batch.counts))
        else:
            self._failed(batch, touched)
        self._moved.set()

    def _succeeded(self, touched: dict[Count, None], charges: int) -> None:
        was_open = self._breaker.open
        self._breaker.succeeded()
        for count in touched:
            count.committed()
            if count.has_too_much:  # what it was raised for has gone meanwhile
                self._dirty[count] = None
        if self._again:
            self._commit()
        elif self.unwritten.counts or self._dirty:
            self.later()
        if was_open:
            log.info("the quota journal is written again", action="journal.recovered")
            self._hindered()
        self._durable(charges)

    def _failed(self, batch: Unwritten, touched: dict[Count, None]) -> None:
        was_open = self._breaker.open
        pause_s = self._breaker.failed()
        for count in touched:
            count.failed()
            self._dirty[count] = None
        self.unwritten.put_back(batch)
        self._retry_timer = self._clock.call_later(pause_s, self._retry)
        if self._breaker.open and not was_open:
            log.error(
                "the quota journal fails", action="journal.failed", unwritten=len(self.unwritten.counts)
            )
            self._hindered()

    def _retry(self) -> None:
        self._retry_timer = None
        self._commit()
