"""The double of routes keeps what the real ones promise: the same contract runs over both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.adapters.storage.routes import SqlRoutes
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import Unavailable
from headrace.ports.records import Routes
from headrace.testing.routes import MemoryRoutes
from support.routes_contract import BARE, RoutesContract
from support.storage import opened


@pytest.fixture(params=["memory", "sqlite"])
async def routes(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Routes]:
    if request.param == "memory":
        yield MemoryRoutes()
    else:
        async with opened("sqlite", tmp_path) as database:
            yield SqlRoutes(database, SystemClock())


class TestRoutes(RoutesContract):
    async def test_the_double_can_fail(self) -> None:
        routes = MemoryRoutes()
        routes.failing = True
        with pytest.raises(Unavailable):
            await routes.save_route(BARE)
        routes.failing = False
        assert (await routes.routes(), routes.refused) == ([], 1)
