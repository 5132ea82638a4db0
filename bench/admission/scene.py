"""Keys, users, limits and one backend in this process, through which requests are passed as the token lane passes them.

Real are the key ring, the quota plane, the plane behind it, the ledger in memory, the recorder, and all that is made for each
request. The journal agrees at once and the records are counted: what a database costs is measured apart (`kept`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.budget.wires import SteppedClock, Turns
from headrace.adapters.ledger.memory import LedgerOptions, MemoryLedger
from headrace.control.access import KeyRing, digest
from headrace.control.plane import LocalControlPlane
from headrace.control.quota import QuotaPlane
from headrace.control.recording import Recorder
from headrace.control.registry import Registry
from headrace.domain.access import Principal
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Operation, Usage
from headrace.domain.quota import Limits, Window, entry_and_tokens
from headrace.kernel.clock import Clock
from headrace.kernel.errors import RequestError
from headrace.kernel.ids import request_id
from headrace.ports.control import Admission, Ask, Ending, Grant, Outcome
from headrace.ports.ledger import Journal, JournalEntry, QuotaLedger, WindowState
from headrace.ports.records import ALL, Grouping, Records, RequestRecord, Selection, UsageRow

MODEL = "bench"
IN_FLIGHT = 32
"""Requests that are admitted before the first of them is finished, and in one turn of the event loop."""
STRIDE = 7919
"""How far the next request's key is from the last one's: a prime, so that the order is no help to any cache."""
ASKED_TOKENS, USED = 76, Usage(12, 20)
ALL_WINDOWS = Limits(
    requests_per_minute=100_000_000,
    requests_per_day=200_000_000,
    requests_per_month=400_000_000,
    tokens_per_minute=800_000_000,
    tokens_per_day=900_000_000,
    tokens_per_month=1_000_000_000,
    concurrency=100_000,
)
"""Far away: nothing is refused here."""
MODES = {
    "no limits": Limits(),
    "requests of a minute": Limits(requests_per_minute=ALL_WINDOWS.requests_per_minute),
    "requests and tokens of a minute": Limits(
        requests_per_minute=ALL_WINDOWS.requests_per_minute, tokens_per_minute=ALL_WINDOWS.tokens_per_minute
    ),
    "all seven windows": ALL_WINDOWS,
}


@dataclass(frozen=True, slots=True)
class Size:
    """What is around a request: so many keys, each of a user of its own, held to a mode's limits. fresh: each request is its
    user's first in its minute."""

    mode: str
    keys: int = 10
    fresh: bool = False


class Crowd(Admission):
    """All who ask; those that were granted a place wait in `granted_now` for their end."""

    def __init__(self) -> None:
        self.granted_now: list[Grant] = []

    def granted(self, grant: Grant) -> None:
        """See the port."""
        self.granted_now.append(grant)

    def refused(self, refusal: RequestError) -> None:
        """Nobody should be.

        Raises:
            RuntimeError: somebody was.
        """
        raise RuntimeError(f"a request was refused: {refusal}")


class House:
    """A key ring and the planes over *ledger*, for so many keys."""

    def __init__(self, size: Size, ledger: QuotaLedger, records: Records, clock: Clock) -> None:
        self.keys = [b"sk-bench-%06d" % number for number in range(size.keys)]
        self.ring = KeyRing()
        limits = MODES[size.mode]
        self.ring.replace_managed(
            {digest(key): _principal(limits, number) for number, key in enumerate(self.keys)}
        )
        registry = Registry()
        registry.upsert(
            Node("backend", "direct", (ModelInfo(MODEL),), capacity=10 * IN_FLIGHT, state=NodeState.READY)
        )
        recorder = Recorder(records, clock, lambda _error: 500)
        self.placing = LocalControlPlane(registry, clock, recorder=recorder)
        self.plane = QuotaPlane(self.placing, ledger, clock, recorder)
        self.crowd = Crowd()
        self._monotonic = clock.monotonic
        self._at = self._asked = 0
        self._outcome = Outcome(Ending.COMPLETED, USED)

    def admit(self, requests: int) -> None:
        """So many requests ask for a place."""
        keys, at, crowd = self.keys, self._at, self.crowd
        authenticate, admit, now = self.ring.authenticate, self.plane.admit, self._monotonic
        for _ in range(requests):
            principal = authenticate(keys[at])
            at = (at + STRIDE) % len(keys)
            admit(
                Ask(
                    request_id(),
                    principal,
                    Operation.CHAT,
                    MODEL,
                    ASKED_TOKENS,
                    asked_at=now(),
                    client="127.0.0.1",
                ),
                crowd,
            )
        self._at = at
        self._asked += requests

    @property
    def unfinished(self) -> int:
        """Requests that asked and haven't ended."""
        return self._asked - self.placing.totals.requests[Ending.COMPLETED]

    def finish(self) -> None:
        """Those that have a place end."""
        granted, self.crowd.granted_now = self.crowd.granted_now, []
        finish, outcome = self.plane.finish, self._outcome
        for grant in granted:
            finish(grant, outcome)

    def check(self) -> None:
        """Raise RuntimeError unless every request that asked has ended."""
        if self.unfinished or self.placing.running:
            raise RuntimeError(f"of {self._asked} requests {self.unfinished} have not ended")


