"""The ledger in Redis does what every ledger must, whichever choice was made for outages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from headrace.adapters.ledger.redis import RedisLedger, RedisOptions
from support.ledger_contract import NOON, LedgerContract
from support.servers.redis import RedisServer
from support.stepping_clock import SteppingClock

PATIENT_S = 10.0  # this machine may be busy; outages have tests of their own


@dataclass
class Stage:
    """A ledger in an empty Redis."""

    ledger: RedisLedger
    clock: SteppingClock


async def opened(redis: RedisServer, options: RedisOptions) -> AsyncIterator[Stage]:
    clock = SteppingClock(NOON)
    ledger = RedisLedger(redis.url, clock, options)
    await ledger.open()
    yield Stage(ledger, clock)
    await ledger.close()


class TestRedisLedger(LedgerContract):
    @pytest.fixture
    async def stage(self, redis: RedisServer) -> AsyncIterator[Stage]:
        async for stage in opened(redis, RedisOptions(timeout_s=PATIENT_S)):
            yield stage


class TestRedisLedgerWithPrefix(LedgerContract):
    @pytest.fixture
    async def stage(self, redis: RedisServer) -> AsyncIterator[Stage]:
        async for stage in opened(redis, RedisOptions(prefix="{headrace}:", timeout_s=PATIENT_S)):
            yield stage
