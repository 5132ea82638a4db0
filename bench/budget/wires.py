"""What stands at both ends of the rig: transports that take bytes, an endpoint that leads nowhere, and the
turns and the clock between."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from bench.budget.marks import Marks
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
    """An endpoint whose connections lead nowhere; `opened`: their protocols."""

    opened: list[asyncio.Protocol] = field(default_factory=list)

    async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connected at once."""
        made = protocol()
        made.connection_made(Line())
        self.opened.append(made)


class Turns:
    """An event loop without a selector: what was put off runs when the turn ends. Only that much costs something, about as
    little as in a loop that is written in C. Timers never ring."""

    def __init__(self) -> None:
        self._ready: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._as_loop = cast("asyncio.AbstractEventLoop", self)  # as much of one as is asked for here

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be the running loop of this thread, for a block."""
        become = asyncio._set_running_loop  # noqa: SLF001 - meant for those who make loops
        become(self._as_loop)
        try:
            yield
        finally:
            become(None)

    def end_turn(self) -> None:
        """Run what was put off, and what it puts off."""
        ready = self._ready
        while ready:
            callback, arguments = ready.popleft()
            callback(*arguments)

    def end_marked_turn(self, part: str, marks: Marks) -> None:
        """The same as *part*."""
        ready = self._ready
        while ready:
            callback, arguments = ready.popleft()
            before = marks.switch(part)
            callback(*arguments)
            marks.switch(before)

    def call_soon(self, callback: Callable[..., object], *arguments: object, context: object = None) -> None:
        """When the turn ends."""
        self._ready.append((callback, arguments))

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: object) -> Timer:
        """Never."""
        return _Never()

    def create_task(self, work: Coroutine[Any, Any, object], *, name: str) -> asyncio.Task[object]:
        """As every loop."""
        return asyncio.Task(work, loop=self._as_loop, name=name)

    def get_debug(self) -> bool:
        """Never."""
        return False


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
