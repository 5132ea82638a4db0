"""The rules of blocks, without a journal: how much of a window may be handed out, and when a commit has to say more.

A window's *ceiling* is what the journal would say was used if this process ended now: settled and block together. Nothing is
told as granted above it. It is raised ahead of need, lowered when much was given back, and never ends above the limit unless
more than that was really used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from headrace.domain.quota import Measure, Period, Window
from headrace.ports.ledger import WindowState

CONCURRENCY = Measure.CONCURRENCY
BOUNDLESS = 1 << 62
FEWEST_BEFORE_A_SWEEP = 1024


class BlockSize(msgspec.Struct, frozen=True):
    """How much is granted in advance: a *share* (1/n) of the limit, at least so many requests or tokens, but never more than
    the *largest_share* of it, for that is what a crash may cost."""

    share: int = 100
    least_requests: int = 16
    least_tokens: int = 4096
    largest_share: int = 10

    def of(self, measure: Measure, limit: int) -> int:
        """The block of a window with that limit; 0 where each reservation needs its own commit."""
        least = self.least_tokens if measure is Measure.TOKENS else self.least_requests
        return min(limit // self.largest_share, max(limit // self.share, least))


EACH_COMMITTED = BlockSize(1 << 62, 0, 0, 1)
"""No block at all: what `strict` means."""


@dataclass(slots=True, eq=False)
class Count:
    """What is used of one window in one stretch of time.

    used: settled and reserved, waiting reservations included. ceiling: what may be told as granted, whichever way the commit
    in flight ends. ask_at: beyond that use, more should be asked for. settled: in the journal. adding, next_ceiling: what the
    commit in flight will add and allow. covered: the number of the last commit that allowed everything that was used when it
    was made; building: that of the one in flight. free: concurrency, which no journal
    knows. idle: nothing ran when the windows were last swept.
    """

    subject: str
    measure: Measure
    period: Period
    starts_at: int
    resets_at: int
    ends_at: float
    limit: int = 0
    block: int = 0
    used: int = 0
    ceiling: int = 0
    ask_at: int = 0
    settled: int = 0
    adding: int = 0
    next_ceiling: int = 0
    building: int = 0
    covered: int = 0
    free: bool = False
    idle: bool = False

    def bind(self, limit: int, sizes: BlockSize) -> None:
        """From now on it is asked for with that limit."""
        self.limit = limit
        if not self.free:
            self.block = sizes.of(self.measure, limit)
            self.allow(self.ceiling)

    def allow(self, ceiling: int) -> None:
        """Set the ceiling, and where to ask for more: at half a block below it, while the limit leaves more to ask for."""
        self.ceiling = ceiling
        self.ask_at = ceiling if ceiling >= self.limit else max(0, ceiling - self.block // 2)

    @property
    def has_too_much(self) -> bool:
        """Whether more than a block lies idle: then some is given back with the next commit."""
        return self.ceiling - self.used > self.block

    def prepare(self, commit: int, *, give_back: bool) -> WindowState:
        """What commit number *commit* shall say. A lower ceiling holds at once, a higher one from `committed` on."""
        settled = self.settled + self.adding
        self.building = commit
        self.next_ceiling = self._wanted(0 if give_back else self.block)
        if self.next_ceiling < self.ceiling:
            self.allow(self.next_ceiling)
        return WindowState(
            self.subject, self.measure, self.period, self.starts_at, settled, self.next_ceiling - settled
        )

    def committed(self) -> None:
        """The commit in flight is durable."""
        self.settled += self.adding
        self.adding = 0
        self.covered = self.building
        self.allow(self.next_ceiling)

    def failed(self) -> None:
        """Nothing of the commit in flight was kept."""
        self.adding = 0

    def _wanted(self, block: int) -> int:
        top = max(self.used, min(self.limit, self.used + block))
        enough = self.ceiling - self.used >= block / 2
        return min(self.ceiling, top) if enough and self.ceiling >= self.used else top


@dataclass(slots=True)
class _Stretch:
    """The windows of one period that run now."""

    starts_at: int = 0
    ends_at: float = 0
    counts: dict[tuple[str, Measure], Count] = field(default_factory=dict)


class Windows:
    """Every window that runs now and was used. Those of a period are dropped together when it ends: who still has a
    reservation in one keeps it alive. `live` finds a count in one look; `find` is for where it isn't in it, or has ended.
    """

    def __init__(self, sizes: BlockSize) -> None:
        self.live: dict[Window, Count] = {}
        self._sizes = sizes
        self._stretches = {period: _Stretch() for period in Period}
        self._stretches[Period.NOW].ends_at = math.inf
        self._sweep_at = FEWEST_BEFORE_A_SWEEP

    def __len__(self) -> int:
        return sum(len(stretch.counts) for stretch in self._stretches.values())

    def counts(self) -> Iterable[Count]:
        """All that a journal knows of."""
        for period, stretch in self._stretches.items():
            if period is not Period.NOW:
                yield from stretch.counts.values()

    def find(self, window: Window, now: float) -> Count:
        """The count of *window* at *now*, made if there is none."""
        stretch = self._stretch(window.period, now)
        place = (window.subject, window.measure)
        count = stretch.counts.get(place)
        if count is None:
            if window.period is Period.NOW:
                self._sweep(stretch)
            count = stretch.counts[place] = self._fresh(window, stretch)
        if len(self.live) > 2 * len(self) + FEWEST_BEFORE_A_SWEEP:  # limits that changed leave theirs behind
            self.live.clear()
        count.idle = False
        count.bind(window.limit, self._sizes)
        self.live[window] = count
        return count

    def known(self, window: Window, now: float) -> Count | None:
        """The count of *window* at *now*; None where nothing of it is used."""
        return self._stretch(window.period, now).counts.get((window.subject, window.measure))

    def resets_at(self, period: Period, now: float) -> int:
        """When the windows of *period* that run now end; 0 for never."""
        ends_at = self._stretch(period, now).ends_at
        return 0 if ends_at == math.inf else int(ends_at)

    def restore(self, state: WindowState, now: float) -> None:
        """Take over what a journal knows: what was granted in advance counts as used."""
        stretch = self._stretch(state.period, now)
        if stretch.starts_at == state.starts_at:
            window = Window(state.subject, state.measure, state.period, 0)
            count = stretch.counts[state.subject, state.measure] = self._fresh(window, stretch)
            count.settled = state.settled
            count.used = state.settled + state.block
            count.allow(count.used)

    def _fresh(self, window: Window, stretch: _Stretch) -> Count:
        never_ends = stretch.ends_at == math.inf
        return Count(
            window.subject,
            window.measure,
            window.period,
            stretch.starts_at,
            0 if never_ends else int(stretch.ends_at),
            stretch.ends_at,
            ceiling=BOUNDLESS if never_ends else 0,
            ask_at=BOUNDLESS if never_ends else 0,
            free=never_ends,
        )

    def _stretch(self, period: Period, now: float) -> _Stretch:
        stretch = self._stretches[period]
        if now >= stretch.ends_at:
            stretch.starts_at, stretch.ends_at = period.bounds(now)
            stretch.counts = {}
            self.live.clear()
        return stretch

    def _sweep(self, stretch: _Stretch) -> None:
        """Each time the number of subjects has doubled, forget those with nothing running, then and at the last sweep: one
        that a reservation has just been given is not lost between its finding and its use."""
        if len(stretch.counts) < self._sweep_at:
            return
        kept = {place: count for place, count in stretch.counts.items() if count.used or not count.idle}
        for count in kept.values():
            count.idle = not count.used
        stretch.counts = kept
        self._sweep_at = max(FEWEST_BEFORE_A_SWEEP, 2 * len(kept))
        self.live.clear()
