"""A backend over real sockets that does as the test says, byte by byte. It has no tasks of its own."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import cast

PATIENCE_S = 20.0


@dataclass(frozen=True)
class PeerRequest:
    """One request as it arrived: names of headers in lower case."""

    line: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    raw_head: bytes

    def header(self, name: bytes) -> bytes | None:
        """The value of the only header of that name."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2
        return values[0] if values else None


class PeerConnection(asyncio.Protocol):
    """One accepted connection. `gone` is set when the other side has left, or the socket is closed."""

    def __init__(self, accepted: asyncio.Queue[PeerConnection], any_news: asyncio.Event) -> None:
        self._accepted = accepted
        self._any_news = any_news
        self._news = asyncio.Event()
        self.received = bytearray()
        self.gone = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._accepted.put_nowait(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._news.set()
        self._any_news.set()

    def eof_received(self) -> None:
        self.gone.set()
        self._news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()
        self._news.set()

    async def news(self) -> None:
        """Wait until more was received, or the other side left."""
        async with asyncio.timeout(PATIENCE_S):
            await self._news.wait()
        self._news.clear()

    async def request(self) -> PeerRequest:
        """The next whole request; fails when the other side leaves first."""
        while (request := self._take()) is None:
            assert not self.gone.is_set(), "the client left before a whole request had come"
            await self.news()
        return request

    async def left(self) -> None:
        """Wait until the other side has left."""
        async with asyncio.timeout(PATIENCE_S):
            await self.gone.wait()

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.transport.write(data)

    def finish(self) -> None:
        """Send what is left, then close in order."""
        self.transport.close()

    def reset(self) -> None:
        """Close with a TCP reset."""
        raw = self.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _take(self) -> PeerRequest | None:
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        lines = bytes(self.received[:end]).split(b"\r\n")
        headers = [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines[1:])]
        length = int(dict(headers).get(b"content-length", b"0"))
        whole = end + 4 + length
        if len(self.received) < whole:
            return None
        raw_head, body = bytes(self.received[: end + 4]), bytes(self.received[end + 4 : whole])
        del self.received[:whole]
        return PeerRequest(lines[0], headers, body, raw_head)


class HttpPeer:
    """A listening backend; `async with` it. `url` is where it listens."""

    def __init__(self, *, unix_path: Path | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._unix_path = unix_path
        self._tls = tls
        self.accepted: asyncio.Queue[PeerConnection] = asyncio.Queue()
        self._any_news = asyncio.Event()
        self.connections: list[PeerConnection] = []
        self.url = ""
        self.port = 0

    async def __aenter__(self) -> HttpPeer:
        loop = asyncio.get_running_loop()
        if self._unix_path is not None:
            self._server = await loop.create_unix_server(
                self._connection, str(self._unix_path), ssl=self._tls
            )
            self.url = f"unix://{self._unix_path}"
        else:
            self._server = await loop.create_server(self._connection, "127.0.0.1", 0, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]
            self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        for connection in self.connections:
            if hasattr(connection, "transport"):
                connection.transport.abort()
                await connection.left()

    async def stop(self) -> None:
        """Accept no more; connections that stand go on."""
        self._server.close()

    async def news(self) -> None:
        """Wait until something was received on any connection."""
        async with asyncio.timeout(PATIENCE_S):
            await self._any_news.wait()
        self._any_news.clear()

    async def connection(self) -> PeerConnection:
        """The next accepted connection."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.accepted.get()

    def _connection(self) -> PeerConnection:
        self.connections.append(PeerConnection(self.accepted, self._any_news))
        return self.connections[-1]
