"""One HTTP/1.1 connection of the fake engine: requests in, replies out, and the news that the client has left."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Protocol, cast

import httptools

from headrace.kernel.aio import Tasks
from headrace.testing.fake_engine.stats import Received

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_PIPELINED = 16


class Reply:
    """The answer to one request, as its handler writes it.

    Set `stop_when_left` to have the handler cancelled when the client leaves; otherwise it runs on, `left` turns true,
    and what it writes is dropped.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._chunked = False
        self.stop_when_left = False
        self.left = False

    def whole(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Send the complete answer; JSON unless *headers* say otherwise."""
        fields = {"Content-Type": "application/json; charset=utf-8"} | (headers or {})
        self._connection.write(_head(status, fields | {"Content-Length": str(len(body))}) + body)

    def part(self, status: int, body: bytes, promised_bytes: int) -> None:
        """Send a head that promises more than the *body* sent with it."""
        head = _head(status, {"Content-Type": "application/json", "Content-Length": str(promised_bytes)})
        self._connection.write(head + body)

    def begin(self, content_type: str = "text/event-stream") -> None:
        """Send the head of a stream, of events unless it says otherwise."""
        self._chunked = True
        fields = {
            "Content-Type": content_type,
            "Cache-Control": "no-cache",
            "Transfer-Encoding": "chunked",
        }
        self._connection.write(_head(200, fields))

    async def send(self, data: bytes) -> None:
        """Send some of the stream, and wait while the client's side is full."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._connection.drained()

    def end(self) -> None:
        """End the stream."""
        self._connection.write(b"0\r\n\r\n")

    def cut(self) -> None:
        """Drop the connection here and now, once what was written is out."""
        self._connection.close()


class Host(Protocol):
    """Who owns the connections."""

    tasks: Tasks

    def opened(self, connection: Connection) -> None:
        """A client came."""

    def lost(self, connection: Connection) -> None:
        """It went."""

    def changed(self) -> None:
        """A connection was held back, or may go on."""

    def handle(self, request: Received, reply: Reply) -> Coroutine[Any, Any, None]:
        """Answer one request."""

    def keeps_alive(self) -> bool:
        """Whether a connection may carry another request."""


class Connection(asyncio.Protocol):
    """Answers requests one after another; those that come early wait, at most `MAX_PIPELINED`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()
        self._waiting: deque[tuple[Received, bool]] = deque()
        self._running: tuple[asyncio.Task[Any], Reply] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = cast("asyncio.Transport", transport)
        self._host.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: the client left, or we closed."""
        self._transport = None
        self._waiting.clear()
        self._writable.set()
        if self._running is not None:
            task, reply = self._running
            reply.left = True
            if reply.stop_when_left:
                task.cancel()
        self._host.lost(self)

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.close()
        except httptools.HttpParserCallbackError:
            self.abort()  # it came while the engine was stopping
        except httptools.HttpParserError:
            self.write(_head(400, {"Content-Length": "0", "Connection": "close"}))
            self.close()

    @property
    def held(self) -> bool:
        """Whether the client doesn't take more just now."""
        return not self._writable.is_set()

    def pause_writing(self) -> None:
        """asyncio's."""
        self._writable.clear()
        self._host.changed()

    def resume_writing(self) -> None:
        """asyncio's."""
        self._writable.set()
        self._host.changed()

    def on_message_begin(self) -> None:
        """The parser's."""
        self._target, self._headers, self._body = b"", [], bytearray()

    def on_url(self, url: bytes) -> None:
        """The parser's; a long target comes in pieces."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser's."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The parser's: curl waits a second for this before it sends a large body."""
        if (b"expect", b"100-continue") in self._headers:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """The parser's."""
        self._body += data
        if len(self._body) > MAX_BODY_BYTES:
            self.close()

    def on_message_complete(self) -> None:
        """The parser's."""
        if len(self._waiting) >= MAX_PIPELINED:
            self.close()
            return
        request = Received(
            self._parser.get_method().decode(),
            self._target.decode("latin-1"),
            self._headers,
            bytes(self._body),
        )
        self._waiting.append((request, self._parser.should_keep_alive()))
        self._next()

    def write(self, data: bytes) -> None:
        """Send *data*, or drop it when the client has left."""
        if self._transport is not None:
            self._transport.write(data)

    async def drained(self) -> None:
        """Return when the client takes more, or has left."""
        await self._writable.wait()

    def close(self) -> None:
        """Close once what was written is out."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop it now, and what wasn't sent yet."""
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        if self._running is not None or not self._waiting or self._transport is None:
            return
        request, keep_alive = self._waiting.popleft()
        reply = Reply(self)
        task = self._host.tasks.spawn(self._host.handle(request, reply), name=f"fake engine {request.path}")
        self._running = task, reply
        task.add_done_callback(self._done if keep_alive else self._done_last)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running = None
        if not self._host.keeps_alive() or (not task.cancelled() and task.exception()):
            self.close()
        self._next()

    def _done_last(self, task: asyncio.Task[Any]) -> None:
        self._running = None
        self.close()


def _head(status: int, fields: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Server: fake-engine"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
