"""The journal keeps what the port promises, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select

from headrace.adapters.storage import schema
from headrace.adapters.storage.database import Bounds, Database
from headrace.adapters.storage.journal import SqlJournal
from headrace.domain.quota import Period
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


async def test_pruning_takes_many_entries_in_small_steps(database: Database) -> None:
    journal = SqlJournal(database)
    past = DAY - 86_400
    assert await committed(journal, [entry(f"r{number}", 1, starts_at=past) for number in range(4_500)])
    assert await committed(journal, [entry("new", 1)], [state(0, 5, period=Period.NOW, starts_at=0)])
    before = database.groups
    await journal.prune(NOON)
    assert database.groups - before == 5  # three of entries, one of windows, one that found nothing
    left = await database.read(
        lambda connection: connection.execute(select(func.count()).select_from(schema.journal)).scalar()
    )
    assert left == 1
    assert {found.period for found in await journal.open(NOON)} == {Period.DAY, Period.NOW}
