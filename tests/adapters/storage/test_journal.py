"""The journal keeps what the port promises, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select, update

from headrace.adapters.storage import schema
from headrace.adapters.storage.backend import Backend
from headrace.adapters.storage.checking import check
from headrace.adapters.storage.database import Bounds, Database
from headrace.adapters.storage.journal import SqlJournal
from headrace.adapters.storage.retention import Retention
from headrace.adapters.storage.schema_version import Migrations
from headrace.domain.quota import Period
from headrace.testing import ManualClock
from headrace.testing.records import MemoryRecords
from support.journal_contract import DAY, NOON, JournalContract, JournalStage, committed, entry, state
from support.storage import IMPATIENT, Opening, WriteLock


class Stage(JournalStage):
    """Over one database that is open; what fails is kept from writing by another transaction."""

    def __init__(self, database: Database, lock: WriteLock) -> None:
        self._database = database
        self._lock = lock
        self.journal = SqlJournal(database)

    async def reopened(self) -> SqlJournal:
        return SqlJournal(self._database)

    def fail(self, failing: bool) -> None:
        if failing:
            self._lock.take()
        else:
            self._lock.give_back()


class TestContract(JournalContract):
    @pytest.fixture
    async def stage(self, opening: Opening, write_lock: WriteLock) -> AsyncIterator[Stage]:
        async with opening(Bounds(patience_s=20.0, statement_s=2.0)) as database:
            yield Stage(database, write_lock)
            write_lock.give_back()


async def test_what_is_given_while_a_batch_is_on_its_way_becomes_one_batch(database: Database) -> None:
    journal = SqlJournal(database)
    told = [asyncio.get_running_loop().create_future() for _ in range(1_000)]
    for number, future in enumerate(told):
        journal.commit([entry(f"r{number}", 1)], [], future.set_result)
    assert await asyncio.gather(*told) == [True] * 1_000
    assert database.groups == 2
    assert await journal.open(NOON) == [state(1_000, 0)]


async def test_what_would_wait_without_a_bound_is_refused(opening: Opening, write_lock: WriteLock) -> None:
    async with opening(IMPATIENT) as database:
        journal = SqlJournal(database, most=100)
        write_lock.take()
        first = asyncio.create_task(committed(journal, [entry("first", 1)]))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(committed(journal, [entry(f"r{number}", 1) for number in range(101)]))
        await asyncio.sleep(0)
        inside = True
        refused: list[tuple[bool, bool]] = []
        heard = asyncio.Event()

        def hear(durable: bool) -> None:
            refused.append((durable, inside))
            heard.set()

        journal.commit([entry("refused", 1)], [], hear)
        inside = False
        await heard.wait()
        assert refused == [(False, False)]
        assert await first is False
        write_lock.give_back()
        await waiting


async def rows(database: Database) -> int:
    """Entries in the journal."""
    count = select(func.count()).select_from(schema.journal)
    found = await database.read(lambda connection: connection.execute(count).scalar())
    assert found is not None
    return found


async def problems(backend: Backend) -> tuple[str, ...]:
    """What is wrong with the database."""
    return (await asyncio.to_thread(lambda: check(backend, Migrations(backend), NOON))).problems


async def test_pruning_takes_many_entries_in_small_steps(database: Database) -> None:
    journal = SqlJournal(database)
    past = DAY - 86_400
    old = [entry(f"r{number}", 1, starts_at=past, at=float(past)) for number in range(4_500)]
    assert await committed(journal, old)
    assert await committed(journal, [entry("new", 1)], [state(0, 5, period=Period.NOW, starts_at=0)])
    before = database.groups
    await journal.prune(NOON, NOON)
    assert (
        database.groups - before == 6
    )  # three of entries, one of windows, each with one more that found nothing
    assert await rows(database) == 1
    assert {found.period for found in await journal.open(NOON)} == {Period.DAY, Period.NOW}


@pytest.mark.req("E20")
async def test_its_size_is_bounded_by_windows_and_what_was_settled_of_late(
    database: Database, backend: Backend
) -> None:
    journal, clock, records = SqlJournal(database), ManualClock(NOON), MemoryRecords()
    retention = Retention(records, journal, clock, records_s=1e9)
    for hour in range(10):
        entries = [
            entry(f"{hour}-{n}", 1, f"user:{n % 7}", period, period.bounds(NOON)[0], clock.now())
            for n in range(100)
            for period in (Period.DAY, Period.MONTH)
        ]
        assert await committed(journal, entries, [state(0, 3, "user:0")])
        await retention.prune()
        assert await rows(database) <= 2 * 200
        clock.advance(3_600)
    found = await journal.open(NOON)
    assert sum(one.settled for one in found) == 2_000
    assert len(found) == 14
    assert await problems(backend) == ()


async def test_a_sum_that_is_wrong_is_found_after_folding_too(database: Database, backend: Backend) -> None:
    journal = SqlJournal(database)
    assert await committed(journal, [entry("old", 4, at=NOON - 9_999), entry("new", 8)])
    await journal.prune(NOON, NOON - 3_600)
    assert await problems(backend) == ()
    await database.write(lambda connection: connection.execute(update(schema.windows).values(folded=5)))
    [problem] = await problems(backend)
    assert "says 12 settled, its journal adds up to 13" in problem
