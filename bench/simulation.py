"""Strategies compared on a simulated fleet: discrete events, virtual time, the same figures on every machine.

What is modelled: backends that run several requests at once and become slower for each with every further one; requests that arrive
at random, wait in one queue for a free slot, have their prompt read, and are then answered token by token; a bounded cache of
prompts' beginnings at each backend. What isn't: the network, loading of models, failures, and memory that runs out.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf

from headrace.control.strategies import Candidates, Cursor, Load, Wish, choose
from headrace.domain.fleet import Node
from headrace.domain.routing import Strategy

MODEL = "model"
PREFILL = 20.0
"""Tokens of a prompt that are read in the time of one token of an answer."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A backend. tokens_per_s: of one answer alone. parallel: requests that it runs at once; more wait in its own queue. slots: how many
    requests it is said to take. width: with so many answers more, each is half as fast; all together can never be faster than so
    many alone. cached: beginnings of prompts that it keeps."""

    tokens_per_s: float
    parallel: int
    slots: int
    width: float = 4.0
    cached: int = 0

    def speed(self, running: int) -> float:
        """Tokens each second of each of so many answers."""
        return self.tokens_per_s / (1.0 + (running - 1) / self.width)

    @property
    def most_tokens_per_s(self) -> float:
        """Of all its answers together, when it runs as many as it can."""
        return self.parallel * self.speed(self.parallel)


@dataclass(frozen=True, slots=True)
class Request:
    """at: seconds. prompt, answer: tokens; beginning: those of the prompt that it shares with others of the same *prefix*."""

    at: float
    prompt: int
    answer: int
    prefix: int = 0
    beginning: int = 0

    def work(self, *, hit: bool = False) -> tuple[float, float]:
        """Until the first token, and to the end, in tokens of an answer."""
        first = (self.prompt + (0 if hit else self.beginning)) / PREFILL + 1.0
        return first, first + self.answer - 1.0


@dataclass(slots=True)
class Found:
    """What came of a simulation. waits_s, answers_s: from arrival to the first token, and to the last. used: by backend, requests
    that it ran, on average. hits: requests whose beginning was cached where they went."""

    waits_s: list[float] = field(default_factory=list)
    answers_s: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    hits: int = 0

    def wait_s(self, share: float) -> float:
        """The wait that so many don't exceed, as a share of all."""
        ordered = sorted(self.waits_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def imbalance(self) -> float:
        """The highest use of a backend, as a multiple of the mean."""
        return max(self.used) / (sum(self.used) / len(self.used))


@dataclass(slots=True)
class _Run:
    """A request at a backend. first_at: when its first token came. hit: whether its prompt's beginning was cached."""

    request: Request
    granted_at: float
    first_at: float = inf
    hit: bool = False


class _Backend:
    """Runs requests that all advance alike: so how far each is shows in one count, the tokens that one would have got that was always
    there."""

    def __init__(self, name: str, machine: Machine) -> None:
        self.name = name
        self.machine = machine
        self.held_s = 0.0
        self.next_at = inf
        self._running = 0
        self._done = 0.0
        self._now = 0.0
        self._ahead: list[tuple[float, int, bool, _Run]] = []
        self._queue = deque[_Run]()
        self._numbers = count()
        self._cache: OrderedDict[int, None] = OrderedDict()

    def take(self, now: float, request: Request) -> None:
        """Run it, or keep it until there is room."""
        self._advance(now)
        self._queue.append(_Run(request, now))
        self._begin()

    def step(self, now: float) -> _Run | None:
        """It is `next_at`. The request that ended; None where it was a first token."""
        self._advance(now)
        self._done, _, last, run = heapq.heappop(self._ahead)
        if last:
            self._running -= 1
            self._begin()
            return run
        run.first_at = now
        self._look_ahead()
        return None

    def remember(self, prefix: int) -> bool:
        """Keep the beginning of a prompt, in the place of the one that wasn't asked for for longest. Whether it was kept already."""
        known = prefix in self._cache
        self._cache[prefix] = None
        self._cache.move_to_end(prefix)
        if len(self._cache) > self.machine.cached:
            self._cache.popitem(last=False)
        return known

    def _begin(self) -> None:
        while self._queue and self._running < self.machine.parallel:
            run = self._queue.popleft()
            run.hit = bool(run.request.prefix) and self.remember(run.request.prefix)
            for work, last in zip(run.request.work(hit=run.hit), (False, True), strict=True):
                heapq.heappush(self._ahead, (self._done + work, next(self._numbers), last, run))
            self._running += 1
        self._look_ahead()

    def _advance(self, now: float) -> None:
        if self._running:
            self.held_s += (now - self._now) * (self._running + len(self._queue))
            self._done += (now - self._now) * self.machine.speed(self._running)
        self._now = now

    def _look_ahead(self) -> None:
        left = self._ahead[0][0] - self._done if self._ahead else inf
        self.next_at = self._now + left / self.machine.speed(max(1, self._running))


class Simulation:
    """A fleet under one strategy, with one queue, first come, first served."""

    def __init__(self, machines: Sequence[Machine], strategy: Strategy) -> None:
        self._strategy = strategy
        self._load, self._cursor, self._queue = Load(), Cursor(), deque[Request]()
        self._backends = {f"backend-{n}": _Backend(f"backend-{n}", one) for n, one in enumerate(machines)}
        for name, backend in self._backends.items():
            self._load.allow(name, backend.machine.slots)
        self._candidates = Candidates(
            [
                Node(name, "direct", capacity=one.machine.slots, weight=one.machine.most_tokens_per_s)
                for name, one in self._backends.items()
            ],
            MODEL,
        )
        self._found = Found()

    def run(self, requests: Sequence[Request]) -> Found:
        """All of them to the end. They are in the order of their arrival."""
        backends = self._backends.values()
        for request in requests:
            self._until(request.at)
            self._queue.append(request)
            self._grant(request.at)
        while (at := min(backend.next_at for backend in backends)) < inf:
            self._until(at)
        self._found.used = [backend.held_s for backend in backends]
        return self._found

    def _until(self, now: float) -> None:
        while True:
            backend = min(self._backends.values(), key=_next_at)
            at = backend.next_at
            if at > now or at == inf:
                return
            run = backend.step(at)
            if run is not None:
                self._end(backend, run, at)

    def _end(self, backend: _Backend, run: _Run, now: float) -> None:
        request, found = run.request, self._found
        found.waits_s.append(run.first_at - request.at)
        found.answers_s.append(now - request.at)
        found.hits += run.hit
        between_s = (now - run.first_at) / (request.answer - 1)
        self._load.observe(backend.name, MODEL, run.first_at - run.granted_at, between_s)
        self._load.give_back(backend.name)
        self._grant(now)

    def _grant(self, now: float) -> None:
        while self._queue:
            wish = Wish(self._strategy, MODEL, prefix=self._queue[0].prefix)
            node = choose(self._candidates, wish, self._load, self._cursor)
            if node is None:
                return
            self._load.take(node.id)
            self._backends[node.id].take(now, self._queue.popleft())


def _next_at(backend: _Backend) -> float:
    return backend.next_at


def mixed(machines: Sequence[Machine], load: float, number: int, seed: int = 1) -> list[Request]:
    """Short requests and, one in five, long ones; at random, together *load* times what the machines can do at most."""
    chance = random.Random(seed)
    shapes = [(2000, 800) if chance.random() < 0.2 else (200, 100) for _ in range(number)]
    return list(_arriving(chance, machines, load, [Request(0.0, *shape) for shape in shapes]))


def with_prefixes(
    machines: Sequence[Machine], load: float, number: int, prefixes: int, seed: int = 1
) -> list[Request]:
    """A long beginning that is shared with others, a short question, a short answer. The second most frequent beginning is half as
    frequent as the first, the third a third, and so on."""
    chance = random.Random(seed)
    drawn = chance.choices(range(1, prefixes + 1), [1.0 / rank for rank in range(1, prefixes + 1)], k=number)
    names = [chance.getrandbits(64) | 1 for _ in range(prefixes + 1)]
    return list(
        _arriving(chance, machines, load, [Request(0.0, 100, 100, names[rank], 2000) for rank in drawn])
    )


def _arriving(
    chance: random.Random, machines: Sequence[Machine], load: float, requests: Sequence[Request]
) -> Iterator[Request]:
    mean = sum(request.work()[1] for request in requests) / len(requests)
    rate = load * sum(machine.most_tokens_per_s for machine in machines) / mean
    now = 0.0
    for one in requests:
        now += chance.expovariate(rate)
        yield Request(now, one.prompt, one.answer, one.prefix, one.beginning)


def attainable_hits(machines: Sequence[Machine], requests: Sequence[Request]) -> int:
    """What one cache would have that is as large as all of them together."""
    one = _Backend("all", Machine(1.0, 1, 1, cached=sum(machine.cached for machine in machines)))
    return sum(one.remember(request.prefix) for request in requests)
