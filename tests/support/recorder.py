"""A sink that remembers what it was told, and holds the connector to the order of calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.ports.connector import Failure, Headers, Sink

PATIENCE_S = 20.0


class Recorder(Sink):
    """Remembers. What breaks the port's promises is kept in `violations`, since a sink doesn't raise.

    `on_data`: called with each chunk, for a test that acts in the middle of a call.
    """

    def __init__(self, on_data: Callable[[bytes], object] | None = None) -> None:
        self.status: int | None = None
        self.headers: Headers = []
        self.body = bytearray()
        self.chunks = 0
        self.ended = False
        self.failure: Failure | None = None
        self.violations: list[str] = []
        self._on_data = on_data
        self._quiet = 0
        self._changed = asyncio.Event()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """A time in which no call may come."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    @property
    def over(self) -> bool:
        """Whether the last call came."""
        return self.ended or self.failure is not None

    def head(self, status: int, headers: Headers) -> None:
        self._called("head")
        if self.status is not None:
            self.violations.append("a second head")
        if self.chunks:
            self.violations.append("a head after data")
        self.status, self.headers = status, headers

    def data(self, chunk: bytes) -> None:
        self._called("data")
        if self.status is None:
            self.violations.append("data before the head")
        if not chunk or not isinstance(chunk, bytes):
            self.violations.append(f"data of {type(chunk).__name__} with {len(chunk)} bytes")
        self.body += chunk
        self.chunks += 1
        if self._on_data is not None:
            self._on_data(chunk)

    def end(self) -> None:
        self._called("end")
        if self.status is None:
            self.violations.append("an end without a head")
        self.ended = True

    def fail(self, failure: Failure) -> None:
        self._called("fail")
        self.failure = failure

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds; looked at after each call."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def headed(self) -> None:
        """Wait for the head."""
        await self.until(lambda: self.status is not None)

    async def grown(self, chunks: int = 0) -> None:
        """Wait until more than so many chunks came, or the last call."""
        await self.until(lambda: self.chunks > chunks or self.over)

    async def last(self) -> Recorder:
        """Wait for the last call; the order of all calls was right."""
        await self.until(lambda: self.over)
        assert self.violations == []
        return self

    def _called(self, name: str) -> None:
        if self._quiet:
            self.violations.append(f"{name} inside a call that must not cause one")
        if self.over:
            self.violations.append(f"{name} after the last call")
        self._changed.set()
