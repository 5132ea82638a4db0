"""`/admin/usage` and `/admin/recent` over real HTTP."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.adapters.storage.records import SqlRecords
from headrace.kernel.clock import SystemClock
from headrace.ports.records import Records, RequestRecord
from headrace.testing.records import MemoryRecords
from support import storage
from support.administration import ADMIN_KEY, NOON, Office, administered, record
from support.house import House
from support.raw import RawResponse, call
from support.waiting import until

DAY = 86_400


@pytest.fixture(params=["memory", "sqlite"])
async def records(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Records]:
    if request.param == "memory":
        yield MemoryRecords()
        return
    async with storage.opened(f"sqlite:///{tmp_path / 'own.db'}", tmp_path) as database:
        records = SqlRecords(database, SystemClock(), flush_s=0.001)
        yield records
        await records.close()


async def keep(records: Records, *those: RequestRecord) -> None:
    """Add *those*, and wait until sums count them, too."""
    for one in those:
        records.add(one)
    if isinstance(records, SqlRecords):
        await until(lambda: records.buffered == 0)


@pytest.fixture
async def office(records: Records) -> Office:
    await keep(
        records,
        record(1),
        record(2, model="big", status="failed", http_status=502, completion_tokens=0, total_tokens=10),
        record(3, user_id="bob", key_id="key_2", node="b0"),
        record(4, created_at=NOON - DAY, status="refused", http_status=429, prompt_tokens=0, total_tokens=0),
    )
    return Office(records=records)


@pytest.fixture
async def house(office: Office) -> AsyncIterator[House]:
    async with administered(office=office) as house:
        yield house


async def ask(house: House, path: str) -> RawResponse:
    return await call(house.port, "GET", path, {"authorization": f"Bearer {ADMIN_KEY}"})


@pytest.mark.req("C06")
async def test_the_last_200_requests_with_latency_model_and_status(house: House, office: Office) -> None:
    await keep(office.records, *(record(number) for number in range(10, 310)))
    told = (await ask(house, "/admin/recent")).json["data"]
    assert [one["request_id"] for one in told] == [f"req_{number:05}" for number in range(309, 109, -1)]
    newest = told[0]
    assert (newest["latency_ms"], newest["model"], newest["status"]) == (500.25, "smollm2", "completed")
    assert not {"prompt", "result", "messages"} & set(newest)


@pytest.mark.req("C06")
@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("limit=2", [3, 2]),
        ("limit=1000", [3, 2, 1, 4]),
        ("user=bob", [3]),
        ("key=key_1", [2, 1, 4]),
        ("model=big", [2]),
        ("node=b0", [3]),
        ("status=refused", [4]),
        ("status=completed", [3, 1]),
        ("status=failed", [2]),
        ("status=cancelled", []),
        (f"since={NOON + 2}&until={NOON + 3}", [2]),
        ("user=ann&key=key_1&model=smollm2&node=local/smollm2&status=completed&limit=1", [1]),
        ("user=ann&status=completed", [1]),
        (f"since={NOON + 2}", [3, 2]),
        ("until=2023-11-15", [4]),
        ("since=2023-11-15T12:00:02Z", [3, 2]),
        ("since=2023-11-15T13:00:02%2B01:00", [3, 2]),
        ("user=", [3, 2, 1, 4]),
        ("user=nobody", []),
        (f"ended_since={NOON + 2.5}", [3, 2]),
        ("after=req_00002", [1, 4]),
    ],
)
async def test_recent_ones_are_narrowed(house: House, query: str, numbers: list[int]) -> None:
    told = (await ask(house, f"/admin/recent?{query}")).json["data"]
    assert [one["request_id"] for one in told] == [f"req_{number:05}" for number in numbers]


@pytest.mark.req("C06")
async def test_a_long_list_comes_in_pages(house: House, office: Office) -> None:
    await keep(office.records, *(record(number) for number in range(10, 460)))
    seen: list[str] = []
    pages, more, after = 0, True, ""
    while more:
        told = (await ask(house, f"/admin/recent?user=ann&after={after}")).json
        seen += [one["request_id"] for one in told["data"]]
        after, more, pages = seen[-1], told["has_more"], pages + 1
    assert pages == 3
    assert seen == [f"req_{number:05}" for number in (*range(459, 9, -1), 2, 1, 4)]


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/admin/recent?limit=0", "limit"),
        ("/admin/recent?limit=1001", "limit"),
        ("/admin/recent?limit=-1", "limit"),
        ("/admin/recent?limit=%C2%B2", "limit"),
        ("/admin/recent?limit=" + "9" * 5000, "limit"),
        ("/admin/recent?limit=1.5", "limit"),
        ("/admin/recent?status=good", "status"),
        ("/admin/recent?status=Failed", "status"),
        ("/admin/recent?key=a%0a", "key"),
        ("/admin/recent?after=req_none", "after"),
        ("/admin/recent?ended_since=1m", "ended_since"),
        ("/admin/recent?model=%1b[2J", "model"),
        ("/admin/recent?node=a&node=a", "node"),
        ("/admin/recent?until=2026-13-01", "until"),
        ("/admin/recent?usr=ann", "usr"),
        ("/admin/recent?user=a&user=b", "user"),
        ("/admin/recent?user=a%00", "user"),
        ("/admin/recent?since=yesterday", "since"),
        ("/admin/recent?since=nan", "since"),
        ("/admin/recent?since=-1", "since"),
        ("/admin/recent?until=1e400", "until"),
        ("/admin/recent?until=9999-12-31T23:59:59-23:00", "until"),
        ("/admin/usage?by=users", "by"),
        ("/admin/usage?by=user,user", "by"),
        ("/admin/usage?format=xml", "format"),
        ("/admin/usage?status=failed", "status"),
        ("/admin/users?user=ann", "user"),
    ],
)
async def test_what_is_wrong_is_named(house: House, path: str, param: str) -> None:
    answer = await ask(house, path)
    assert (answer.status, answer.error["param"]) == (400, param)


async def test_usage_is_summed_by_what_is_asked_for(house: House) -> None:
    told = (await ask(house, "/admin/usage")).json
    assert told["by"] == ["user"]
    assert told["data"] == [
        {"user": "ann", "requests": 3, "failed": 1, "prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 25},
        {"user": "bob", "requests": 1, "failed": 0, "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    ]  # fmt: skip
    told = (await ask(house, "/admin/usage?by=day,model&user=ann")).json["data"]
    assert [(row["day"], row["model"], row["requests"]) for row in told] == [
        ("2023-11-14", "smollm2", 1),
        ("2023-11-15", "big", 1),
        ("2023-11-15", "smollm2", 1),
    ]
    told = (await ask(house, "/admin/usage?by=key&since=2023-11-15&until=2023-11-16&model=smollm2")).json
    assert [(row["key"], row["total_tokens"]) for row in told["data"]] == [("key_1", 15), ("key_2", 15)]


async def test_usage_as_a_table(house: House) -> None:
    answer = await ask(house, "/admin/usage?by=user,key&format=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "usage.csv" in answer.headers["content-disposition"]
    assert list(csv.reader(io.StringIO(answer.body.decode()))) == [
        ["user", "key", "requests", "failed", "prompt_tokens", "completion_tokens", "total_tokens"],
        ["ann", "key_1", "3", "1", "20", "10", "25"],
        ["bob", "key_2", "1", "0", "10", "5", "15"],
    ]


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\uff1d"])
async def test_no_cell_is_a_formula(house: House, office: Office, first: str) -> None:
    name = f'{first}HYPERLINK("http://x",1),"y"'
    await keep(office.records, record(9, model=name, user_id="eve"))
    answer = await ask(house, "/admin/usage?by=model&user=eve&format=csv")
    rows = list(csv.reader(io.StringIO(answer.body.decode(), newline="")))
    assert rows[1][0] == "'" + name


async def test_while_the_database_is_away_it_is_said() -> None:
    records = MemoryRecords()
    records.failing = True
    async with administered(office=Office(records=records)) as house:
        for path in ("/admin/recent", "/admin/usage"):
            answer = await ask(house, path)
            assert (answer.status, answer.error["code"]) == (503, "unavailable")
