"""The strategies: which of the backends that have a free slot gets a request."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Mapping
from itertools import accumulate
from math import inf
from typing import Final

import msgspec

from headrace.control.strategies.candidates import Candidates, Seating
from headrace.control.strategies.load import Load
from headrace.control.strategies.sets import next_in, some_of
from headrace.domain.fleet import Node
from headrace.domain.routing import Strategy

BOUND: Final = 1.25
"""How much more than its part of what runs a backend may get of the keys that belong to it, as a factor; and one request, since where
only few run, chance alone is more than that."""
FEW: Final = 16
"""So many that have a free slot are looked at one by one, where there is no shorter way."""
SAMPLED: Final = 8
"""So many are compared by latency."""
EXPLORED: Final = 32
"""Of so many choices by latency one goes just anywhere: a backend that was slow once would never be seen to be fast again."""
SPREAD: Final = 4
"""A key belongs to one more backend for each quarter of a backend's part of all requests that have it."""
REMEMBERED: Final = 1024
"""So many choices back it is counted how often a key comes."""
_NOTICED: Final = 4
_DRAWS: Final = 24
_GOLDEN: Final = 0x9E3779B9
_ROUND: Final = 1 << 32
_LOW: Final = _ROUND - 1
_UNSEEN_S: Final = 1e9


class Wish(msgspec.Struct, frozen=True):
    """What a request wishes of the choice. session, prefix: what it belongs to, for the strategies of those names; empty or 0: nothing."""

    strategy: Strategy
    model: str
    session: str = ""
    prefix: int = 0


class Cursor:
    """Where the choices from some candidates have come to. Keep one beside them, and change nothing in it.

    last: the seat that was chosen last. best: the fastest one that was seen. turn: a count that draws are made of.
    """

    __slots__ = ("_counts", "_latest", "best", "last", "turn")

    def __init__(self) -> None:
        self.best = 0
        self.last = -1
        self.turn = 0
        self._latest: deque[int] = deque()
        self._counts: dict[int, int] = {}

    def draw(self) -> float:
        """From 0 to below 1. Any few in a row are spread evenly, which random numbers aren't: multiples of the golden ratio."""
        self.turn += 1
        return self.turn * _GOLDEN % _ROUND / _ROUND

    def share(self, key: int) -> float:
        """How many of the latest choices had this key, this one included, as a share; 0 where they are too few to tell."""
        latest, counts = self._latest, self._counts
        latest.append(key)
        counts[key] = seen = counts.get(key, 0) + 1
        if len(latest) > REMEMBERED:
            oldest = latest.popleft()
            counts[oldest] -= 1
            if not counts[oldest]:
                del counts[oldest]
        return seen / len(latest) if seen >= _NOTICED else 0.0


class _Case(msgspec.Struct, gc=False):
    """What a strategy decides on. within: those that count, full ones too. among: those of them that have a free slot; never empty.
    warm: whether only those that hold the model count."""

    candidates: Candidates
    seating: Seating
    within: int
    among: int
    warm: bool
    wish: Wish
    load: Load
    cursor: Cursor
    _most: float = 0.0

    def used(self, node_id: str) -> float:
        """The share of a backend's slots that is taken. It has some."""
        return self.load.busy.get(node_id, 0) / self.load.slots[node_id]

    def is_within_bound(self, node_id: str) -> bool:
        """Whether a backend may get one more because it belongs there: see `BOUND`."""
        runs = self.load.busy.get(node_id, 0)
        if runs < 2:
            return True
        if not self._most:
            taken, slots = self.load.used(self.within)
            self._most = BOUND * (taken + 1) / slots
        return runs < self._most * self.load.slots[node_id] + 1.0


def choose(
    candidates: Candidates, wish: Wish, load: Load, cursor: Cursor, avoid: Collection[str] = ()
) -> Node | None:
    """The one of *candidates* that gets the request; None where all that aren't in *avoid* are full, or not to be used.

    One that holds the model goes before one that would have to load it, whatever the strategy. The same calls in the same order
    choose the same.
    """
    seating = candidates.seated(load)
    within = seating.everyone
    for node_id in avoid:
        within &= ~seating.bits.get(node_id, 0)
    among = within & load.open
    if not among:
        return None
    warm = among & seating.warm
    if warm:
        among, within = warm, within & seating.warm
    case = _Case(candidates, seating, within, among, warm != 0, wish, load, cursor)
    cursor.last = _STRATEGIES[wish.strategy](case)
    return seating.nodes[cursor.last]


def _round_robin(case: _Case) -> int:
    return next_in(case.among, case.cursor.last)