class Scene:
    """A house with a ledger in memory, driven by turns: no event loop, and a clock that stands still unless it is moved."""

    def __init__(self, size: Size) -> None:
        self._size = size
        self._turns = Turns()
        self._clock = MinuteClock()
        with self._turns.running():
            self.ledger = MemoryLedger(Agreeable(), self._clock, LedgerOptions(most_waiting=1_000_000))
            with contextlib.suppress(StopIteration):
                self.ledger.open().send(None)  # it never waits: this journal answers at once
            self.house = House(size, self.ledger, Counted(), self._clock)

    def warm_up(self) -> None:
        """Every key asks once, and then enough that the interpreter has adapted; then all is as it should be."""
        self.run(max(2048, self._size.keys + IN_FLIGHT))
        self.run(2048)
        self.house.check()

    def run(self, requests: int) -> None:
        """So many requests, in rounds of `IN_FLIGHT`, from the key to the end."""
        house, end_turn = self.house, self._turns.end_turn
        with self._turns.running():
            for _ in range(-(-requests // IN_FLIGHT)):
                house.admit(IN_FLIGHT)
                end_turn()
                house.finish()
                end_turn()

    def next_minute(self) -> None:
        """Every window of a minute ends, where the size asks for that."""
        if self._size.fresh:
            self._clock.minute += 1


class MinuteClock(SteppedClock):
    """Stands still but for whole minutes."""

    minute = 0

    def now(self) -> float:
        """A fixed moment of that minute."""
        return 1.7e9 + 60.0 * self.minute


class Agreeable(Journal):
    """Takes everything, keeps nothing, and agrees when the turn ends."""

    async def open(self, now: float) -> list[WindowState]:
        """Knows nothing."""
        return []

    def commit(
        self, entries: Sequence[JournalEntry], blocks: Sequence[WindowState], told: Callable[[bool], object]
    ) -> None:
        """See the port."""
        asyncio.get_running_loop().call_soon(told, True)

    def look(
        self,
        windows: Sequence[tuple[Window, int]],
        told: Callable[[Sequence[WindowState] | None], object],
    ) -> None:
        """Knows nothing."""
        told([])

    async def prune(self, ended_before: float, settled_before: float) -> None:
        """There is nothing."""


class Counted(Records):
    """Takes every record, and keeps none."""

    def __init__(self) -> None:
        self.dropped = 0
        self.seen = 0

    def add(self, record: RequestRecord) -> None:
        """See the port."""
        self.seen += 1

    async def recent(self, limit: int, selection: Selection = ALL, *, after: str = "") -> list[RequestRecord]:
        """None is kept."""
        return []

    async def usage(self, by: Sequence[Grouping], selection: Selection = ALL) -> list[UsageRow]:
        """None is kept."""
        return []

    async def prune(self, before: float) -> int:
        """None is kept."""
        return 0


def _principal(limits: Limits, number: int) -> Principal:
    user = f"user-{number}"
    entry, tokens = entry_and_tokens(limits.windows(f"user:{user}"))
    return Principal(f"key_{number}", user=user, entry=entry, tokens=tokens)
