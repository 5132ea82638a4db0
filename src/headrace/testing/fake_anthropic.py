"""A server double that speaks Anthropic's Messages API over real sockets, as scripted.

async with FakeAnthropic(AnthropicScript(text="Good morning.")) as server:
    ...                                             # talk to server.url
    await server.until(lambda: server.left == 1)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

import msgspec

from headrace.kernel.aio import Tasks
from headrace.testing.fake_anthropic_messages import (
    AnthropicScript,
    Json,
    Wrong,
    check,
    encode_event,
    error_body,
    events,
    message,
)
from headrace.testing.fake_engine.connection import Connection, Host, Reply
from headrace.testing.fake_engine.stats import Received

_HOST = "127.0.0.1"
_OVERLOADED = 529
_VERSIONS = ("2023-06-01", "2026-10-21")


class FakeAnthropic:
    """The server, as an async context manager: listening inside, everything closed after it.

    `script` may be replaced at any time, and holds for requests that come later. `received`: the latest requests to
    `/v1/messages`. finished: answered to the end. left: whose client went before. sent: events of streams that went out.
    """

    def __init__(self, script: AnthropicScript | None = None) -> None:
        self.script = script or AnthropicScript()
        self.received: deque[Received] = deque(maxlen=100)
        self.finished = 0
        self.left = 0
        self.sent = 0
        self.port = 0
        self.tasks = Tasks()
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._released = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def url(self) -> str:
        """The base URL, without `/v1`."""
        return f"http://{_HOST}:{self.port}"

    @property
    def asked(self) -> Json:
        """The body of the latest request."""
        body: Json = self.received[-1].json()
        return body

    def release(self) -> None:
        """Let everything that hangs now go on."""
        self._released.set()
        self._released = asyncio.Event()

    async def until(self, holds: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
        """Return when *holds* does; looked at whenever something that is counted here changed.

        Raises:
            TimeoutError: it didn't within *timeout_s*.
        """
        async with asyncio.timeout(timeout_s):
            while not holds():
                self._news.clear()
                await self._news.wait()

    async def __aenter__(self) -> Self:
        self.tasks = Tasks()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, _HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        await self.tasks.close()
        await self._server.wait_closed()

    def changed(self) -> None:
        """Something that is counted here changed."""
        self._news.set()

    def opened(self, connection: Connection) -> None:
        """A client came."""
        self._connections.add(connection)

    def lost(self, connection: Connection) -> None:
        """It went."""
        self._connections.discard(connection)
        self.changed()

    def _connection(self) -> Connection:
        line = _Line(self)
        line.connection = Connection(line)
        return line.connection

    # -- answering -----------------------------------------------------------------------------------------------------

    async def handle(self, request: Received, reply: Reply, connection: Connection) -> None:
        """Answer one request."""
        script = self.script
        if script.api_key and script.api_key not in _keys(request):
            _whole(reply, 401, error_body(script, ("authentication_error", "invalid x-api-key: sk-ant-…")))
        elif request.header("anthropic-version") not in _VERSIONS:
            _whole(reply, 400, error_body(script, ("invalid_request_error", "anthropic-version: not valid")))
        elif request.method == "GET" and request.path == "/v1/models":
            self._list(request, reply, connection, script)
        elif request.method == "POST" and request.path == "/v1/messages":
            await self._message(request, reply, connection, script)
        else:
            _whole(reply, 404, error_body(script, ("not_found_error", "Not found")))

    def _list(self, request: Received, reply: Reply, connection: Connection, script: AnthropicScript) -> None:
        if script.list_status != 200:
            _refuse(reply, connection, script, script.list_status)
            return
        after = parse_qs(urlsplit(request.target).query).get("after_id", [""])[0]
        ids = [name for name, _ in script.models]
        start = ids.index(after) + 1 if after else 0
        page = script.models[start : start + script.pages]
        listed: list[Json] = [
            {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-02T03:04:05Z"}
            | {"max_tokens": most, "lifecycle": "retired" if "retired" in name else "active"}
            for name, most in page
        ]
        more = start + script.pages < len(ids)
        first, last = (page[0][0], page[-1][0]) if page else (None, None)
        _whole(reply, 200, {"data": listed, "has_more": more, "first_id": first, "last_id": last})

    async def _message(
        self, request: Received, reply: Reply, connection: Connection, script: AnthropicScript
    ) -> None:
        self.received.append(request)
        self.changed()
        reply.stop_when_left = True
        try:
            if script.refuse is not None:
                _refuse(reply, connection, script, script.refuse)
                return
            if script.hang_after == -1:
                await self._released.wait()
            ask = check(msgspec.json.decode(request.body))
            if not ask.get("stream"):
                _whole(reply, 200, message(script, ask))
            elif not await self._stream(reply, script, ask):
                return
            self.finished += 1
        except Wrong as wrong:
            _whole(reply, 400, error_body(script, ("invalid_request_error", str(wrong))))
        except asyncio.CancelledError:
            self.left += 1
            raise
        finally:
            self.changed()

    async def _stream(self, reply: Reply, script: AnthropicScript, ask: Json) -> bool:
        """Whether it was told to its end."""
        reply.begin()
        for number, event in enumerate(events(script, ask)):
            if number == script.hang_after:
                await self._released.wait()
            if number == script.cut_after:
                reply.cut()
                return False
            if number == script.error_after:
                await self._send(reply, script, encode_event(error_body(script)))
                reply.end()
                return False
            await self._send(reply, script, encode_event(event))
        reply.end()
        return True

    async def _send(self, reply: Reply, script: AnthropicScript, event: bytes) -> None:
        size = script.piece_bytes or len(event)
        for at in range(0, len(event), size):
            await reply.send(event[at : at + size])
        self.sent += 1
        self.changed()


class _Line(Host):
    """One connection's host: it tells the server which one it is."""

    connection: Connection

    def __init__(self, server: FakeAnthropic) -> None:
        self._server = server
        self.tasks = server.tasks

    def opened(self, connection: Connection) -> None:
        self._server.opened(connection)

    def lost(self, connection: Connection) -> None:
        self._server.lost(connection)

    def changed(self) -> None:
        self._server.changed()

    async def handle(self, request: Received, reply: Reply) -> None:
        await self._server.handle(request, reply, self.connection)

    def keeps_alive(self) -> bool:
        return True


def _keys(request: Received) -> tuple[str | None, str]:
    """The key as the API's first version takes it, and as its maker's library now sends it."""
    return request.header("x-api-key"), (request.header("authorization") or "").removeprefix("Bearer ")


def _whole(reply: Reply, status: int, body: Json, headers: dict[str, str] | None = None) -> None:
    fields = {"content-type": "application/json", "request-id": "req_fake"}
    reply.whole(status, msgspec.json.encode(body), fields | (headers or {}))


def _refuse(reply: Reply, connection: Connection, script: AnthropicScript, status: int) -> None:
    headers = {} if script.retry_after is None else {"retry-after": str(script.retry_after)}
    if status != _OVERLOADED:
        _whole(reply, status, error_body(script), headers)
        return
    body = msgspec.json.encode(error_body(script))  # a status without a name: the reply can't write it
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    connection.write(f"HTTP/1.1 {status} Overloaded\r\n{lines}\r\n".encode() + body)
