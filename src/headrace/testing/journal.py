"""A journal in memory, for tests of what is kept in one: it can be held, can fail, and can crash."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from headrace.domain.quota import Measure, Period, Window
from headrace.ports.ledger import Journal, JournalEntry, WindowState

_Place = tuple[str, Measure, Period, int]
_Entry = tuple[str, str, Measure, Period]


class _Commit(msgspec.Struct, gc=False):
    entries: tuple[JournalEntry, ...]
    blocks: tuple[WindowState, ...]
    told: Callable[[bool], object]


class MemoryJournal(Journal):
    """Keeps what was committed for as long as this object lives: open it again to see what a restart would find.

    Commits are carried out in the event loop's next turn. After `hold` they wait until `carry_out`, which needs no loop.
    While `failing`, each is answered with False and nothing of it is kept.
    """

    def __init__(self) -> None:
        self.failing = False
        self.commits = 0
        self._held = False
        self._waiting: deque[_Commit] = deque()
        self._windows: dict[_Place, tuple[int, int]] = {}
        self._entries: dict[_Entry, JournalEntry] = {}

    @property
    def waiting(self) -> int:
        """Commits that were given and not carried out."""
        return len(self._waiting)

    @property
    def entries(self) -> tuple[JournalEntry, ...]:
        """Every entry that is kept."""
        return tuple(self._entries.values())

    def state(self, subject: str, measure: Measure, period: Period, starts_at: int) -> WindowState:
        """What is kept of one window; zeros where that is nothing."""
        settled, block = self._windows.get((subject, measure, period, starts_at), (0, 0))
        return WindowState(subject, measure, period, starts_at, settled, block)

    def hold(self) -> None:
        """Carry out no commit until told to: a journal that is slow, or hangs."""
        self._held = True

    def carry_out(self, most: int | None = None) -> int:
        """Carry out the *most* oldest commits (None: all), and say how many that were."""
        done = 0
        while self._waiting and (most is None or done < most):
            self._carry_out_next()
            done += 1
        return done

    def let_go(self) -> None:
        """No longer hold: carry out what waits, and from now on each in the loop's next turn."""
        self._held = False
        self.carry_out()

    def crash(self) -> None:
        """Lose every commit that wasn't carried out; nobody is told."""
        self._waiting.clear()

    async def open(self, now: float) -> list[WindowState]:
        """Every window that hasn't ended at *now*."""
        return [
            self.state(*place)
            for place in self._windows
            if (ends_at := place[2].bounds(place[3])[1]) > now or not ends_at
        ]

    def commit(
        self,
        entries: Sequence[JournalEntry],
        blocks: Sequence[WindowState],
        told: Callable[[bool], object],
    ) -> None:
        """Carried out in the loop's next turn, or when the test says so."""
        self._waiting.append(_Commit(tuple(entries), tuple(blocks), told))
        if not self._held:
            asyncio.get_running_loop().call_soon(self.carry_out, 1)

    def look(
        self,
        windows: Sequence[tuple[Window, int]],
        told: Callable[[Sequence[WindowState] | None], object],
    ) -> None:
        """Answered at once, also while commits are held; None while it is failing."""
        places = [(window.subject, window.measure, window.period, starts_at) for window, starts_at in windows]
        told(None if self.failing else [self.state(*place) for place in places if place in self._windows])

    async def prune(self, ended_before: float, settled_before: float) -> None:
        """Forget windows that have ended, and entries that are old."""
        self._windows = {p: s for p, s in self._windows.items() if not _ended(p[2], p[3], ended_before)}
        self._entries = {k: e for k, e in self._entries.items() if e.at >= settled_before}

    def _carry_out_next(self) -> None:
        commit = self._waiting.popleft()
        if not self.failing:
            self._keep(commit)
            self.commits += 1
        commit.told(not self.failing)

    def _keep(self, commit: _Commit) -> None:
        for entry in commit.entries:
            key = (entry.reservation, entry.subject, entry.measure, entry.period)
            if key not in self._entries:
                self._entries[key] = entry
                place = (entry.subject, entry.measure, entry.period, entry.starts_at)
                settled, block = self._windows.get(place, (0, 0))
                self._windows[place] = (settled + entry.amount, block)
        for state in commit.blocks:
            place = (state.subject, state.measure, state.period, state.starts_at)
            self._windows[place] = (self._windows.get(place, (0, 0))[0], state.block)


def _ended(period: Period, starts_at: int, before: float) -> bool:
    ends_at = period.bounds(starts_at)[1]
    return 0 < ends_at <= before