def _least_busy(case: _Case) -> int:
    return next_in(case.load.freest(case.among), case.cursor.last)


def _latency(case: _Case) -> int:
    """The shortest expected time, which is the pace times the requests that there would be. Slots say nothing about it: many are
    configured with more than they can run, and a pace is only seen when it is too late. One that nothing is known of goes before all
    others while it is idle, and after them while its first answers are awaited.

    Of many a few are compared, other ones each time, with the best of the time before.
    """
    cursor, among = case.cursor, case.among
    start = int(cursor.draw() * among.bit_length())
    if cursor.turn % EXPLORED == 0:
        return next_in(among, start - 1)
    seats = some_of(among, start - 1, SAMPLED)
    if among >> cursor.best & 1:
        seats.append(cursor.best)
    cursor.best = _shortest(case, seats)
    return cursor.best


def _shortest(case: _Case, seats: list[int]) -> int:
    nodes, paces = case.seating.nodes, case.load.paces(case.wish.model)
    busy = case.load.busy
    best, shortest = -1, inf
    for seat in seats:
        name = nodes[seat].id
        pace = paces.get(name)
        if pace is not None and pace.expected_s >= shortest:
            continue
        runs = busy.get(name, 0)
        wait = pace.expected_s * (1 + runs) if pace else _UNSEEN_S * runs
        if wait < shortest:
            best, shortest = seat, wait
    return best


def _weighted(case: _Case) -> int:
    """Draws among all until one has a free slot: so those that are full are replaced by all others, each by its weight, and not by
    who comes next."""
    among = case.among
    if among.bit_count() > FEW:
        nodes, sums, bits = case.candidates.nodes, case.candidates.cumulative, case.seating.bits
        for _ in range(_DRAWS if sums[-1] else 0):
            name = nodes[bisect_right(sums, case.cursor.draw() * sums[-1])].id
            if bit := bits.get(name, 0) & among:
                return bit.bit_length() - 1
    return _weighted_scan(case)


def _weighted_scan(case: _Case) -> int:
    """One draw among those that have a free slot. Who weighs nothing gets something only where nobody else is left."""
    nodes, weights = case.seating.nodes, case.candidates.weights
    seats = some_of(case.among, -1, len(nodes))
    sums = list(accumulate([weights[nodes[seat].id] for seat in seats]))
    return seats[bisect_right(sums, case.cursor.draw() * sums[-1])] if sums[-1] else _round_robin(case)


def _session(case: _Case) -> int:
    session = case.wish.session
    return _at_home(case, zlib.crc32(session.encode())) if session else _least_busy(case)


def _prefix(case: _Case) -> int:
    prefix = case.wish.prefix
    return _at_home(case, (prefix ^ prefix >> 32) & _LOW) if prefix else _least_busy(case)


def _at_home(case: _Case, key: int) -> int:
    """Where *key* belongs, 32 bits; a next choice of its own where that one is full or over its bound.

    Of a fleet that is mostly full or away the ring may name none that is free: then a key's choice is one by seat.
    """
    bits, among = case.seating.bits, case.among
    homes = case.candidates.ring(warm=case.warm).near(key)
    if share := case.cursor.share(key):
        homes = _shared_out(case, homes, share)
    for name in homes:
        bit = bits.get(name, 0) & among
        if bit and case.is_within_bound(name):
            return bit.bit_length() - 1
    nodes = case.seating.nodes
    seat = next_in(among, key * among.bit_length() >> 32)
    return seat if case.is_within_bound(nodes[seat].id) else _least_used(case)


def _shared_out(case: _Case, homes: list[str], share: float) -> list[str]:
    """A key that so large a share of all requests have belongs to several, of which the least used is the first: else it would drive
    other keys away from where they belong."""
    several = 1 + int(SPREAD * case.within.bit_count() * share)
    free = [name for name in dict.fromkeys(homes) if case.seating.bits.get(name, 0) & case.among]
    return sorted(free[:several], key=case.used) + free[several:]


def _least_used(case: _Case) -> int:
    """The smallest share of slots taken. It is within the bound where all were looked at, since not all can be above the mean."""
    nodes = case.seating.nodes
    return min(some_of(case.among, case.cursor.last, FEW), key=lambda seat: case.used(nodes[seat].id))


_STRATEGIES: Final[Mapping[Strategy, Callable[[_Case], int]]] = {
    Strategy.ROUND_ROBIN: _round_robin,
    Strategy.LEAST_BUSY: _least_busy,
    Strategy.LATENCY: _latency,
    Strategy.WEIGHTED: _weighted,
    Strategy.SESSION: _session,
    Strategy.PREFIX: _prefix,
}
