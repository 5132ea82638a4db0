"""Records of requests: buffered, batched, found again, summed, forgotten; on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, Select, select, text

from headrace.adapters.storage import schema
from headrace.adapters.storage.database import Database
from headrace.adapters.storage.records import SqlRecords, old_query, recent_query, usage_query
from headrace.kernel.clock import SystemClock
from headrace.ports.records import ALL, Grouping, RequestRecord, Selection, UsageRow
from headrace.testing import ManualClock
from support.storage import IMPATIENT, Opening, WriteLock
from support.waiting import until

DAY = 86_400.0
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
        first_token_ms=20.5,
        streamed=True,
        executions=1,
        estimated_tokens=30,
        prompt_tokens=10,
        completion_tokens=5,
        total_tokens=15,
        estimated=True,
    )
    return msgspec.structs.replace(usual, **changes)


async def kept(database: Database, *some: RequestRecord) -> SqlRecords:
    """Records of which these are in the database."""
    first = SqlRecords(database, SystemClock())
    for one in some:
        first.add(one)
    await first.close()
    assert first.dropped == 0
    return SqlRecords(database, SystemClock())


@pytest.mark.req("C34", "E20")
async def test_a_record_comes_back_as_it_was_added(database: Database) -> None:
    bare = RequestRecord(
        request_id="bare",
        path="/",
        model="",
        status="refused",
        http_status=401,
        created_at=1.0,
        completed_at=1.0,
        latency_ms=0.0,
    )
    records = await kept(database, record(1), bare)
    assert await records.recent(10) == [record(1), bare]


async def test_a_batch_is_written_when_its_time_has_come(database: Database) -> None:
    clock = ManualClock()
    records = SqlRecords(database, clock)
    for number in range(100):
        records.add(record(number))
    before = database.groups
    assert clock.pending == 1
    clock.advance(0.2)
    await until(lambda: not records.buffered)
    assert database.groups - before == 1
    count = select(schema.requests.c.request_id)
    assert len(await database.read(lambda connection: connection.execute(count).all())) == 100
    records.add(record(100))
    assert clock.pending == 1
    await records.close()
    assert [found.request_id for found in await records.recent(1)] == ["req_00100"]


async def test_those_in_the_buffer_are_found_and_none_twice(database: Database) -> None:
    records = await kept(database, *(record(number) for number in range(5)))
    clock = ManualClock()
    records = SqlRecords(database, clock)
    records.add(record(3))
    records.add(record(7))
    records.add(record(6, model="other"))
    newest = [found.request_id for found in await records.recent(4)]
    assert newest == ["req_00007", "req_00006", "req_00004", "req_00003"]
    assert [found.request_id for found in await records.recent(9, Selection(model="other"))] == ["req_00006"]
    await records.close()


async def test_pages_go_on_from_the_buffer_into_the_database(database: Database) -> None:
    await kept(database, *(record(number) for number in (1, 2, 4, 6)))
    records = SqlRecords(database, ManualClock())
    for number in (3, 5, 7):
        records.add(record(number))
    seen: list[str] = []
    while page := await records.recent(2, after=seen[-1] if seen else ""):
        seen += [found.request_id for found in page]
    assert seen == [f"req_{number:05}" for number in (7, 6, 5, 4, 3, 2, 1)]
    await records.close()


async def test_a_selection_narrows_by_each_of_its_parts(database: Database) -> None:
    one, two = (
        record(1),
        record(2, user_id="bob", key_id="k", model="m", node="n", status="failed", error="x"),
    )
    stored = await kept(database, one, two)
    buffered = SqlRecords(database, ManualClock())
    for each in (one, two):
        buffered.add(each)
    for records in (stored, buffered):
        for name in ("user_id", "key_id", "model", "node", "status"):
            assert await records.recent(9, Selection(**{name: getattr(two, name)})) == [two]
        assert await records.recent(9, Selection(since=two.created_at)) == [two]
        assert await records.recent(9, Selection(until=two.created_at)) == [one]
        assert await records.recent(9, Selection(since=0.0, until=1e12, user_id="ann")) == [one]
        assert await records.recent(1) == [two]
    await buffered.close()


async def test_usage_is_summed_by_what_is_asked_for(database: Database) -> None:
    records = await kept(
        database,
        record(1),
        record(2, model="m", status="failed", completion_tokens=0, total_tokens=10),
        record(3, user_id="bob", key_id="k"),
        record(4, created_at=NOON + DAY / 2 - 0.001),  # the last moment of that day
        record(5, created_at=NOON + DAY / 2),
        record(6, created_at=NOON - DAY / 2),
    )
    by_day = await records.usage([Grouping.DAY])
    assert [(row.group, row.requests) for row in by_day] == [(("2023-11-15",), 5), (("2023-11-16",), 1)]
    assert by_day[0] == UsageRow(
        group=("2023-11-15",), requests=5, failed=1, prompt_tokens=50, completion_tokens=20, total_tokens=70
    )
    assert [row.group for row in await records.usage([Grouping.USER])] == [("ann",), ("bob",)]
    assert [row.group for row in await records.usage([Grouping.KEY])] == [("k",), ("key_1",)]
    both = await records.usage([Grouping.MODEL, Grouping.USER], Selection(until=NOON + 10))
    assert [(row.group, row.requests) for row in both] == [
        (("m", "ann"), 1),
        (("smollm2", "ann"), 2),
        (("smollm2", "bob"), 1),
    ]
    (total,) = await records.usage([])
    assert (total.group, total.requests, total.total_tokens) == ((), 6, 85)
    assert await records.usage([], Selection(model="none")) == []
    assert await records.usage([Grouping.DAY], Selection(model="none")) == []


async def test_pruning_deletes_what_was_completed_before_a_few_at_a_time(database: Database) -> None:
    long = record(0, created_at=NOON - 100, completed_at=NOON + DAY)
    records = await kept(database, long, *(record(number) for number in range(1, 2_500)))
    before = database.groups
    assert await records.prune(NOON + 2_400.5) == 2_399
    assert database.groups - before >= 5
    left = await records.recent(1_000)
    assert long in left
    assert len(left) == 101
    assert await records.prune(NOON) == 0


async def test_a_full_buffer_drops_and_counts(database: Database) -> None:
    records = SqlRecords(database, ManualClock(), most=3)
    for number in range(5):
        records.add(record(number))
    assert (records.dropped, records.buffered) == (2, 3)
    await records.close()
    assert records.dropped == 2
    assert len(await records.recent(9)) == 3
    records.add(record(9))
    assert records.dropped == 3


async def test_while_the_database_is_away_records_wait_and_are_written_afterwards(
    opening: Opening, write_lock: WriteLock
) -> None:
    async with opening(IMPATIENT) as database:
        clock = ManualClock()
        records = SqlRecords(database, clock)
        write_lock.take()
        records.add(record(1))
        clock.advance(0.2)
        await clock.until_pending(timeout_s=20)  # it will be tried again
        assert (records.buffered, records.dropped) == (1, 0)
        write_lock.give_back()
        clock.advance(1.0)
        await until(lambda: not records.buffered)
        assert await records.recent(9) == [record(1)]


async def test_what_is_left_when_the_database_stays_away_is_counted(
    opening: Opening, write_lock: WriteLock
) -> None:
    async with opening(IMPATIENT) as database:
        records = SqlRecords(database, SystemClock())
        for number in range(7):
            records.add(record(number))
        write_lock.take()
        await records.close()
        assert (records.buffered, records.dropped) == (0, 7)
        write_lock.give_back()


async def test_one_record_that_no_database_takes_is_dropped_alone_and_odd_text_is_mended(
    database: Database,
) -> None:
    records = SqlRecords(database, SystemClock())
    records.add(record(1, model="nul\0"))
    records.add(record(2, path="/half\udc80"))
    records.add(record(3, total_tokens=2**70))
    records.add(record(4))
    await records.close()
    assert records.dropped == 1
    found = {one.request_id: one for one in await records.recent(9)}
    assert sorted(found) == ["req_00001", "req_00002", "req_00004"]
    assert found["req_00002"].path == "/half?"


@pytest.mark.req("C34", "E20")
async def test_the_table_has_what_the_requirements_name_and_no_prompt(database: Database) -> None:
    await kept(database, record(1))
    asked = text(
        "SELECT request_id, user_id, status, created_at, completed_at, estimated_tokens, prompt_tokens, completion_tokens, "
        "total_tokens, model, error, path, latency_ms, client FROM requests"
    )
    row = await database.read(lambda connection: connection.execute(asked).one())
    assert tuple(row) == (
        *("req_00001", "ann", "completed", NOON + 1, NOON + 1.5, 30, 10, 5, 15, "smollm2", ""),
        *("/v1/chat/completions", 500.25, "10.0.0.1"),
    )
    columns = {column.name for table in schema.METADATA.tables.values() for column in table.columns}
    assert not columns & {"prompt", "result", "answer", "body", "messages", "key"}


async def test_records_of_users_that_nobody_knows_and_of_deleted_ones_are_kept(database: Database) -> None:
    from headrace.adapters.storage.accounts import SqlAccounts
    from headrace.ports.records import User

    accounts = SqlAccounts(database)
    await accounts.save_user(User(user_id="ann"))
    records = await kept(database, record(1), record(2, user_id="nobody"))
    assert await accounts.delete_user("ann")
    assert [found.user_id for found in await records.recent(9)] == ["nobody", "ann"]


@pytest.fixture
async def large(opening: Opening) -> AsyncIterator[Database]:
    """With 50,000 records of ten days, of 200 users and keys, and what the planner knows about them."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 49999)"
    fill = (
        f"INSERT INTO requests (request_id, user_id, key_id, model, status, http_status, created_at, completed_at, latency_ms) "
        f"{numbers} SELECT 'r' || i, 'user' || (i % 200), 'key' || (i % 200), 'model' || (i % 5), 'completed', 200, "
        f"{NOON} + i * 17.28, {NOON} + i * 17.28, 1 FROM n"
    )
    async with opening() as database:
        await database.write(lambda connection: connection.execute(text(fill)).close())
        await database.write(lambda connection: connection.execute(text("ANALYZE requests")).close())
        yield database


