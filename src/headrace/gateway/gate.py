"""What all connections of a listener share: bounds, the token lane, the time, and who is still being answered."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Protocol

from headrace.kernel.outbox import Outbox

SWEEP_S = 0.25
"""How often deadlines are looked at. One sweep over all connections is cheaper than a timer for each request."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of one connection, in bytes and seconds, and on how many there are.

    write_s: how long a client may leave what we sent unread before it is cut off.
    """

    head_bytes: int = 64 * 1024
    head_time_s: float = 10.0
    connections: int = 10_000
    keep_alive_s: float = 75.0
    write_s: float = 60.0


class Overdue(Protocol):
    """A connection, as the sweep sees it."""

    deadline: float

    def overdue(self, now: float) -> None:
        """Its `deadline` has passed; it does what is to be done and sets a new one."""


class Gate:
    """Shared by a listener's connections. `date`: the header line that all responses carry."""

    def __init__(self, limits: ConnectionLimits, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.now = monotonic
        self.date = b""
        self.outbox = Outbox()
        self.answering: set[object] = set()
        self._quiet = asyncio.Event()

    def begin(self, connection: object) -> None:
        """*connection* is being answered outside of ASGI."""
        self.answering.add(connection)

    def done(self, connection: object) -> None:
        """It no longer is."""
        self.answering.discard(connection)
        if not self.answering:
            self._quiet.set()

    async def quiet(self) -> None:
        """Wait until nobody is being answered outside of ASGI."""
        while self.answering:
            self._quiet.clear()
            await self._quiet.wait()

    async def sweep(self, connections: Callable[[], tuple[Overdue, ...]]) -> None:
        """Look at every connection's deadline, for ever, and keep the date."""
        while True:
            self.date = b"date: " + formatdate(time.time(), usegmt=True).encode() + b"\r\n"
            now = self.now()
            for connection in connections():
                if connection.deadline <= now:
                    connection.overdue(now)
            await asyncio.sleep(SWEEP_S)


NEVER = math.inf
"""No deadline."""
