"""Work on its way from the event loop to threads that may block, and its outcomes on their way back."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from sqlalchemy import Connection

from headrace.kernel.clock import Clock, Timer
from headrace.kernel.errors import Unavailable

log = structlog.get_logger(__name__)

Work = Callable[[Connection], Any]
Told = Callable[[Any, Exception | None], object]
"""Hears the work's value, or the error that it ended with."""


def unavailable(what: str, cause: Exception | None = None) -> Unavailable:
    """The error of whoever needed the database. The driver's own words (hosts, users, files) stay in the log and in
    `__cause__`: clients may be shown the message."""
    error = Unavailable(f"The database {what}.", retry_after_s=1.0, code="database_unavailable")
    error.__cause__ = cause
    return error


def reason(error: BaseException | None) -> str:
    """What the driver says, in one line, for logs."""
    lines = str(getattr(error, "orig", None) or error or "").strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else "no reason given"


class Unit:
    """One piece of work. `repeatable`: doing it twice is doing it once. `given_up`: nobody waits for it any more."""

    __slots__ = ("deadline", "given_up", "repeatable", "size_bytes", "told", "work")

    def __init__(self, work: Work, told: Told, deadline: float, size_bytes: int, repeatable: bool) -> None:
        self.work = work
        self.told = told
        self.deadline = deadline
        self.size_bytes = size_bytes
        self.repeatable = repeatable
        self.given_up = False


Outcome = tuple[Unit, Any, Exception | None]


class Inbox:
    """A bounded queue into threads. Everything but `take`, `poll` and `answer` belongs to the event loop.

    Each unit's `told` hears once, on the loop and never inside `put`; at the latest after *patience_s*, whatever the threads
    are stuck in. What is then still queued isn't begun any more; what was begun has a fate that nobody knows.
    """

    def __init__(self, clock: Clock, *, entries: int, size_bytes: int, patience_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._most = entries
        self._most_bytes = size_bytes
        self._patience_s = patience_s
        self._queue: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._waiting: dict[Unit, None] = {}  # in the order of their deadlines
        self._timer: Timer | None = None
        self._closed = False
        self.entries = 0
        """Units that the threads haven't answered, those included that were given up."""
        self.size_bytes = 0

    def put(self, work: Work, told: Told, *, size_bytes: int = 0, repeatable: bool = False) -> None:
        """Queue *work*. Where there is no room, or after `close`, *told* hears Unavailable and nothing is done."""
        if self._closed or self.entries >= self._most or self.size_bytes + size_bytes > self._most_bytes:
            why = "is being closed" if self._closed else "is too slow: too much waits for it"
            self._loop.call_soon(told, None, unavailable(why))
            return
        unit = Unit(work, told, self._clock.monotonic() + self._patience_s, size_bytes, repeatable)
        self.entries += 1
        self.size_bytes += size_bytes
        self._waiting[unit] = None
        if self._timer is None:
            self._timer = self._clock.call_later(self._patience_s, self._sweep)
        self._queue.put(unit)

    async def ask(self, work: Work, *, repeatable: bool = False) -> Any:
        """Queue *work* and wait for its value.

        Raises:
            Unavailable: it wasn't done, or nobody knows.
        """
        future: asyncio.Future[Any] = self._loop.create_future()

        def told(value: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        self.put(work, told, repeatable=repeatable)
        return await future

    def close(self, threads: int) -> None:
        """Take nothing more; each of so many threads is told to end once it has worked through the rest."""
        self._closed = True
        for _ in range(threads):
            self._queue.put(None)

    def take(self) -> Unit | None:
        """The next unit, however long that takes; None: it's time to end."""
        return self._queue.get()

    def poll(self) -> Unit | None:
        """The next unit; None where there is none yet, or it's time to end (which the next `take` then says)."""
        try:
            unit = self._queue.get_nowait()
        except queue.Empty:
            return None
        if unit is None:
            self._queue.put(None)
        return unit

    def answer(self, outcomes: Sequence[Outcome]) -> None:
        """Let each unit's `told` hear its outcome, on the loop, in this order."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, outcomes)
        except RuntimeError:
            return  # the loop was closed without waiting for us: nobody is there to hear

    def _deliver(self, outcomes: Sequence[Outcome]) -> None:
        for unit, value, error in outcomes:
            self.entries -= 1
            self.size_bytes -= unit.size_bytes
            if self._waiting.pop(unit, _MISSING) is not _MISSING:
                _tell(unit, value, error)
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        """Give up what has waited for too long."""
        self._timer = None
        now = self._clock.monotonic()
        for unit in list(self._waiting):
            if unit.deadline > now:
                self._timer = self._clock.call_later(unit.deadline - now, self._sweep)
                return
            del self._waiting[unit]
            unit.given_up = True
            _tell(unit, None, unavailable("doesn't answer"))


def _tell(unit: Unit, value: Any, error: Exception | None) -> None:
    try:
        unit.told(value, error)
    except Exception:  # one listener's bug must not keep the others from hearing
        log.exception("what hears of a database's answer failed", action="storage.told")


_MISSING = object()
