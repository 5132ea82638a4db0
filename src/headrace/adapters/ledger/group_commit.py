"""What an embedded ledger tells its journal, many windows and settlements at a time, one commit after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

import structlog

from headrace.adapters.ledger.blocks import Count
from headrace.adapters.ledger.breaker import Breaker
from headrace.kernel.clock import Clock, Timer
from headrace.ports.ledger import Journal, JournalEntry

log = structlog.get_logger(__name__)

MOST_IN_A_COMMIT = 5_000
Unwritten = tuple[str, Count, int, float]  # reservation, its window, what it used there, when it was settled


class GroupCommit:
    """Gathers what is to be written. One commit is in flight at a time; what comes meanwhile goes into the next.

    A commit that failed is given again after a pause, in the same order, until it succeeds: nothing is dropped. *durable* is
    called after each success, *hindered* when the breaker opened or closed. `unwritten` may be appended to; who does calls
    `later` or `soon`. `built` counts commits: what is marked now is in a commit with a higher number.
    """

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        flush_s: float,
        durable: Callable[[], object],
        hindered: Callable[[], object],
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._flush_s = flush_s
        self._durable = durable
        self._hindered = hindered
        self._breaker = Breaker()
        self._dirty: dict[Count, None] = {}
        self._in_flight: tuple[list[Unwritten], dict[Count, None]] | None = None
        self._again = False  # another commit is wanted as soon as this one ended
        self._give_back = False
        self._flush_timer: Timer | None = None
        self._retry_timer: Timer | None = None
        self._moved = asyncio.Event()
        self.unwritten: list[Unwritten] = []
        self.built = 0

    @property
    def broken(self) -> bool:
        """Whether the journal can't be written at present."""
        return self._breaker.open

    def mark(self, count: Count) -> None:
        """Say in the next commit how much of that window is granted."""
        self._dirty[count] = None

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
                "the quota journal is too slow", action="journal.overdue", unwritten=len(self.unwritten)
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
        return len(self.unwritten) + (len(self._in_flight[0]) if self._in_flight else 0)

    def _flush(self) -> None:
        self._flush_timer = None
        self.soon()

    def _commit(self) -> None:
        batch = self.unwritten[:MOST_IN_A_COMMIT]
        del self.unwritten[: len(batch)]
        touched = dict.fromkeys(islice(self._dirty, MOST_IN_A_COMMIT))
        entries = []
        for reservation, count, amount, at in batch:
            count.adding += amount
            touched[count] = None
            entries.append(
                JournalEntry(
                    reservation, count.subject, count.measure, count.period, count.starts_at, amount, at
                )
            )
        self._again = bool(self.unwritten)
        if not touched and not self._breaker.failures:
            return
        self.built += 1
        now = self._clock.now()
        for count in touched:
            self._dirty.pop(count, None)
        self._again = self._again or bool(self._dirty)
        blocks = [c.prepare(self.built, give_back=self._give_back or now >= c.ends_at) for c in touched]
        self._in_flight = batch, touched
        try:
            self._journal.commit(entries, blocks, self._told)
        except Exception as error:  # noqa: BLE001
            # a journal that raises has kept nothing; the settlements must survive it
            log.error("the quota journal raised", action="journal.raised", error=repr(error))
            self._told(False)

    def _told(self, durable: bool) -> None:
        if self._in_flight is None:
            return
        (batch, touched), self._in_flight = self._in_flight, None
        if durable:
            self._succeeded(touched)
        else:
            self._failed(batch, touched)
        self._moved.set()

    def _succeeded(self, touched: dict[Count, None]) -> None:
        was_open = self._breaker.open
        self._breaker.succeeded()
        for count in touched:
            count.committed()
            if count.has_too_much:  # what it was raised for has gone meanwhile
                self._dirty[count] = None
        if self._again:
            self._commit()
        elif self.unwritten or self._dirty:
            self.later()
        if was_open:
            log.info("the quota journal is written again", action="journal.recovered")
            self._hindered()
        self._durable()

    def _failed(self, batch: list[Unwritten], touched: dict[Count, None]) -> None:
        was_open = self._breaker.open
        pause_s = self._breaker.failed()
        for count in touched:
            count.failed()
            self._dirty[count] = None
        self.unwritten[:0] = batch
        self._retry_timer = self._clock.call_later(pause_s, self._retry)
        if self._breaker.open and not was_open:
            log.error("the quota journal fails", action="journal.failed", unwritten=len(self.unwritten))
            self._hindered()

    def _retry(self) -> None:
        self._retry_timer = None
        self._commit()
