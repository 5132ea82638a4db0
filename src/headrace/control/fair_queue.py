"""The one queue: who waits, who is next where a place is free, and who gives way when it is full.

Pure: no clock, no event loop, and no operation looks at all who wait, or at keys that don't. Keys compete for a *pool*: the places
that run the same set of models. A pool's turns (`turns.py`) are counted by themselves, so that neither what a key gets elsewhere nor
a request for a model without a free place stands in the way of anything.

What holds for each pool, counting the tokens that it grants, of two keys of one class and weight:

* While both wait, what they are granted differs by at most the largest request of one plus the largest of the other.
* Before a request is granted, another key gets at most what the request's own key gets from when it came (and what it was granted
  just before, and still owed), and one request more. A key that comes new is passed by each other key at most once.
* While two classes wait, what they are granted, each divided by its weight, differs by at most one request of each, divided
  likewise. None starves.

When the queue is full, the key with the most waiting gives way: a newcomer whose key has fewer takes the place of that key's newest
request of its lowest class. So a key is refused only if none has more than one request more than it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from headrace.control.turns import Lines, Pool
from headrace.control.waiter import Waiter
from headrace.domain.inference import Priority

MOST_POOLS = 128
"""Pools whose turns are remembered. Of more, the one that was free least recently is forgotten: all keys start equal there."""

W = TypeVar("W", bound=Waiter)


class FairQueue(Generic[W]):
    """At most *size* who wait, besides those put back. `depth`: how many wait, all in all."""

    def __init__(self, size: int) -> None:
        self.depth = 0
        self._size = size
        self._numbered = 0
        self._lines: Lines[W] = {}
        self._put_back: dict[
            tuple[str, frozenset[str]], OrderedDict[int, W]
        ] = {}  # by model, and what they avoid
        self._by_class: dict[Priority, OrderedDict[int, W]] = {
            priority: OrderedDict() for priority in Priority
        }
        self._models: dict[str, int] = {}
        self._shares = _Shares()
        self._pools: dict[frozenset[str], Pool[W]] = {}

    def push(self, waiter: W) -> W | None:
        """Let *waiter* wait. Returns who has to go for that: None while there is room, *waiter* itself where its key has its
        share, else one who waited. Who is returned isn't in the queue."""
        gone: W | None = None
        if self._shares.waiting >= self._size:
            gone = self._gives_way(waiter.key)
            if gone is None:
                return waiter
            self.remove(gone)
        number = self._note(waiter)
        by_model = self._lines.setdefault((waiter.priority, waiter.key), {})
        line = by_model.get(waiter.model)
        if line is None:
            line = by_model[waiter.model] = OrderedDict()
            for pool in self._pools.values():
                if waiter.model in pool.models:
                    pool.join(waiter.priority, waiter.key, number)
        line[number] = waiter
        waiter.put_back = False
        self._models[waiter.model] = self._models.get(waiter.model, 0) + 1
        waiter.turn = self._shares.add(waiter.key)
        return gone

    def put_back(self, waiter: W) -> None:
        """Let one wait again whose grant came to nothing: before all others, at no further cost, however full it is.

        The first of them that a place suits gets it; there are as many as had places, at most.
        """
        number = self._note(waiter)
        self._put_back.setdefault((waiter.model, waiter.avoid), OrderedDict())[number] = waiter
        waiter.put_back = True

    def remove(self, waiter: W) -> bool:
        """Take *waiter* out; False when it isn't in the queue. Its key is charged nothing."""
        number = waiter.number
        if not number:
            return False
        waiter.number = 0
        del self._by_class[waiter.priority][number]
        self.depth -= 1
        if waiter.put_back:
            _drop(self._put_back, (waiter.model, waiter.avoid), number)
            return True
        self._models[waiter.model] -= 1
        if not self._models[waiter.model]:
            del self._models[waiter.model]
        by_model = self._lines[waiter.priority, waiter.key]
        _drop(by_model, waiter.model, number)
        if not by_model:
            del self._lines[waiter.priority, waiter.key]
        self._shares.take(waiter.key)
        if not self._lines:
            self._pools.clear()  # nobody competes any more: old accounts are settled
        return True

    def pop(self, models: frozenset[str], node: str = "") -> W | None:
        """Take out who gets the place that is free at *node*, which runs *models*; its key is charged.

        None when it suits nobody.
        """
        waiter = self._first_put_back(models, node) if self._put_back else None
        if waiter is None and self._lines:
            pool = self._pool(models)
            waiter = pool.next()
            if waiter is not None:
                self._numbered += 1
                pool.charge(waiter, self._numbered)
                self._shares.grant(waiter.key)
        if waiter is not None:
            self.remove(waiter)
        return waiter

    def position(self, waiter: W) -> int:
        """About how many grants it takes until *waiter* has its own, if requests are alike; 0 outside the queue.

        Never more than there are who wait.
        """
        if not waiter.number:
            return 0
        return 1 if waiter.put_back else min(self.depth, self._shares.grants_until(waiter.key, waiter.turn))

    def waiting(self, priority: Priority) -> int:
        """How many wait in the class."""
        return len(self._by_class[priority])

    def oldest_since(self) -> float | None:
        """When the one began to wait who has waited longest; None when nobody waits."""
        return min(
            (next(iter(line.values())).since for line in self._by_class.values() if line), default=None
        )

    def awaits(self, model: str) -> bool:
        """Whether somebody waits for *model* who wasn't put back."""
        return model in self._models

    def models(self) -> set[str]:
        """The models that somebody waits for."""
        return {*self._models, *(model for model, _ in self._put_back)}

    @property
    def remembered(self) -> int:
        """Accounts that are kept, of keys that wait or owe."""
        return sum(pool.remembered for pool in self._pools.values())

    def waiting_for(self, model: str) -> list[W]:
        """All who wait for *model*; looks at everybody, for the rare case that they all have to go."""
        return [
            waiter for line in self._by_class.values() for waiter in line.values() if waiter.model == model
        ]

    def one_of_each(self) -> list[W]:
        """For each model that somebody waits for, one who does; looks at everybody."""
        return list(
            {waiter.model: waiter for line in self._by_class.values() for waiter in line.values()}.values()
        )

    def _note(self, waiter: W) -> int:
        self._numbered += 1
        waiter.number = self._numbered
        self._by_class[waiter.priority][waiter.number] = waiter
        self.depth += 1
        return waiter.number

    def _gives_way(self, key: str) -> W | None:
        """Who makes room for one more of *key*: the newest of the largest key, in its lowest class."""
        largest = self._shares.larger_than(key)
        if largest is None:
            return None
        priority = min(p for p in Priority if (p, largest) in self._lines)
        newest = (next(reversed(line.values())) for line in self._lines[priority, largest].values())
        return max(newest, key=lambda waiter: waiter.number)

    def _first_put_back(self, models: frozenset[str], node: str) -> W | None:
        first: W | None = None
        for (model, avoid), line in self._put_back.items():
            if model in models and node not in avoid:
                waiter = next(iter(line.values()))
                if first is None or waiter.number < first.number:
                    first = waiter
        return first

    def _pool(self, models: frozenset[str]) -> Pool[W]:
        pool = self._pools.pop(models, None)
        if pool is None:
            if len(self._pools) >= MOST_POOLS:
                del self._pools[next(iter(self._pools))]
            pool = Pool(models, self._lines, limit=2 * self._size + 1)
        self._pools[models] = pool  # behind the others: the first is the one that was free least recently
        return pool


