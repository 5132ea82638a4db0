"""What a ledger has drawn from Redis beforehand, so that it can go on for a while without it. No input, no output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.adapters.ledger.blocks import BlockSize
from headrace.domain.quota import Measure, Window
from headrace.ports.ledger import Charge, Standing, Verdict

AWAY = "the quota ledger can't be asked at present"
Place = tuple[str, Measure, str]


@dataclass(slots=True, eq=False)
class Allowance:
    """A reservation in Redis of our own, out of which others are made while Redis is away.

    used: what they reserved or, once they were settled, really used. open: how many are neither settled nor released.
    lasts_until: after that nothing may be drawn (the window has ended, or the leases have lapsed). spent: something was drawn,
    so it is settled in Redis as soon as nothing is open.
    """

    reservation: str
    window: Window
    amount: int
    resets_at: int
    lasts_until: float
    asked_at: float
    used: int = 0
    open: int = 0
    spent: bool = False

    @property
    def actual(self) -> dict[Measure, int]:
        """What to settle it with."""
        return {self.window.measure: self.used}


@dataclass(slots=True)
class LocalHold:
    """A reservation that was made out of allowances."""

    drawn: list[tuple[Allowance, int]]
    verdict: Verdict


@dataclass(slots=True)
class Allowances:
    """At most *most* of them, one a window. Those whose window wasn't asked for in *idle_s* seconds are given back."""

    sizes: BlockSize
    most: int = 10_000
    idle_s: float = 600.0
    held: dict[Place, Allowance] = field(default_factory=dict)
    holds: dict[str, LocalHold] = field(default_factory=dict)

    def wanted(self, window: Window, used: int, now: float) -> int:
        """How much to draw of *window*, which was just reserved of; 0 where there is an allowance, or too little is left:
        the last of a limit is for those who ask, not for a rainy day."""
        held = self.held.get(_place(window))
        if held is not None and now < held.lasts_until:
            held.asked_at = now
            return 0
        size = self.sizes.of(window.measure, window.limit)
        return size if len(self.held) < self.most and used + 4 * size <= window.limit else 0

    def add(self, allowance: Allowance) -> None:
        """Redis granted it."""
        self.held[_place(allowance.window)] = allowance

    def look(self, windows: Sequence[Window], now: float) -> Verdict:
        """How *windows* stand as far as can be said here: what is left of the allowances is what is left."""
        standings, full = [], []
        for window in windows:
            held = self.held.get(_place(window))
            if held is None or now >= held.lasts_until:
                return Verdict(unavailable=AWAY)
            left = held.amount - held.used
            standings.append(Standing(window, window.limit - left, held.resets_at))
            if left <= 0:
                full.append(window)
        return Verdict(unavailable=AWAY) if full else Verdict(tuple(standings))

    def draw(self, reservation: str, charges: Sequence[Charge], now: float) -> Verdict:
        """Reserve all of *charges* out of allowances; unavailable, and nothing is drawn, where they don't suffice."""
        drawn = []
        for charge in charges:
            held = self.held.get(_place(charge.window))
            if held is None or now >= held.lasts_until or held.used + charge.amount > held.amount:
                return Verdict(unavailable=AWAY)
            drawn.append((held, charge.amount))
        for held, amount in drawn:
            held.used += amount
            held.open += 1
            held.spent = True
        verdict = Verdict(
            tuple(
                Standing(charge.window, charge.window.limit - held.amount + held.used, held.resets_at)
                for charge, (held, _) in zip(charges, drawn, strict=True)
            )
        )
        self.holds[reservation] = LocalHold(drawn, verdict)
        return verdict

    def end(self, reservation: str, actual: dict[Measure, int]) -> list[Allowance] | None:
        """Close a reservation that was made here; None where it wasn't. Names the allowances that nothing is open in any
        more."""
        hold = self.holds.pop(reservation, None)
        if hold is None:
            return None
        for held, amount in hold.drawn:
            measure = held.window.measure
            real = 0 if measure is Measure.CONCURRENCY else max(0, actual.get(measure, amount))
            held.used += real - amount
            held.open -= 1
        return [held for held, _ in hold.drawn if not held.open]

    def take(self, windows: Sequence[Window]) -> list[Allowance]:
        """Those of *windows* out of which nothing was drawn; they are no longer held, and are to be given back."""
        places = [_place(window) for window in windows]
        return [self.held.pop(place) for place in places if place in self.held and not self.held[place].spent]

    def take_spent(self) -> list[Allowance]:
        """Redis is back: those with something drawn are no longer drawn from. Names the ones that nothing is open in."""
        spent = [held for held in self.held.values() if held.spent]
        for held in spent:
            del self.held[_place(held.window)]
        return [held for held in spent if not held.open]

    def drop(self, allowance: Allowance) -> None:
        """Draw no more from that one."""
        if self.held.get(_place(allowance.window)) is allowance:
            del self.held[_place(allowance.window)]

    def take_idle(self, now: float) -> list[Allowance]:
        """Those that lapsed are forgotten; those that are idle are no longer held, and are to be given back."""
        idle = []
        for place, held in list(self.held.items()):
            if not held.spent and (now >= held.lasts_until or now - held.asked_at >= self.idle_s):
                del self.held[place]
                idle.append(held)
        return idle


def _place(window: Window) -> Place:
    return window.subject, window.measure, window.period
