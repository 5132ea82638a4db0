"""The bounded number of requests that an engine works on at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

MAX_QUEUED = 4096


class Full(Exception):
    """No slot is free, and none may be waited for."""


class Slots:
    """First come, first served. *size* is asked each time, for a script may change it; *changed* is called when the
    queue grew or shrank.
    """

    def __init__(self, size: Callable[[], int], changed: Callable[[], None]) -> None:
        self._size = size
        self._changed = changed
        self._taken = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._queue)

    @asynccontextmanager
    async def one(self, *, may_wait: bool) -> AsyncIterator[None]:
        """Hold one slot.

        Raises:
            Full: none is free and *may_wait* is false, or too many wait already.
        """
        await self._take(may_wait)
        try:
            yield
        finally:
            self._taken -= 1
            self.wake()

    def wake(self) -> None:
        """Give what is free to those who wait."""
        while self._queue and self._taken < self._size():
            future = self._queue.popleft()
            if not future.done():
                self._taken += 1
                future.set_result(None)

    async def _take(self, may_wait: bool) -> None:
        if self._taken < self._size() and not self._queue:
            self._taken += 1
            return
        if not may_wait or len(self._queue) >= MAX_QUEUED:
            raise Full
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(future)
        self._changed()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was given in the same moment: pass it on
                self._taken -= 1
            elif future in self._queue:
                self._queue.remove(future)
            self.wake()
            raise
        finally:
            self._changed()
