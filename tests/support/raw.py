"""HTTP by hand: a socket, bytes out, bytes in. For what a well-behaved client library would never send."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

PATIENCE_S = 60.0


@dataclass(frozen=True)
class RawResponse:
    """One response; `headers` with lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's envelope, checked for its shape."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert "Traceback" not in self.body.decode()
        assert self.headers["x-request-id"].startswith("req_")
        assert self.headers["content-type"] == "application/json"
        return dict(error)


class RawClient:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> RawClient:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**26)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    def send(self, data: bytes) -> None:
        """Put *data* on its way."""
        self.writer.write(data)

    def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> None:
        """Send a whole request."""
        fields = {"host": "x", **(headers or {})}
        if body is not None:
            fields = {"content-type": "application/json", "content-length": str(len(body)), **fields}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
        self.send(head.encode("latin-1") + b"\r\n" + (body or b""))

    async def head(self) -> tuple[int, dict[str, str]]:
        """The status and headers of the next response."""
        async with asyncio.timeout(PATIENCE_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        pairs = [line.split(": ", 1) for line in lines]
        return int(first.split(" ")[1]), {name.lower(): value for name, value in pairs}

    async def response(self) -> RawResponse:
        """The next response, whole."""
        status, headers = await self.head()
        async with asyncio.timeout(PATIENCE_S):
            if headers.get("transfer-encoding") == "chunked":
                body = b"".join([part async for part in self._chunks()])
            else:
                body = await self.reader.readexactly(int(headers["content-length"]))
        return RawResponse(status, headers, body)

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(PATIENCE_S):
            size = int(await self.reader.readline(), 16)
            data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def closed(self) -> bytes:
        """What still comes until the server closes."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def _chunks(self) -> Any:
        while data := await self.chunk():
            yield data


async def call(
    port: int, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> RawResponse:
    """One request on a connection of its own."""
    async with RawClient(port) as client:
        client.request(method, path, headers, body)
        return await client.response()
