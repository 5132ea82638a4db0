"""The doubles of accounts and records keep what the real ones promise: the same contract runs over both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.adapters.storage.accounts import SqlAccounts
from headrace.adapters.storage.records import SqlRecords
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import Unavailable
from headrace.ports.records import Accounts, Records, User
from headrace.testing.accounts import MemoryAccounts
from headrace.testing.records import MemoryRecords
from support.accounts_contract import SOME, AccountsContract, RecordsContract
from support.administration import record
from support.storage import opened


@pytest.fixture(params=["memory", "sqlite"])
async def accounts(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Accounts]:
    if request.param == "memory":
        yield MemoryAccounts()
    else:
        async with opened("sqlite", tmp_path) as database:
            yield SqlAccounts(database)


@pytest.fixture(params=["memory", "sqlite"])
async def records(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Records]:
    if request.param == "memory":
        memory = MemoryRecords()
        for one in SOME:
            memory.add(one)
        yield memory
        return
    async with opened("sqlite", tmp_path) as database:
        first = SqlRecords(database, SystemClock())
        for one in SOME:
            first.add(one)
        await first.close()
        stored = SqlRecords(database, SystemClock())
        yield stored
        await stored.close()


class TestAccounts(AccountsContract):
    async def test_the_double_can_fail(self) -> None:
        accounts = MemoryAccounts()
        accounts.failing = True
        with pytest.raises(Unavailable):
            await accounts.save_user(User(user_id="ann"))
        accounts.failing = False
        assert (await accounts.users(), accounts.refused) == ([], 1)


class TestRecords(RecordsContract):
    async def test_the_double_is_bounded_and_can_fail(self) -> None:
        records = MemoryRecords(most=1)
        records.add(record(1))
        records.add(record(2))
        assert (records.dropped, await records.recent(9)) == (1, [record(1)])
        records.failing = True
        with pytest.raises(Unavailable):
            await records.usage([])
        records.add(record(3))
        assert records.dropped == 2
