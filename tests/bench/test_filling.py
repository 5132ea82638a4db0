"""A database that was filled is one that the gateway could have written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from bench.filling import KEYS_EACH, OVER_S, filled, made

from headrace.adapters.storage.backend import choose
from headrace.adapters.storage.checking import check
from headrace.adapters.storage.database import Database
from headrace.adapters.storage.records import SqlRecords
from headrace.adapters.storage.schema_version import Migrations
from headrace.kernel.clock import SystemClock
from headrace.ports.records import Grouping, Selection


@pytest.mark.slow
async def test_all_records_are_there_and_can_be_asked_for(tmp_path: Path) -> None:
    home = await asyncio.to_thread(filled, tmp_path, 3_000)
    assert await asyncio.to_thread(filled, tmp_path, 3_000) == home
    backend = choose("sqlite", home)
    assert (await asyncio.to_thread(lambda: check(backend, Migrations(backend)))).problems == ()
    database = Database(backend, SystemClock())
    await database.open()
    records = SqlRecords(database, SystemClock())
    [newest] = await records.recent(1)
    assert newest == list(made(3_000, newest.created_at + OVER_S / 3_000))[-1]
    [row] = await records.usage([], Selection(user_id="user-7"))
    assert (row.requests, row.total_tokens) == (6, 6 * 250)
    assert len(await records.usage([Grouping.KEY], Selection(user_id="user-7"))) == KEYS_EACH
    await records.close()
    await database.close()


def test_ids_are_unique_and_in_the_order_of_time() -> None:
    found = list(made(2_000, 1.7e9))
    ids = [record.request_id for record in found]
    assert ids == sorted(set(ids))
    assert found[0].created_at == 1.7e9 - OVER_S
    assert [record.created_at for record in found] == sorted(record.created_at for record in found)
