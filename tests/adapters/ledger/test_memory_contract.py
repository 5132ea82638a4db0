"""The embedded ledger does what every ledger must, with blocks and without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from headrace.adapters.ledger.memory import LedgerOptions, MemoryLedger
from headrace.testing.journal import MemoryJournal
from support.ledger_contract import NOON, LedgerContract
from support.stepping_clock import SteppingClock


@dataclass
class Stage:
    """A ledger over a journal that commits in the loop's next turn."""

    ledger: MemoryLedger
    clock: SteppingClock


async def opened(options: LedgerOptions) -> AsyncIterator[Stage]:
    clock = SteppingClock(NOON)
    ledger = MemoryLedger(MemoryJournal(), clock, options)
    await ledger.open()
    yield Stage(ledger, clock)
    await ledger.close()


class TestMemoryLedger(LedgerContract):
    @pytest.fixture
    async def stage(self) -> AsyncIterator[Stage]:
        async for stage in opened(LedgerOptions()):
            yield stage


class TestStrictMemoryLedger(LedgerContract):
    @pytest.fixture
    async def stage(self) -> AsyncIterator[Stage]:
        async for stage in opened(LedgerOptions(strict=True)):
            yield stage
