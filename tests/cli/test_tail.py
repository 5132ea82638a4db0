"""Following records: each once, in the order of their ends, and none missed without a word."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.cli.tail import AGAIN_S, MOST_PAGES, Tail
from headrace.ports.records import RequestRecord, Selection
from headrace.testing.records import MemoryRecords
from support.administration import NOON, record


class Recent:
    """`/admin/recent` over records in memory, with pages of *size*."""

    def __init__(self, size: int = 3) -> None:
        self.records = MemoryRecords()
        self.asked: list[dict[str, Any]] = []
        self._size = size

    def add(self, *those: RequestRecord) -> None:
        for one in those:
            self.records.add(one)

    async def ask(self, query: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(dict(query))
        selection = Selection(ended_since=query.get("ended_since"))
        found = await self.records.recent(self._size + 1, selection, after=query.get("after", ""))
        return {"data": msgspec.to_builtins(found[: self._size]), "has_more": len(found) > self._size}


def ids(records: list[dict[str, Any]]) -> list[int]:
    return [int(one["request_id"].removeprefix("req_")) for one in records]


@pytest.fixture
def recent() -> Recent:
    return Recent()


@pytest.fixture
def tail(recent: Recent) -> Tail:
    return Tail(recent.ask)


async def test_what_was_there_is_shown_as_far_as_it_is_wanted_and_never_again(
    recent: Recent, tail: Tail
) -> None:
    recent.add(*(record(number) for number in range(7)))
    assert ids(await tail.begin(2)) == [5, 6]
    assert await tail.news() == []
    recent.add(record(7))
    assert ids(await tail.news()) == [7]
    assert await tail.news() == []


async def test_of_many_none_is_missed(recent: Recent, tail: Tail) -> None:
    recent.add(record(0))
    await tail.begin(1)
    recent.add(*(record(number) for number in range(1, 101)))
    assert ids(await tail.news()) == list(range(1, 101))
    assert not tail.cut_short


async def test_they_come_in_the_order_of_their_ends(recent: Recent, tail: Tail) -> None:
    recent.add(*(record(number) for number in range(50, 60)))
    await tail.begin(1)
    recent.add(record(1, completed_at=NOON + 70), record(60), record(2, completed_at=NOON + 60.25))
    assert ids(await tail.news()) == [2, 60, 1]


async def test_one_that_is_written_late_is_shown_still(recent: Recent, tail: Tail) -> None:
    recent.add(record(0))
    await tail.begin(1)
    recent.add(record(30))
    assert ids(await tail.news()) == [30]
    recent.add(record(29), record(31))
    assert ids(await tail.news()) == [29, 31]


async def test_from_nothing(recent: Recent, tail: Tail) -> None:
    assert await tail.begin(10) == []
    assert await tail.news() == []
    recent.add(*(record(number) for number in range(8)))
    assert ids(await tail.news()) == list(range(8))


async def test_what_is_too_much_is_said(recent: Recent, tail: Tail) -> None:
    recent.add(record(0))
    await tail.begin(1)
    most = 3 * MOST_PAGES
    recent.add(*(record(number) for number in range(1, most + 5)))
    shown = ids(await tail.news())
    assert shown == list(range(5, most + 5))
    assert tail.cut_short
    recent.add(record(most + 5))
    assert most + 5 in ids(await tail.news())
    assert not tail.cut_short


async def test_what_is_asked_for_and_remembered_has_a_bound(recent: Recent, tail: Tail) -> None:
    recent.add(record(0))
    await tail.begin(1)
    for number in range(1, 200):
        recent.add(record(number))
        assert ids(await tail.news()) == [number]
        assert tail.remembered <= AGAIN_S + 1
    assert recent.asked[-1]["ended_since"] == NOON + 198.5 - AGAIN_S
