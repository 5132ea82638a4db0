"""An answer on its way to an ASGI client: pushed in by core, pulled out by the request's coroutine."""

from __future__ import annotations

import asyncio
from collections import deque

from headrace.core.answer import Answer
from headrace.gateway.problems import problem
from headrace.kernel.errors import RequestError
from headrace.ports.connector import Exchange
from headrace.ports.control import Grant
from headrace.wire.sse import data_event

HIGH_WATER_BYTES = 64 * 1024
"""Above this the backend is paused; what it had already sent may still come (at most `MAX_AFTER_PAUSE`)."""


class PulledAnswer(Answer):
    """Holds what came until it is pulled, a bounded amount: beyond `HIGH_WATER_BYTES` the exchange is paused.

    asked_at: when the request was complete, on the monotonic clock. content_type, grant: those of the head, once it came.
    """

    def __init__(self, asked_at: float = 0.0) -> None:
        self.asked_at = asked_at
        self.content_type = b""
        self.grant: Grant | None = None
        self.error: RequestError | None = None
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._over = False
        self._news = asyncio.Event()
        self._exchange: Exchange | None = None
        self._paused = False

    def attach(self, exchange: Exchange) -> None:
        """Pause and resume *exchange* from now on."""
        self._exchange = exchange
        self._balance()

    def head(self, content_type: bytes, grant: Grant) -> None:
        """The answer begins."""
        self.content_type = content_type
        self.grant = grant
        self._news.set()

    def data(self, chunk: bytes) -> None:
        """Keep *chunk* until it is pulled."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        self._news.set()
        self._balance()

    def end(self) -> None:
        """The answer is complete."""
        self._over = True
        self._news.set()

    def fail(self, error: RequestError) -> None:
        """The answer failed; behind a head, the client learns it from a last event."""
        self.error = error
        if self.grant is not None:
            self._chunks.append(data_event(problem(error).body))
        self._over = True
        self._news.set()

    async def begin(self) -> None:
        """Wait for the head, or the failure that stands in its place."""
        while self.grant is None and not self._over:
            await self._wait()

    async def pull(self) -> tuple[bytes, bool]:
        """All that came since, and whether more will come; waits for at least one of the two."""
        while not self._chunks and not self._over:
            await self._wait()
        block = b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        self._balance()
        return block, not self._over

    async def whole(self) -> bytes:
        """Everything, once it is complete."""
        blocks, more = [], True
        while more:
            block, more = await self.pull()
            blocks.append(block)
        return b"".join(blocks)

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _balance(self) -> None:
        """Pause or resume the exchange as what we hold demands."""
        if self._exchange is None:
            return
        if self._size > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self._exchange.pause()
        elif self._paused and self._size == 0:
            self._paused = False
            self._exchange.resume()
