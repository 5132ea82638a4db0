"""What the backends carry now, and how fast they have been."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Final

import msgspec

from headrace.control.strategies.sets import Tally

SMOOTHING: Final = 0.2
"""The share of the latest observation in a pace: the five or so before it count for as much as all earlier ones."""
TOKENS: Final = 64
"""After the first one: so many are expected of an answer, for the comparison of backends."""
_KEPT_SUMS: Final = 256


class Pace(msgspec.Struct, frozen=True):
    """How fast a backend was with a model lately, in seconds: from the request to the first token, and from one token to the next.
    Both are moving averages. between_s: 0 as long as no answer had two tokens. expected_s: how long the first tokens take."""

    first_s: float
    between_s: float = 0.0
    expected_s: float = -1.0

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "expected_s", self.first_s + TOKENS * self.between_s)

    def observed(self, first_s: float, between_s: float | None = None) -> Pace:
        """With one more answer; *between_s* None where it had no second token."""
        first = _averaged(self.first_s, first_s)
        if between_s is None:
            return Pace(first, self.between_s)
        return Pace(first, _averaged(self.between_s, between_s) if self.between_s else between_s)


class Load:
    """Which backend runs how much, and may run how much. One writer: whoever grants and frees slots.

    A backend that wasn't allowed any slots isn't used. It may run more than it is allowed, when that was lowered meanwhile.

    busy: backend id → requests that it runs now; missing: 0. slots: backend id → requests that it may run at once. Both are to be
    read only.
    open: the seats of those that have a free slot, as a set. seats: backend id → its number in such sets. version: grows when seats
    are given or given back, after which a seat may be another's.
    """

    __slots__ = (
        "_allowed", "_busy", "_counted", "_free", "_paces", "_slots", "_sums", "_uncounted", "_vacant",
        "busy", "open", "seats", "slots", "version",
    )  # fmt: skip

    def __init__(self) -> None:
        self._busy: dict[str, int] = {}
        self._slots: dict[str, int] = {}
        self._paces: dict[str, dict[str, Pace]] = {}
        self._vacant: list[int] = []
        self._free, self._allowed = Tally(), Tally()
        self._counted: dict[str, int] = {}  # what `_free` says of each; of the uncounted it is no longer true
        self._uncounted: set[str] = set()
        self._sums: dict[int, int] = {}
        self.busy: Final[Mapping[str, int]] = self._busy
        self.slots: Final[Mapping[str, int]] = self._slots
        self.seats: Final[dict[str, int]] = {}
        self.version = 0
        self.open = 0

    def allow(self, node_id: str, slots: int) -> None:
        """From now on the backend may run so many requests at once; 0: it isn't to be used (it is down, or left alone)."""
        slots, before = max(0, slots), self._slots.get(node_id)
        if before == slots:
            return
        if before is None:
            self._seat(node_id)
        self._slots[node_id] = slots
        self._resize(node_id, before or 0, slots)

    def forget(self, node_id: str) -> None:
        """The backend is gone. What it still runs counts until it is given back; nothing happens when nothing is known of it."""
        before = self._slots.get(node_id)
        if before is None:
            return
        self._slots[node_id] = 0
        self._resize(node_id, before, 0)
        self._count()
        del self._slots[node_id], self._counted[node_id]
        heapq.heappush(self._vacant, self.seats.pop(node_id))
        self.version += 1
        for model, paces in list(self._paces.items()):
            paces.pop(node_id, None)
            if not paces:
                del self._paces[model]

    def take(self, node_id: str) -> None:
        """One request more runs there."""
        busy = self._busy[node_id] = self._busy.get(node_id, 0) + 1
        slots = self._slots.get(node_id, 0)
        if busy <= slots:
            self._uncounted.add(node_id)
            if busy == slots:
                self.open ^= 1 << self.seats[node_id]

    def give_back(self, node_id: str) -> None:
        """One request less runs there. There has to be one."""
        busy = self._busy[node_id] - 1
        if busy:
            self._busy[node_id] = busy
        else:
            del self._busy[node_id]
        slots = self._slots.get(node_id, 0)
        if busy < slots:
            self._uncounted.add(node_id)
            if busy + 1 == slots:
                self.open ^= 1 << self.seats[node_id]

    def freest(self, among: int) -> int:
        """Those seats of a set that have the most free slots."""
        if self._uncounted:
            self._count()
        return self._free.highest(among)

    def used(self, within: int) -> tuple[int, int]:
        """Of the seats of a set together: the slots that are taken, and all."""
        if self._uncounted:
            self._count()
        slots = self._sums.get(within)
        if slots is None:
            if len(self._sums) >= _KEPT_SUMS:
                self._sums.clear()
            slots = self._sums[within] = self._allowed.total(within)
        return slots - self._free.total(within), slots

    def observe(self, node_id: str, model: str, first_s: float, between_s: float | None = None) -> None:
        """An answer came so fast; see `Pace`. Nothing happens for a backend that is gone."""
        if node_id not in self._slots:
            return
        paces = self._paces.setdefault(model, {})
        before = paces.get(node_id)
        paces[node_id] = before.observed(first_s, between_s) if before else Pace(first_s, between_s or 0.0)

    def paces(self, model: str) -> Mapping[str, Pace]:
        """How fast backends were with the model, by id; those of which nothing came yet are missing."""
        return self._paces.get(model, _NONE)

    def all_paces(self) -> dict[str, dict[str, Pace]]:
        """For each backend, how fast it was with which models. Looks through all of them; who looks may keep it."""
        found: dict[str, dict[str, Pace]] = {}
        for model, paces in self._paces.items():
            for node_id, pace in paces.items():
                found.setdefault(node_id, {})[model] = pace
        return found

    def _seat(self, node_id: str) -> None:
        self.seats[node_id] = heapq.heappop(self._vacant) if self._vacant else len(self.seats)
        self._counted[node_id] = 0
        self.version += 1

    def _resize(self, node_id: str, before: int, after: int) -> None:
        bit = 1 << self.seats[node_id]
        self._allowed.change(bit, before, after)
        self._sums.clear()
        self._uncounted.add(node_id)
        self.open = self.open | bit if self._busy.get(node_id, 0) < after else self.open & ~bit

    def _count(self) -> None:
        """Free slots are only counted when a strategy asks for them: most don't."""
        counted = self._counted
        for node_id in self._uncounted:
            free = max(0, self._slots[node_id] - self._busy.get(node_id, 0))
            self._free.change(1 << self.seats[node_id], counted[node_id], free)
            counted[node_id] = free
        self._uncounted.clear()


def _averaged(average: float, seen: float) -> float:
    return average + SMOOTHING * (seen - average)


_NONE: Final[Mapping[str, Pace]] = {}
