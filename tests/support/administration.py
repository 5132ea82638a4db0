"""What an administration is about, in memory: users, keys, records and a ledger."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
from structlog.testing import capture_logs

from headrace.adapters.ledger.memory import MemoryLedger
from headrace.control.access import KeyRing
from headrace.control.accounts import AccountBook
from headrace.control.routes import Explain, RouteBook
from headrace.domain.access import Scope
from headrace.domain.quota import Limits, Tier
from headrace.domain.routing import Route, Target
from headrace.gateway.administration import Administration
from headrace.kernel.clock import SystemClock
from headrace.ports.records import Records, RequestRecord
from headrace.testing.accounts import MemoryAccounts
from headrace.testing.journal import MemoryJournal
from headrace.testing.records import MemoryRecords
from headrace.testing.routes import MemoryRoutes
from support.house import House, gateway

ADMIN_KEY = "sk-test-admin-0123456789"
TIERS = {"gold": Tier(Limits(requests_per_day=100, tokens_per_month=5000), default_max_tokens=64)}
STATIC_ROUTE = Route("pinned", "pinned-*", (Target(),), static=True)
NOON = 1_700_049_600.0


def record(number: int, **changes: object) -> RequestRecord:
    """One that was completed; *number* is its place in time."""
    usual = RequestRecord(
        request_id=f"req_{number:05}",
        user_id="ann",
        key_id="key_1",
        client="10.0.0.1",
        path="/v1/chat/completions",
        model="smollm2",
        node="local/smollm2",
        status="completed",
        http_status=200,
        created_at=NOON + number,
        completed_at=NOON + number + 0.5,
        latency_ms=500.25,
        prompt_tokens=10,
        completion_tokens=5,
        total_tokens=15,
    )
    return msgspec.structs.replace(usual, **changes)


@dataclass
class Office:
    """The parts of an administration. *tiers*: those that are configured. *explain*: where requests would go, if somebody knows."""

    tiers: Mapping[str, Tier] = field(default_factory=lambda: TIERS)
    accounts: MemoryAccounts = field(default_factory=MemoryAccounts)
    records: Records = field(default_factory=MemoryRecords)
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    routes: MemoryRoutes = field(default_factory=MemoryRoutes)
    explain: Explain | None = None

    def __post_init__(self) -> None:
        self.ledger = MemoryLedger(self.journal, SystemClock())
        self.route_book = RouteBook(self.routes, [STATIC_ROUTE])
        self.book: AccountBook

    def over(self, keys: KeyRing) -> Administration:
        """The administration of a gateway with these *keys*, opened by `ADMIN_KEY`."""
        keys.add(ADMIN_KEY, frozenset({Scope.INFERENCE, Scope.ADMIN}))
        self.book = AccountBook(self.accounts, keys, SystemClock(), self.tiers)
        return Administration(self.book, self.records, self.ledger, self.route_book, self.explain)


@contextlib.asynccontextmanager
async def administered(*urls: str, office: Office) -> AsyncIterator[House]:
    """A gateway over the backends at *urls* with *office* as its administration."""
    await office.ledger.open()
    try:
        async with gateway(*urls, admin=office.over) as house:
            await office.book.refresh()
            yield house
    finally:
        await office.ledger.close()


class AdministeredHouse:
    """The same on a thread of its own, for the command line to talk to. Use it as a context manager.

    logs: what is logged meanwhile, instead of written to where the command writes. house: to be touched on its own thread (`do`).
    """

    logs: list[MutableMapping[str, Any]]

    def __init__(self, *urls: str) -> None:
        self.office = Office()
        self._urls = urls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._stack = contextlib.AsyncExitStack()

    def __enter__(self) -> Self:
        self._logging = capture_logs()
        self.logs = self._logging.__enter__()
        self._thread.start()
        house: House = self.do(
            lambda: self._stack.enter_async_context(administered(*self._urls, office=self.office))
        )
        self.house = house
        self.url: str = house.url
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._stack.aclose)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._logging.__exit__(None, None, None)

    def do(self, work: Callable[[], Any]) -> Any:
        """What a coroutine function returns that is called on that thread."""

        async def run() -> Any:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(60)
