"""A backend that answers with the very bytes that a test gives it, cut where the test says, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

Json = dict[str, Any]

BASE: Json = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "canned"}
DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Reply:
    """One answer. `pieces`: of its body, each sent on its own."""

    pieces: Sequence[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def stream(*events: str | Json, cut: int = 0, done: bool = True) -> Reply:
    """A stream of these events: a text goes out as it is, an object as the JSON of a data event."""
    texts = [event if isinstance(event, str) else f"data: {dumps(event)}\n\n" for event in events]
    raw = ("".join(texts) + (DONE if done else "")).encode()
    pieces = [raw[i : i + cut] for i in range(0, len(raw), cut)] if cut else [raw]
    return Reply(pieces, headers={"content-type": "text/event-stream"})


def whole(answer: object, status: int = 200, **headers: str) -> Reply:
    """A whole answer in JSON."""
    return Reply([dumps(answer).encode()], status, {"content-type": "application/json", **headers})


def chunk(delta: Json | None = None, finish: str | None = None, index: int = 0, **members: Any) -> Json:
    """One chat chunk; *members* go into its choice."""
    return {
        **BASE,
        "choices": [{"index": index, "delta": delta or {}, "finish_reason": finish, **members}],
    }


def dumps(value: object) -> str:
    """JSON with its text as it is, not escaped."""
    return json.dumps(value, ensure_ascii=False)


class Canned:
    """The backend; `async with` it. It has one model, "canned"; `bodies` and `heads` are what inference requests brought."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.bodies: list[Json] = []
        self.heads: list[dict[str, str]] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            head = {name.lower(): value for name, _, value in (field.partition(": ") for field in lines)}
            body = await reader.readexactly(int(head.get("content-length", "0")))
            if line.startswith("GET"):
                reply = whole({"object": "list", "data": [{"id": "canned", "object": "model", "created": 7}]})
            else:
                self.bodies.append(json.loads(body))
                self.heads.append(head)
                reply = self.reply
            await self._send(writer, reply)
        writer.close()

    async def _send(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        fields = {**reply.headers, "connection": "close"}
        head = f"HTTP/1.1 {reply.status} Canned\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
        writer.write(head.encode() + b"\r\n")
        for piece in reply.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(
                0
            )  # the other side, in the same loop, reads this piece before the next is there
        writer.write_eof()
