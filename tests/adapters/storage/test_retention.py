"""What is old is forgotten, now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.adapters.storage.retention import HORIZON_S, WINDOWS_S, Retention
from headrace.domain.quota import Window
from headrace.kernel.errors import Unavailable
from headrace.ports.ledger import Journal, JournalEntry, WindowState
from headrace.ports.records import ALL, Grouping, Records, RequestRecord, Selection, UsageRow
from headrace.testing import ManualClock


class KeptRecords(Records):
    """Remembers what it was asked to forget; refuses as often as it was told to."""

    def __init__(self, refusals: int = 0) -> None:
        self.dropped = 0
        self.pruned: list[float] = []
        self._refusals = refusals

    def add(self, record: RequestRecord) -> None:
        raise AssertionError

    async def recent(self, limit: int, selection: Selection = ALL, *, after: str = "") -> list[RequestRecord]:
        raise AssertionError

    async def usage(self, by: Sequence[Grouping], selection: Selection = ALL) -> list[UsageRow]:
        raise AssertionError

    async def prune(self, before: float) -> int:
        self._refusals -= 1
        if self._refusals >= 0:
            raise Unavailable("not now")
        self.pruned.append(before)
        return 1


class KeptJournal(Journal):
    """Remembers what it was asked to forget."""

    def __init__(self) -> None:
        self.pruned: list[tuple[float, float]] = []

    async def open(self, now: float) -> list[WindowState]:
        raise AssertionError

    def commit(
        self,
        entries: Sequence[JournalEntry],
        blocks: Sequence[WindowState],
        told: Callable[[bool], object],
    ) -> None:
        raise AssertionError

    def look(
        self,
        windows: Sequence[tuple[Window, int]],
        told: Callable[[Sequence[WindowState] | None], object],
    ) -> None:
        raise AssertionError

    async def prune(self, ended_before: float, settled_before: float) -> None:
        self.pruned.append((ended_before, settled_before))


async def test_records_and_journal_are_pruned_at_the_start_and_again() -> None:
    clock, records, journal = ManualClock(1e9), KeptRecords(), KeptJournal()
    retention = Retention(records, journal, clock, records_s=100.0, every_s=10.0)
    retention.start()
    await clock.until_pending()
    assert (records.pruned, journal.pruned) == ([1e9 - 100], [(1e9 - WINDOWS_S, 1e9 - HORIZON_S)])
    clock.advance(10.0)
    await clock.until_pending()
    assert records.pruned == [1e9 - 100, 1e9 - 90]
    await retention.close()
    await retention.close()


async def test_a_database_that_is_away_is_asked_again() -> None:
    clock, records, journal = ManualClock(1e9), KeptRecords(refusals=1), KeptJournal()
    retention = Retention(records, journal, clock, records_s=100.0, every_s=10.0)
    retention.start()
    await clock.until_pending()
    assert records.pruned == []
    clock.advance(10.0)
    await clock.until_pending()
    assert records.pruned == [1e9 - 90]
    await retention.close()
