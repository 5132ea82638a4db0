"""From pushed to pulled: an exchange's bytes wait here, in a bounded buffer, for a coroutine that reads them."""

from __future__ import annotations

import asyncio
from collections import deque

from headrace.ports.connector import Connector, Exchange, Failure, Headers, Sink, UpstreamRequest

_FULL_BYTES = 256 * 1024
_STOP_WAIT_S = 2.0


class Failed(Exception):
    """The exchange failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class Inbox(Sink):
    """One exchange to read from. A reader who is slow makes the sender wait."""

    def __init__(self, connector: Connector, request: UpstreamRequest) -> None:
        self.status = 0
        self.headers: Headers = []
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._failure: Failure | None = None
        self._ended = False
        self._news = asyncio.Event()
        self._exchange: Exchange = connector.start(request, self)

    def head(self, status: int, headers: Headers) -> None:
        """See the port."""
        self.status, self.headers = status, headers
        self._news.set()

    def data(self, chunk: bytes) -> None:
        """See the port."""
        self._chunks.append(chunk)
        self._waiting_bytes += len(chunk)
        if self._waiting_bytes >= _FULL_BYTES:
            self._exchange.pause()
        self._news.set()

    def end(self) -> None:
        """See the port."""
        self._ended = True
        self._news.set()

    def fail(self, failure: Failure) -> None:
        """See the port."""
        self._failure = failure
        self._ended = True
        self._news.set()

    async def wait_for_head(self) -> None:
        """Return when the status and headers are there.

        Raises:
            Failed: they won't come.
        """
        while not self.status:
            if self._failure is not None:
                raise Failed(self._failure)
            await self._wait()

    async def read(self) -> bytes:
        """Everything that is there, at least a byte; nothing when the body is complete.

        Raises:
            Failed: the body is not complete, and no more will come.
        """
        while not self._chunks:
            if self._failure is not None:
                raise Failed(self._failure)
            if self._ended:
                return b""
            await self._wait()
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._waiting_bytes = 0
        self._exchange.resume()
        return data

    async def close(self) -> None:
        """Cancel what still runs, and wait (shortly) until the backend was told. Idempotent."""
        self._exchange.cancel()
        try:
            async with asyncio.timeout(_STOP_WAIT_S):
                while not self._ended:
                    await self._wait()
        except TimeoutError:
            pass  # it was cancelled; whoever closes doesn't have to wait longer for the confirmation

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()
