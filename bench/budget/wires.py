"""What stands at both ends of the rig: transports that take bytes, an endpoint that leads nowhere, a clock that steps."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.connectors.endpoint import Endpoint
from headrace.kernel.clock import Clock, Timer


class Line(asyncio.Transport):
    """A transport that takes all bytes at once; `taken` are the last writes."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 11435)})
        self.taken: deque[bytes] = deque(maxlen=512)
        self.write = self.taken.append  # type: ignore[assignment, method-assign]  # in C, as the real one
        self.writelines = self.taken.extend  # type: ignore[assignment, method-assign]

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_write_buffer_size(self) -> int:
        """Nothing is left."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """They are never reached."""

    def pause_reading(self) -> None:
        """Nothing to pause."""

    def resume_reading(self) -> None:
        """Nothing to resume."""


@dataclass(frozen=True)
class Wire(Endpoint):
    """An endpoint whose connections lead nowhere. `first`: the protocol of the first one, once it's there."""

    first: asyncio.Future[asyncio.Protocol] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connected at once.

        Raises:
            asyncio.InvalidStateError: a second time; the kept connection wasn't used again.
        """
        made = protocol()
        made.connection_made(Line())
        self.first.set_result(made)


class SteppedClock(Clock):
    """Each look at it is a sixteenth of a second after the one before, at about the price of a look at the real one: so a
    connection that rests has rested by the next request, however slow the machine. Timers never ring."""

    def __init__(self) -> None:
        self._times = itertools.count(1000.0, 0.0625)
        self.monotonic = self._times.__next__  # type: ignore[method-assign]  # as cheap as the real one

    def monotonic(self) -> float:
        """Later than the last time."""
        return next(self._times)

    def now(self) -> float:
        """A fixed moment."""
        return 1.7e9

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        """Never."""
        return _Never()


class _Never(Timer):
    def cancel(self) -> None:
        """Nothing to take back."""
