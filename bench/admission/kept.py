"""The same requests with the journal and the records in SQLite: what deciding costs when all of it is kept."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.admission.scene import IN_FLIGHT, House, Size
from headrace.adapters.ledger.memory import MemoryLedger
from headrace.adapters.storage.backend import choose
from headrace.adapters.storage.database import Database
from headrace.adapters.storage.journal import SqlJournal
from headrace.adapters.storage.records import SqlRecords
from headrace.kernel.clock import SystemClock

WARM_UP, REQUESTS = 2_000, 10_000
PACE_PER_S = 4_000
"""So many requests each second, as in the benchmark of the whole gateway: below what the writer carries, so that nothing piles up."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Of one request: CPU microseconds of the event loop's thread, and of all threads."""

    size: Size
    loop_us: float
    all_us: float


def measure(folder: Path, size: Size, requests: int = REQUESTS) -> Kept:
    """Pass requests through a house whose journal and records are in a fresh SQLite file below *folder*."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        return uvloop.run(_measure(Path(name), size, requests))


async def _measure(folder: Path, size: Size, requests: int) -> Kept:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        database = Database(choose(f"sqlite:///{folder / 'bench.db'}", folder), clock)
        stack.push_async_callback(database.close)
        await database.open()
        records = SqlRecords(database, clock)
        stack.push_async_callback(records.close)
        ledger = MemoryLedger(SqlJournal(database), clock)
        stack.push_async_callback(ledger.close)
        await ledger.open()
        house = House(size, ledger, records, clock)
        await _pass(house, min(WARM_UP, requests))
        loop_ns, all_ns = time.thread_time_ns(), time.process_time_ns()
        await _pass(house, requests)
        await records.recent(1)  # all of them are written
        loop_ns, all_ns = time.thread_time_ns() - loop_ns, time.process_time_ns() - all_ns
        house.check()
    return Kept(size, loop_ns / requests / 1000, all_ns / requests / 1000)


async def _pass(house: House, requests: int) -> None:
    begun = time.monotonic()
    for number in range(-(-requests // IN_FLIGHT)):
        house.admit(IN_FLIGHT)
        await asyncio.sleep(max(0.0, begun + number * IN_FLIGHT / PACE_PER_S - time.monotonic()))
        house.finish()
    while house.unfinished:
        await asyncio.sleep(0.001)
        house.finish()
