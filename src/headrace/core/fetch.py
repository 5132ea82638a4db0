"""A whole answer, awaited: for the few exchanges where a coroutine is welcome (discovery, checks, the client)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from headrace.ports.connector import Connector, Failure, Headers, Lost, Sink, UpstreamRequest


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer."""

    status: int
    headers: Headers
    body: bytes


class FetchFailed(Exception):
    """There was no complete answer; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


async def fetch(
    connector: Connector, request: UpstreamRequest, *, max_bytes: int = 8 * 1024 * 1024
) -> Response:
    """Run one exchange to its end. Cancelling the caller cancels the exchange.

    Raises:
        FetchFailed: the exchange failed, or the body is over *max_bytes*.
    """
    collector = _Collector(max_bytes)
    exchange = connector.start(request, collector)
    try:
        return await collector.response
    except asyncio.CancelledError:
        collector.abandoned = True
        raise
    finally:
        exchange.cancel()


class _Collector(Sink):
    def __init__(self, max_bytes: int) -> None:
        self.response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.abandoned = False
        self._max_bytes = max_bytes
        self._status = 0
        self._headers: Headers = []
        self._body = bytearray()

    def head(self, status: int, headers: Headers) -> None:
        self._status, self._headers = status, headers

    def data(self, chunk: bytes) -> None:
        self._body += chunk
        if len(self._body) > self._max_bytes:
            self.fail(Lost(f"The answer is over {self._max_bytes} bytes."))
            self._body.clear()

    def end(self) -> None:
        if not self.response.done():
            self.response.set_result(Response(self._status, self._headers, bytes(self._body)))

    def fail(self, failure: Failure) -> None:
        if not self.response.done() and not self.abandoned:
            self.response.set_exception(FetchFailed(failure))
