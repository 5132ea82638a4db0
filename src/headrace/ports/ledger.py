"""The ports to what is counted: the quota ledger, and the journal that an embedded ledger keeps its truth in.

Both push, as the seam to the control plane does: an answer that is known at once comes before the call returned, one that
needs a commit or another machine comes later, and no request needs a task for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from headrace.domain.quota import Measure, Period, Window


class Charge(msgspec.Struct, frozen=True, gc=False):
    """So much of one window."""

    window: Window
    amount: int


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How a window stands. `used`: settled and reserved together. `resets_at`: seconds since the epoch, 0 for concurrency."""

    window: Window
    used: int
    resets_at: int

    @property
    def remaining(self) -> int:
        """What may still be reserved; never negative, though a settlement above its reservation can overdraw a window."""
        return max(0, self.window.limit - self.used)


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What became of a reservation. `standings`: of each window that was asked for, in that order, after the decision.

    refused: the windows that had no room; empty where all was reserved. For `unavailable` the ledger could not be asked, and
    nothing is known: no standings.
    """

    standings: tuple[Standing, ...] = ()
    refused: tuple[Window, ...] = ()
    unavailable: str = ""

    @property
    def granted(self) -> bool:
        """Whether everything was reserved; otherwise nothing was."""
        return not self.refused and not self.unavailable


Told = Callable[[Verdict], object]


class QuotaLedger(Protocol):
    """Counts what is used, exactly, however many ask at once.

    A reservation is made of all its charges or of none; the sum of what is reserved and settled in a window never exceeds its
    limit because of a reservation. Every verb is idempotent by the reservation's id: a repeated `reserve` is answered as the
    first was, granted or refused (`unavailable` is no answer: the next attempt is the first), a repeated `settle` or `release`
    does nothing, and what comes after `settle` or `release` finds it closed, also where these came first: such a `reserve`
    reserves nothing and hears `unavailable`. How long what is closed is remembered is bounded, and the adapter says how.
    A reservation belongs to the windows in which it was made, also when it is settled after they ended. A clock that is set
    back doesn't reopen a window that ended: the later one goes on.
    """

    def reserve(self, reservation: str, charges: Sequence[Charge], told: Told) -> None:
        """Reserve every charge, or none; each window occurs once in *charges*, with an amount that isn't negative.

        *told* hears the verdict once, perhaps before this returned, and in a bounded time.
        """

    def settle(self, reservation: str, actual: dict[Measure, int]) -> None:
        """Close *reservation* with what was really used. A measure that isn't named is settled as it was reserved;
        concurrency is always given back. More than was reserved is charged, too, and keeps the next one out. What isn't open
        charges nothing."""

    def release(self, reservation: str) -> None:
        """Close *reservation* as if it had never been: everything is given back."""

    def peek(self, windows: Sequence[Window], told: Told) -> None:
        """How *windows* stand; changes nothing. The verdict's `refused` names those that have nothing left."""

    async def close(self) -> None:
        """Write what is unwritten, and let go of connections. Idempotent."""


class WindowState(msgspec.Struct, frozen=True, gc=False):
    """What a journal knows of one window in one stretch of time.

    starts_at: when it began, seconds since the epoch. settled: the sum of its entries. block: how much more was granted in
    advance; nothing beyond `settled + block` was ever handed out, so after a crash that is what counts as used.
    """

    subject: str
    measure: Measure
    period: Period
    starts_at: int
    settled: int
    block: int


class JournalEntry(msgspec.Struct, frozen=True, gc=False):
    """One settlement in one window; (reservation, subject, measure, period) is unique."""

    reservation: str
    subject: str
    measure: Measure
    period: Period
    starts_at: int
    amount: int
    at: float


class Journal(Protocol):
    """Where an embedded ledger's truth is kept: settlements, and the blocks that were granted in advance (decision 9)."""

    async def open(self, now: float) -> list[WindowState]:
        """Every window that hasn't ended at *now*, as the last commit left it."""

    def commit(
        self,
        entries: Sequence[JournalEntry],
        blocks: Sequence[WindowState],
        told: Callable[[bool], object],
    ) -> None:
        """In one transaction: add *entries*, each of which raises its window's `settled` by its amount (one that is already
        there changes nothing), and set the `block` of the windows in *blocks* (their `settled` is not looked at).

        *told* hears once, on the event loop, whether it is durable; commits are durable in the order in which they were given.
        False: nothing of it was kept, and the same may be given again.
        """

    def look(
        self,
        windows: Sequence[tuple[Window, int]],
        told: Callable[[Sequence[WindowState] | None], object],
    ) -> None:
        """Which of *windows*, each with the time at which it began, are known, as the last commit left them. Their limits aren't
        looked at.

        *told* hears once, on the event loop, perhaps before this returned; None: nobody can say.
        """

    async def prune(self, ended_before: float, settled_before: float) -> None:
        """Forget the windows that ended before *ended_before*, and the entries that were settled before *settled_before*, whose
        windows keep their sum. Until then an entry that is given again changes nothing; after that it would count once more."""
