"""The journal that ships for tests does what every journal must, and can be held and crashed."""

from __future__ import annotations

import pytest

from headrace.ports.ledger import Journal
from headrace.testing.journal import MemoryJournal
from support.journal_contract import NOON, JournalContract, committed, entry, state


class Stage:
    """What is kept lives in the journal itself."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()

    async def reopened(self) -> Journal:
        self.journal.crash()
        return self.journal

    def fail(self, failing: bool) -> None:
        self.journal.failing = failing


class TestMemoryJournal(JournalContract):
    @pytest.fixture
    def stage(self) -> Stage:
        return Stage()


async def test_held_commits_wait_and_a_crash_loses_them() -> None:
    journal = MemoryJournal()
    told: list[bool] = []
    journal.hold()
    journal.commit([entry("r1", 1)], [], told.append)
    journal.commit([entry("r2", 2)], [state(0, 5)], told.append)
    assert (journal.waiting, told) == (2, [])
    assert journal.carry_out(1) == 1
    journal.crash()
    assert (journal.waiting, told) == (0, [True])
    assert await journal.open(NOON) == [state(1, 0)]
    journal.let_go()
    assert await committed(journal, [entry("r2", 2)])
    assert [kept.reservation for kept in journal.entries] == ["r1", "r2"]
