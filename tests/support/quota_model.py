"""What a quota ledger should say, in the simplest way: a list of reservations that is added up each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.domain.quota import Measure, Window
from headrace.ports.ledger import Charge

Place = tuple[str, Measure, str, int]  # subject, measure, period, start


@dataclass
class Reserved:
    """One reservation: what it takes of each window; told: whether its caller heard of it."""

    amounts: dict[Place, int]
    actual: dict[Measure, int] | None = None  # None while it is open
    told: bool = False

    def uses(self, place: Place) -> int:
        """What it uses of a window: what it reserved, or was settled with."""
        reserved = self.amounts.get(place, 0)
        if self.actual is None or place not in self.amounts:
            return reserved
        return 0 if place[1] is Measure.CONCURRENCY else self.actual.get(place[1], reserved)


@dataclass
class QuotaModel:
    """Reservations by id, and what earlier crashes left charged."""

    reservations: dict[str, Reserved] = field(default_factory=dict)
    left: dict[Place, int] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)

    def place(self, window: Window, now: float) -> Place:
        """The stretch of time of *window* that *now* falls into."""
        return window.subject, window.measure, window.period, window.period.bounds(now)[0]

    def used(self, place: Place) -> int:
        """All that is used of it."""
        return self.left.get(place, 0) + sum(one.uses(place) for one in self.reservations.values())

    def refused(self, charges: Sequence[Charge], now: float) -> tuple[Window, ...]:
        """The windows that have no room for *charges*."""
        return tuple(
            charge.window
            for charge in charges
            if self.used(self.place(charge.window, now)) + charge.amount > charge.window.limit
        )

    def reserve(self, reservation: str, charges: Sequence[Charge], now: float) -> None:
        """All of *charges*."""
        amounts = {self.place(charge.window, now): charge.amount for charge in charges}
        self.reservations[reservation] = Reserved(amounts)

    def settle(self, reservation: str, actual: dict[Measure, int]) -> None:
        """What was really used; nothing where it isn't open."""
        one = self.reservations.get(reservation)
        if reservation not in self.closed and one is not None:
            one.actual = actual
        self.closed.add(reservation)

    def release(self, reservation: str) -> None:
        """As if it had never been; nothing where it isn't open."""
        if reservation not in self.closed:
            self.reservations.pop(reservation, None)
        self.closed.add(reservation)

    def places(self) -> set[Place]:
        """Every window that anything ever used."""
        return set(self.left).union(*(one.amounts for one in self.reservations.values()))