async def explained(database: Database, query_of: Callable[[str], Select[Any]]) -> str:
    """How the database would go about a query."""

    def ask(connection: Connection) -> str:
        dialect = connection.dialect
        sql = query_of(dialect.name).compile(dialect=dialect, compile_kwargs={"literal_binds": True})
        explain = "EXPLAIN" if dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        rows = connection.execution_options(no_parameters=True).exec_driver_sql(f"{explain} {sql}")
        return "\n".join(str(row[-1]) for row in rows)

    return await database.read(ask)


async def test_the_newest_are_found_through_an_index_without_sorting(large: Database) -> None:
    for selection, index in (
        (ALL, "requests_by_time"),
        (Selection(since=NOON, until=NOON + DAY), "requests_by_time"),
        (Selection(user_id="user7"), "requests_by_user"),
        (Selection(key_id="key7"), "requests_by_key"),
        (Selection(user_id="user7", since=NOON, until=NOON + DAY), "requests_by_user"),
    ):
        plan = await explained(large, lambda _, selection=selection: recent_query(50, selection))  # type: ignore[misc]
        assert index in plan, plan
        assert "SCAN requests\n" not in plan + "\n", plan
        assert "Seq Scan" not in plan, plan
        # PostgreSQL sorts what is equal in time by itself, a few rows at a time.
        assert "USE TEMP B-TREE FOR ORDER BY" not in plan, plan


async def test_usage_by_day_reads_only_what_it_sums(large: Database) -> None:
    for selection, index in (
        (Selection(since=NOON, until=NOON + DAY / 4), "requests_by_time"),
        (Selection(user_id="user7"), "requests_by_user"),
        (Selection(key_id="key7", since=NOON), "requests_by_key"),
    ):
        plan = await explained(
            large,
            lambda dialect, selection=selection: usage_query([Grouping.DAY], selection, dialect),  # type: ignore[misc]
        )
        assert index in plan, plan
        assert "SCAN requests\n" not in plan + "\n", plan
        assert "Seq Scan" not in plan, plan


async def test_pruning_looks_only_at_the_oldest(large: Database) -> None:
    plan = await explained(large, lambda _: old_query(NOON + DAY))
    assert "requests_by_time" in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "SCAN requests\n" not in plan + "\n", plan
