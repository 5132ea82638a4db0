"""Forgetting what is old."""

from __future__ import annotations

import asyncio

import structlog

from headrace.kernel.aio import Tasks
from headrace.kernel.clock import Clock
from headrace.kernel.errors import Unavailable
from headrace.ports.ledger import Journal
from headrace.ports.records import Records

log = structlog.get_logger(__name__)

EVERY_S = 600.0
WINDOWS_S = 86_400.0
"""How long an ended window is kept: a request may be settled in the window it began in, long after that has ended."""
HORIZON_S = 3_600.0
"""How long each settlement is known by itself, so that the same one, given again, charges nothing. What gives it again is a
transaction whose fate was lost with its connection, or a process that was told of an end twice: seconds later, not hours."""


class Retention:
    """Prunes records and the journal now and then, in the background: so the journal has at most the settlements of `HORIZON_S`
    and *every_s* together, and a row for each window that runs or ended within `WINDOWS_S`."""

    def __init__(
        self, records: Records, journal: Journal, clock: Clock, *, records_s: float, every_s: float = EVERY_S
    ) -> None:
        self._records = records
        self._journal = journal
        self._clock = clock
        self._records_s = records_s
        self._every_s = every_s
        self._tasks = Tasks()

    def start(self) -> None:
        """Prune now, and again and again. Needs a running loop."""
        self._tasks.spawn(self._run(), name="retention")

    async def close(self) -> None:
        """Stop it; idempotent."""
        await self._tasks.close()

    async def prune(self) -> None:
        """Prune once.

        Raises:
            Unavailable: the database can't be asked; some may be left.
        """
        now = self._clock.now()
        gone = await self._records.prune(now - self._records_s)
        await self._journal.prune(now - WINDOWS_S, now - HORIZON_S)
        if gone:
            log.info("old records were deleted", action="records.pruned", records=gone)

    async def _run(self) -> None:
        while True:
            try:
                await self.prune()
            except Unavailable as error:
                log.warning(
                    "old records could not be deleted", action="records.unpruned", reason=error.message
                )
            passed = asyncio.Event()
            self._clock.call_later(self._every_s, passed.set)
            await passed.wait()
