"""Databases for tests: bounds, a way to open them, and locks that keep them from writing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine, text

from headrace.adapters.storage.backend import choose
from headrace.adapters.storage.database import Bounds, Database
from headrace.kernel.clock import SystemClock

BOUNDS = Bounds(patience_s=30.0, statement_s=15.0)
"""Far more than anything takes that works, on a machine that is busy."""
IMPATIENT = Bounds(patience_s=3.0, statement_s=0.5, startup_s=0.5)
"""For what doesn't work anyway."""


class Opening(Protocol):
    """Opens a test's database anew."""

    def __call__(self, bounds: Bounds = BOUNDS) -> contextlib.AbstractAsyncContextManager[Database]: ...


@contextlib.asynccontextmanager
async def opened(url: str, home: Path, bounds: Bounds = BOUNDS) -> AsyncIterator[Database]:
    """The database at *url*, open as long as the context lasts."""
    backend = await asyncio.to_thread(choose, url, home)
    database = Database(backend, SystemClock(), bounds)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


class WriteLock:
    """Another process's transaction that keeps ours from writing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1)  # the test's own may not block where its loop runs
        self._holder: Connection | None = None

    def take(self) -> None:
        self._thread.submit(self._take).result()

    def give_back(self) -> None:
        self._thread.submit(self._give_back).result()

    def _take(self) -> None:
        self._holder = self._engine.connect()
        self._holder.begin()
        if self._engine.dialect.name == "postgresql":
            self._holder.execute(
                text("LOCK TABLE journal, windows, requests, users, modelroutes IN EXCLUSIVE MODE")
            )

    def _give_back(self) -> None:
        if self._holder is not None:
            self._holder.close()
            self._holder = None
        self._engine.dispose()
