"""The rules of blocks, without a journal: how much of a window may be handed out, and when a commit has to say more.

A window's *ceiling* is what the journal would say was used if this process ended now: settled and block together. Nothing is
told as granted above it. It is raised ahead of need, lowered when much was given back, and never ends above the limit unless
more than that was really used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from headrace.domain.quota import Measure, Period, Window
from headrace.ports.ledger import WindowState

CONCURRENCY = Measure.CONCURRENCY
BOUNDLESS = 1 << 62
FEWEST_BEFORE_A_SWEEP = 4096
_LASTING = (Period.DAY, Period.MONTH)
"""Those of a minute are gone before it would be worth while."""
LET_GO_AT_ONCE = 1000


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

    window: as it was last asked for. used: settled and reserved, waiting reservations included. ceiling: what may be told as
    granted, whichever way the commit in flight ends. ask_at: beyond that use, more should be asked for. swift_to: up to there,
    a reservation fits and there is nothing to ask for. settled: in the journal. adding, next_ceiling: what the commit in flight
    will add and allow. covered: the number of the last commit that allowed everything that was used when it was made; building:
    that of the one in flight, 0 where it doesn't set the block. free: concurrency, which no journal knows. idle: nothing
    happened here when the windows were last swept. seen: what was used when it was last asked whether it may rest. retiring: its
    block is to be given back, so that it may.
    """

    window: Window
    starts_at: int
    resets_at: int
    block: int = 0
    used: int = 0
    ceiling: int = 0
    ask_at: int = 0
    swift_to: int = 0
    settled: int = 0
    adding: int = 0
    next_ceiling: int = 0
    building: int = 0
    covered: int = 0
    free: bool = False
    idle: bool = False
    seen: int = -1
    retiring: bool = False

    def bind(self, window: Window, sizes: BlockSize) -> None:
        """From now on it is asked for as *window*, which has another limit."""
        self.window = window
        if not self.free:
            self.block = sizes.of(window.measure, window.limit)
        self.allow(self.ceiling)

    def allow(self, ceiling: int) -> None:
        """Set the ceiling, and where to ask for more: at half a block below it, while the limit leaves more to ask for."""
        limit = self.window.limit
        self.ceiling = ceiling
        self.ask_at = ask_at = ceiling if ceiling >= limit else max(0, ceiling - self.block // 2)
        self.swift_to = min(ask_at, limit)

    @property
    def has_too_much(self) -> bool:
        """Whether more than a block lies idle: then some is given back with the next commit."""
        return self.ceiling - self.used > self.block

    @property
    def is_in_journal(self) -> bool:
        """Whether the journal knows all that is known here, and nothing is on its way there."""
        return self.used == self.settled == self.ceiling and not self.adding and not self.building

    @property
    def rises_too_far(self) -> bool:
        """Whether the block has to be set with what is being settled, which otherwise raises the ceiling by itself."""
        ceiling = self.ceiling + self.adding
        return ceiling - self.used > self.block or ceiling > self.window.limit

    def prepare(self, commit: int, *, give_back: bool) -> WindowState:
        """What commit number *commit* shall say. A lower ceiling holds at once, a higher one from `committed` on."""
        settled = self.settled + self.adding
        self.building = commit
        self.next_ceiling = self._wanted(0 if give_back or self.retiring else self.block)
        self.retiring = False
        if self.next_ceiling < self.ceiling:
            self.allow(self.next_ceiling)
        window = self.window
        return WindowState(
            window.subject,
            window.measure,
            window.period,
            self.starts_at,
            settled,
            self.next_ceiling - settled,
        )

    def committed(self) -> None:
        """The commit in flight is durable."""
        self.settled += self.adding
        if self.building:
            self.covered = self.building
            self.building = 0
            self.allow(self.next_ceiling)
        else:
            self.ceiling += self.adding  # and `rises_too_far` has seen to it that it stays below the limit
            self.ask_at += self.adding
            self.swift_to = min(self.ask_at, self.window.limit)
        self.adding = 0

    def failed(self) -> None:
        """Nothing of the commit in flight was kept."""
        self.adding = self.building = 0

    def _wanted(self, block: int) -> int:
        top = max(self.used, min(self.window.limit, self.used + block))
        enough = self.ceiling - self.used >= block / 2
        return min(self.ceiling, top) if enough and self.ceiling >= self.used else top


@dataclass(slots=True)
class _Stretch:
    """The windows of one period that run now."""

    starts_at: int = 0
    ends_at: float = 0
    counts: dict[tuple[str, Measure], Count] = field(default_factory=dict)
    complete: bool = True  # whether the journal knows none of this stretch that isn't here


class Asleep(Exception):
    """A window isn't in memory; only the journal knows how it stands."""


class Windows:
    """Every window that runs now and was used, but for those that rest: the journal knows these. Those of a period are dropped together when it ends: who still has a
    reservation in one keeps it alive. `live` finds a count in one look, under the window that it was last asked for as, and
    is right until `next_end`: then `roll` comes first. `find` is for where it isn't in it.
    """

    def __init__(self, sizes: BlockSize) -> None:
        self.live: dict[Window, Count] = {}
        self.next_end = 0.0
        self._sizes = sizes
        self._stretches = {period: _Stretch() for period in Period}
        self._stretches[Period.NOW].ends_at = math.inf
        self._sweep_at = FEWEST_BEFORE_A_SWEEP
        self._ended: list[dict[Any, Count]] = []

    def __len__(self) -> int:
        return sum(len(stretch.counts) for stretch in self._stretches.values())

    def counts(self) -> Iterable[Count]:
        """All that a journal knows of."""
        for period, stretch in self._stretches.items():
            if period is not Period.NOW:
                yield from stretch.counts.values()

    def roll(self, now: float) -> None:
        """Forget the windows that have ended at *now*. A clock that was set back finds the later ones going on."""
        for period, stretch in self._stretches.items():
            if now >= stretch.ends_at:
                stretch.starts_at, stretch.ends_at = period.bounds(now)
                self._ended += [stretch.counts, self.live]
                stretch.counts, self.live = {}, {}
                stretch.complete = True
        self.next_end = min(stretch.ends_at for stretch in self._stretches.values())

    def let_go(self) -> None:
        """Drop a few of those that ended: a hundred thousand at once, at each minute's end, would halt everybody for as long."""
        if self._ended:
            ended = self._ended[0]
            for _ in range(min(len(ended), LET_GO_AT_ONCE)):
                ended.popitem()
            if not ended:
                del self._ended[0]

    def find(self, window: Window) -> Count:
        """The count of *window*, made if there is none.

        Raises:
            Asleep: the journal may know one.
        """
        stretch = self._stretches[window.period]
        place = (window.subject, window.measure)
        count = stretch.counts.get(place)
        if count is None:
            if not stretch.complete:
                raise Asleep
            if window.period is Period.NOW:
                self._sweep(stretch)
            count = stretch.counts[place] = self._fresh(window, stretch)
            count.bind(window, self._sizes)
        elif count.window is not window:
            self.live.pop(count.window, None)  # who finds it as that would find another's limit
            count.bind(window, self._sizes)
        count.idle = False
        self.live[window] = count
        return count

    def known(self, window: Window) -> Count | None:
        """The count of *window*; None where nothing of it is used.

        Raises:
            Asleep: the journal may know one.
        """
        stretch = self._stretches[window.period]
        count = stretch.counts.get((window.subject, window.measure))
        if count is None and not stretch.complete:
            raise Asleep
        return count

    def asleep(self, windows: Iterable[Window]) -> list[tuple[Window, int]]:
        """Those that only the journal may know, with their beginnings."""
        stretches = [(window, self._stretches[window.period]) for window in windows]
        return [
            (window, stretch.starts_at)
            for window, stretch in stretches
            if not stretch.complete and (window.subject, window.measure) not in stretch.counts
        ]

    def wake(self, asleep: Iterable[tuple[Window, int]], states: Iterable[WindowState]) -> None:
        """The journal says how those stand that were asleep: as *states* say, and where these say nothing, unused."""
        known = {(state.subject, state.measure, state.period): state for state in states}
        for window, starts_at in asleep:
            stretch = self._stretches[window.period]
            place = (window.subject, window.measure)
            if stretch.starts_at == starts_at and place not in stretch.counts:
                state = known.get((*place, window.period))
                self._take_over(stretch, state or WindowState(*place, window.period, starts_at, 0, 0))

    def rest(self, most: int, may_rest: Callable[[Count], bool], retire: Callable[[Count], object]) -> None:
        """Let go of those that weren't used since they were last looked at here, of the *most* that this was longest ago: at once
        where the journal knows all of it, else what it granted them is given back first (*retire*)."""
        for period in _LASTING:
            stretch = self._stretches[period]
            for place in list(islice(stretch.counts, most)):
                count = stretch.counts.pop(place)
                if count.used == count.seen and count.is_in_journal and may_rest(count):
                    self.live.pop(count.window, None)
                    stretch.complete = False
                    continue
                stretch.counts[place] = count
                if count.used == count.seen and count.used == count.settled:
                    count.retiring = True
                    retire(count)
                count.seen = count.used

    def resets_at(self, period: Period) -> int:
        """When the windows of *period* that run now end; 0 for never."""
        ends_at = self._stretches[period].ends_at
        return 0 if ends_at == math.inf else int(ends_at)

    def restore(self, state: WindowState, now: float) -> None:
        """Take over what a journal knows: what was granted in advance counts as used."""
        if now >= self.next_end:
            self.roll(now)
        stretch = self._stretches[state.period]
        if stretch.starts_at == state.starts_at:
            self._take_over(stretch, state)

    def _take_over(self, stretch: _Stretch, state: WindowState) -> None:
        window = Window(state.subject, state.measure, state.period, 0)
        count = stretch.counts[state.subject, state.measure] = self._fresh(window, stretch)
        count.settled = state.settled
        count.used = state.settled + state.block
        count.allow(count.used)

    def _fresh(self, window: Window, stretch: _Stretch) -> Count:
        never_ends = stretch.ends_at == math.inf
        return Count(
            window,
            stretch.starts_at,
            0 if never_ends else int(stretch.ends_at),
            ceiling=BOUNDLESS if never_ends else 0,
            free=never_ends,
        )

    def _sweep(self, stretch: _Stretch) -> None:
        """Each time the number of subjects has doubled, forget those with nothing running, then and at the last sweep: one
        that a reservation has just been given is not lost between its finding and its use."""
        if len(stretch.counts) < self._sweep_at:
            return
        forgotten = [
            (place, count) for place, count in stretch.counts.items() if count.idle and not count.used
        ]
        for place, count in forgotten:
            del stretch.counts[place]
            self.live.pop(count.window, None)
        for count in stretch.counts.values():
            count.idle = not count.used
        self._sweep_at = max(FEWEST_BEFORE_A_SWEEP, 2 * len(stretch.counts))
