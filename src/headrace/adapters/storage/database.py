"""The database: one thread that writes, a few that read, and an event loop that never waits for either."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from sqlalchemy import Connection, Engine

from headrace.adapters.storage.backend import Backend
from headrace.adapters.storage.inbox import Inbox, Told
from headrace.adapters.storage.readers import Reader
from headrace.adapters.storage.schema_version import Migrations
from headrace.adapters.storage.writer import Writer
from headrace.kernel.clock import Clock

log = structlog.get_logger(__name__)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Bounds:
    """How much may wait, and how long. patience_s: until whoever waits is told `Unavailable`. statement_s: one statement."""

    queued: int = 10_000
    queued_bytes: int = 64 * 1024 * 1024
    reading: int = 256
    readers: int = 4
    patience_s: float = 5.0
    statement_s: float = 4.0
    startup_s: float = 15.0


class Database:
    """Where the repositories do their work. Made closed; everything but `open` belongs to the loop that opened it."""

    def __init__(self, backend: Backend, clock: Clock, bounds: Bounds | None = None) -> None:
        self._backend = backend
        self._clock = clock
        self._bounds = bounds or Bounds()
        self._threads: list[threading.Thread] = []
        self._writing: Inbox | None = None
        self._reading: Inbox | None = None
        self._writer: Writer | None = None
        self._engines: list[Engine] = []

    @property
    def queued(self) -> tuple[int, int]:
        """Units that wait to be written or are being written, and their size in bytes."""
        return (self._writing.entries, self._writing.size_bytes) if self._writing else (0, 0)

    @property
    def reads_queued(self) -> int:
        """Reads that wait or are under way."""
        return self._reading.entries if self._reading else 0

    @property
    def groups(self) -> int:
        """Transactions that were committed since `open`."""
        return self._writer.groups if self._writer else 0

    async def open(self) -> None:
        """Take the writer's lock, bring the schema up to date, and start the threads.

        Raises:
            StartupError: the database can't be had, another process has it, or its schema is newer than this program. Nothing
                is left running or locked; the database is as it was, or has a newer schema.
        """
        bounds = self._bounds
        await asyncio.to_thread(self._backend.hold)
        try:
            await asyncio.to_thread(self._upgrade)
        except BaseException:  # a cancelled start, too, must not keep others out
            self._backend.let_go()
            raise
        self._writing = Inbox(
            self._clock,
            entries=bounds.queued,
            size_bytes=bounds.queued_bytes,
            patience_s=bounds.patience_s,
        )
        self._reading = Inbox(
            self._clock, entries=bounds.reading, size_bytes=bounds.queued_bytes, patience_s=bounds.patience_s
        )
        writing = self._backend.engine(connections=1, writes=True, limit_s=bounds.statement_s)
        reading = self._backend.engine(connections=bounds.readers, writes=False, limit_s=bounds.statement_s)
        self._engines = [writing, reading]
        self._writer = Writer(writing, self._writing)
        reader = Reader(reading, self._reading)
        self._start(self._writer.run, "storage-writer")
        for number in range(bounds.readers):
            self._start(reader.run, f"storage-reader-{number}")

    def submit(
        self,
        work: Callable[[Connection], object],
        told: Told,
        *,
        size_bytes: int = 0,
        repeatable: bool = False,
    ) -> None:
        """Do *work* in the writer's next transaction, in a savepoint of its own; later ones come after earlier ones.

        *told* hears once, on the loop, never before this returned: the value once it is durable, or the error. After
        Unavailable nothing was kept, or nobody knows. repeatable: doing *work* twice is the same as once; it is done again
        where its fate is unknown. *work* runs on the writer's thread, and must not commit.
        """
        assert self._writing is not None, "not open"
        self._writing.put(work, told, size_bytes=size_bytes, repeatable=repeatable)

    async def write(self, work: Callable[[Connection], Value], *, repeatable: bool = False) -> Value:
        """As `submit`, and wait until it is durable.

        Raises:
            Unavailable: nothing was kept, or nobody knows.
        """
        assert self._writing is not None, "not open"
        value: Value = await self._writing.ask(work, repeatable=repeatable)
        return value

    async def read(self, work: Callable[[Connection], Value]) -> Value:
        """Run *work* on a reader's thread; it sees what was committed before.

        Raises:
            Unavailable: the database can't be asked, or takes too long.
        """
        assert self._reading is not None, "not open"
        value: Value = await self._reading.ask(work)
        return value

    async def close(self) -> None:
        """Write what is queued, end the threads, and let go of the lock. Waits for them twice the patience at most. Idempotent."""
        for inbox, readers in ((self._writing, 1), (self._reading, self._bounds.readers)):
            if inbox is not None and self._threads:
                inbox.close(readers)
        stuck = await asyncio.to_thread(self._end)
        if stuck:
            log.error("the database didn't let go in time", action="storage.stuck", threads=stuck)

    def _end(self) -> list[str]:
        """Wait for the threads, and close what they used; those that still run. They are daemons: one that hangs in the
        machine's own input and output doesn't hold up the end."""
        threads, self._threads = self._threads, []
        end = time.monotonic() + 2 * self._bounds.patience_s
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        for engine in self._engines:
            engine.dispose()
        self._engines = []
        self._backend.let_go()
        return [thread.name for thread in threads if thread.is_alive()]

    def _upgrade(self) -> None:
        Migrations(self._backend, startup_s=self._bounds.startup_s).upgrade()

    def _start(self, run: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
