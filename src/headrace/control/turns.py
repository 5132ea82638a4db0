"""Whose turn it is at one pool: fair shares of tokens between classes, and between the keys of a class.

This is start-time fair queueing: deficit round-robin with the deficits kept as running counts, so that nobody is walked past.
Each key has an account in its class, the tokens that it was granted, divided by its weight; the lowest account is next, and of
equal ones the one that has stood there longest. The clock of a class is the account of its latest turn. Who begins to wait starts
at the clock or at its account, whichever is later: time that a key doesn't use is lost, not saved up, and what it was granted in
advance it still owes.

Classes have accounts, too, but for them the request counts before it is granted, not after: the class is next whose account would
be lowest with its request. So a newcomer among the keys is served soon, whatever it asks for, and a newcomer of a low class waits
until the higher ones had their multiple of it.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from typing import Generic, TypeVar

from headrace.control.waiter import Waiter
from headrace.domain.inference import Priority

W = TypeVar("W", bound=Waiter)
Line = OrderedDict[int, W]
Lines = dict[tuple[Priority, str], dict[str, Line[W]]]
"""Class and key → model → who waits, by number, oldest first. Nothing in it is empty."""

CLASS_WEIGHTS = {Priority.HIGH: 64, Priority.NORMAL: 8, Priority.LOW: 1}
"""Tokens that a class gets for each token of another, while both wait for the same places."""


class Pool(Generic[W]):
    """All places that run the same set of models, which is what keys compete for; *lines* is the queue's, and only read.

    At most *limit* keys are remembered in each class; when there are more, those that don't wait are forgiven what they owe.
    """

    __slots__ = ("_clock", "_lanes", "models")

    def __init__(self, models: frozenset[str], lines: Lines[W], limit: int) -> None:
        self.models = models
        self._clock = 0.0
        self._lanes = {
            priority: _Lane(priority, weight, models, lines, limit)
            for priority, weight in CLASS_WEIGHTS.items()
        }
        for (priority, key), by_model in lines.items():
            if waited := models.intersection(by_model):
                self.join(priority, key, min(next(iter(by_model[model])) for model in waited))

    @property
    def remembered(self) -> int:
        """Accounts that are kept."""
        return sum(len(lane.keys) for lane in self._lanes.values())

    def join(self, priority: Priority, key: str, number: int) -> None:
        """*key* begins to wait for one of the models; *number* orders it among those who stand equal. Idempotent."""
        lane = self._lanes[priority]
        if not lane.keys:
            lane.granted = max(lane.granted, self._clock)
        lane.join(key, number)

    def next(self) -> W | None:
        """Who gets the next place here; None when nobody waits for one."""
        found: W | None = None
        lowest = math.inf
        for lane in self._lanes.values():  # the highest class first, and of equal ones it is the next
            waiter = lane.next()
            if waiter is not None and (account := lane.granted_with(waiter)) < lowest:
                found, lowest = waiter, account
        return found

    def charge(self, waiter: W, number: int) -> None:
        """*waiter*, whom `next` has just named, is granted; its key goes behind those who stand equal, as *number* says."""
        lane = self._lanes[waiter.priority]
        lane.granted = lane.granted_with(waiter)
        lane.charge(waiter, number)
        self._clock = max(self._clock, lane.granted)


class _Lane(Generic[W]):
    """The keys of one class, by their accounts. `granted`: tokens that the class was granted, divided by its weight."""

    __slots__ = ("_clock", "_heap", "_limit", "_lines", "_models", "_priority", "_weight", "granted", "keys")

    def __init__(
        self, priority: Priority, weight: float, models: frozenset[str], lines: Lines[W], limit: int
    ) -> None:
        self._priority = priority
        self._weight = weight
        self._models = models
        self._lines = lines
        self._limit = limit
        self._clock = 0.0
        self._heap: list[tuple[float, int, str]] = []  # account, order among equal ones, key
        self.keys: set[str] = set()  # those in the heap: they wait, or still owe
        self.granted = 0.0

    def join(self, key: str, number: int) -> None:
        if key in self.keys:
            return  # its account isn't behind the clock: `next` drops those that are
        if len(self._heap) >= self._limit:
            self._forgive()
        self.keys.add(key)
        heapq.heappush(self._heap, (self._clock, number, key))

    def next(self) -> W | None:
        heap = self._heap
        while heap:
            account, _, key = heap[0]
            waiter = self._oldest(key)
            if waiter is not None:
                self._clock = account
                return waiter
            heapq.heappop(
                heap
            )  # it doesn't wait; and whoever is next brings the clock to its account, so it owes nothing
            self.keys.discard(key)
        return None

    def granted_with(self, waiter: W) -> float:
        return self.granted + max(1, waiter.tokens) / self._weight

    def charge(self, waiter: W, number: int) -> None:
        account = self._clock + max(1, waiter.tokens) / waiter.weight
        heapq.heapreplace(self._heap, (account, number, waiter.key))

    def _oldest(self, key: str) -> W | None:
        found: W | None = None
        for model, line in self._lines.get((self._priority, key), {}).items():
            if model in self._models:
                first = next(iter(line.values()))
                if found is None or first.number < found.number:
                    found = first
        return found

    def _forgive(self) -> None:
        self._heap = [item for item in self._heap if self._oldest(item[2]) is not None]
        heapq.heapify(self._heap)
        self.keys = {key for _, _, key in self._heap}