class _Share:
    """What one key has in the queue, and was granted since it began to wait."""

    __slots__ = ("granted", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.granted = 0


class _Shares:
    """How many requests of each key wait, and which key has the most."""

    def __init__(self) -> None:
        self.waiting = 0
        self._most = 0
        self._keys: dict[str, _Share] = {}
        self._by_waiting: dict[int, OrderedDict[str, None]] = {}

    def add(self, key: str) -> int:
        """One more waits. Returns which grant of its key it will be."""
        share = self._keys.get(key)
        if share is None:
            share = self._keys[key] = _Share()
        self._move(key, share, 1)
        return share.granted + share.waiting

    def take(self, key: str) -> None:
        """One fewer waits."""
        self._move(key, self._keys[key], -1)

    def grant(self, key: str) -> None:
        """One that waits is granted; `take` follows."""
        self._keys[key].granted += 1

    def grants_until(self, key: str, turn: int) -> int:
        """Grants until the key's grant number *turn*, if each key gets one in its turn."""
        share = self._keys[key]
        return max(1, min(turn - share.granted, share.waiting)) * len(self._keys)

    def larger_than(self, key: str) -> str | None:
        """The key with the most waiting, if it has more even with one of *key* added."""
        share = self._keys.get(key)
        if (share.waiting if share else 0) + 1 >= self._most:
            return None
        return next(reversed(self._by_waiting[self._most]))

    def _move(self, key: str, share: _Share, step: int) -> None:
        before = share.waiting
        share.waiting += step
        self.waiting += step
        if before:
            _drop(self._by_waiting, before, key)
        if share.waiting:
            self._by_waiting.setdefault(share.waiting, OrderedDict())[key] = None
        else:
            del self._keys[key]
        if share.waiting > self._most or self._most not in self._by_waiting:
            self._most = share.waiting


K = TypeVar("K")
N = TypeVar("N")
V = TypeVar("V")


def _drop(groups: dict[K, OrderedDict[N, V]], group: K, member: N) -> None:
    """Take *member* out of its group, and the group away with its last."""
    members = groups[group]
    del members[member]
    if not members:
        del groups[group]
