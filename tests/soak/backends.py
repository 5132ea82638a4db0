"""The backends of the soak: engines that fail in every way that can be scripted, and a peer that speaks odd HTTP or none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import msgspec

from headrace.testing.fake_engine import Cut, ErrorEvent, FakeEngine, Garbage, Hang, Refuse, Script, answers

MODEL = "fake"
LARGE = "large"
"""This model's answers are larger than what sockets hold, and never fail."""
LONELY = "lonely"
"""This model is only on the first engine: what befalls that befalls the model."""
LARGE_TEXT = " ".join(["word-" * 13_000] * 300)
ODD_NAME = "b3"
MOST_TOKENS = 12
SLOTS = 8
HTML = "<html><body><h1>502 Bad Gateway</h1></body></html>"
_HTML_TYPE = {"Content-Type": "text/html"}
FAULTS = [
    Refuse(500),
    Refuse(503),
    Refuse(429),
    Refuse(429, headers={"Retry-After": "1"}),
    Refuse(502, HTML, _HTML_TYPE),
    Refuse(200, HTML, _HTML_TYPE),
    Refuse(200, "", {}),
    Refuse(302, "", {"Location": "http://127.0.0.1:1/"}),
    Refuse(401),
    Cut(-1),
    Cut(2),
    Garbage(0),
    Garbage(2),
    ErrorEvent(0),
    ErrorEvent(1),
    Hang(-1),
    Hang(0),
    Hang(3),
    *[None] * 30,
]
_CALM = Script(tokens=MOST_TOKENS, dimensions=4)
_MODELS = msgspec.json.encode({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


def _response(head: str, body: bytes) -> bytes:
    return head.encode() + b"\r\n\r\n" + body


def _closing(body: bytes, kind: str) -> bytes:
    return _response(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}", body)


def _old(body: bytes, kind: str) -> bytes:
    return _response(f"HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\nServer: old", body)


def _chunked(body: bytes, kind: str) -> bytes:
    pieces = [body[start : start + 37] for start in range(0, len(body), 37)]
    coded = b"".join([b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces])
    fields = f"Content-Type: {kind}\r\nTransfer-Encoding: chunked\r\nSet-Cookie: a=b\r\nConnection: x-hop"
    return _response(f"HTTP/1.1 200 OK\r\n{fields}", coded + b"0\r\nX-Trailer: 1\r\n\r\n")


def _late(body: bytes, kind: str) -> bytes:
    return b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + _measured(
        body, kind
    )


def _measured(body: bytes, kind: str) -> bytes:
    return _response(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}", body)


def _surplus(body: bytes, kind: str) -> bytes:
    return _measured(body, kind) + _measured(b'{"choices":[{"message":{"content":"not yours"}}]}', kind)


RIGHT: list[Callable[[bytes, str], bytes]] = [_closing, _old, _chunked, _late, _measured, _surplus]
WRONG = [
    b"",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"a" * 80_000,
    b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 500 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
    b"HTTP/1.1 999 What\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\ndata: {",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: [1]\n\n",
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"error":"x"}',
    _response("HTTP/1.1 200 OK\r\nContent-Type: text/html", HTML.encode()),
]


class OddPeer:
    """Lists its model, and answers inference requests with what a reader of HTTP has to cope with, or must refuse.

    Half of its answers are right, in an unusual form; each is cut into pieces at random.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._number = 0

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Hang up."""
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(_measured(_MODELS, "application/json"))
            else:
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await self._answer(writer, head.split(b" ")[1].decode(), await reader.readexactly(length))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, writer: asyncio.StreamWriter, path: str, body: bytes) -> None:
        self._number += 1
        answer = self._chance.choice(WRONG)
        if self._chance.random() < 0.7:
            answer = self._chance.choice(RIGHT)(*self._right(path, json.loads(body)))
        while answer and not writer.is_closing():
            cut = self._chance.randint(1, len(answer))
            writer.write(answer[:cut])
            answer = answer[cut:]
            await asyncio.sleep(0)
        if self._chance.random() < 0.2:
            writer.transport.abort()  # what isn't out yet is lost: this may break what was right

    def _right(self, path: str, body: answers.Json) -> tuple[bytes, str]:
        if path.endswith("/embeddings"):
            return msgspec.json.encode(answers.embeddings(body, _CALM)), "application/json"
        ask = answers.read_ask(path, body, _CALM, number=self._number, created=1)
        if not ask.stream:
            return msgspec.json.encode(answers.whole(ask)), "application/json"
        events = b"".join([event.encode() for event in answers.events(ask)])
        return events + answers.DONE, "text/event-stream; charset=utf-8"


class Backends:
    """Three engines and an odd peer. `urls`: where they listen. `faults`: how often each was set. `held`: how
    often an engine was seen to wait for a client that reads slowly."""

    def __init__(self, chance: random.Random) -> None:
        large = Script(text=LARGE_TEXT, models=(LARGE,))
        self.engines = [FakeEngine(_CALM, by_model={LARGE: large}) for _ in range(3)]
        self.engines[0].by_model[LONELY] = _CALM
        self.odd = OddPeer(chance)
        self.faults: Counter[str] = Counter()
        self.held = 0
        self._chance = chance

    @property
    def models(self) -> list[list[str]]:
        """Which models each has."""
        return [[MODEL, *engine.by_model] for engine in self.engines] + [[MODEL]]

    @property
    def urls(self) -> list[str]:
        """In the order of their names b0, b1 …"""
        return [*(engine.url for engine in self.engines), self.odd.url]

    async def disturb(self, deadline: float) -> None:
        """Change what the engines do, several times a second; now and then one dies and comes back."""
        chance = self._chance
        while time.monotonic() < deadline:
            self.held += any(engine.stats.held for engine in self.engines)
            engine = chance.choice(self.engines)
            fault = chance.choice(FAULTS)
            self.faults[type(fault).__name__ if fault else "none"] += 1
            loading, keep_alive = chance.random() < 0.05, chance.random() < 0.8
            interval_s = chance.choice([0, 0.001, 0.01])
            script = Script(
                tokens=MOST_TOKENS,
                dimensions=4,
                interval_s=interval_s,
                fault=fault,
                loading=loading,
                keep_alive=keep_alive,
            )
            self._tell(engine, script)
            if chance.random() < 0.1:
                self.faults["restart"] += 1
                await engine.stop()
                await asyncio.sleep(chance.choice([0.05, 0.5]))
                await engine.start()
            elif chance.random() < 0.2:
                self.faults["dropped connections"] += 1
                engine.drop_connections()
            await asyncio.sleep(0.1)
            if chance.random() < 0.3:
                engine.release()
        self.calm()

    def calm(self) -> None:
        """Nothing goes wrong from now on."""
        for engine in self.engines:
            self._tell(engine, _CALM)
            engine.release()

    def _tell(self, engine: FakeEngine, script: Script) -> None:
        engine.script = script
        if LONELY in engine.by_model:
            engine.by_model[LONELY] = script

    def forget(self) -> None:
        """Drop what is only remembered for tests, so that it doesn't count as memory in use; nothing ran twice."""
        times: Counter[str] = Counter()
        for engine in self.engines:
            times.update(engine.stats.executions)
            engine.stats.executions.clear()
            engine.stats.received.clear()
        assert max(times.values(), default=0) <= 1, "a request that was executed is not executed again"

    def connections(self) -> int:
        """How many stand now."""
        return sum(engine.stats.connected for engine in self.engines)

    @property
    def quiet(self) -> bool:
        """Whether no engine works on anything."""
        return all(engine.stats.active == engine.stats.queued == 0 for engine in self.engines)


@contextlib.asynccontextmanager
async def backends(chance: random.Random) -> AsyncIterator[Backends]:
    """The backends, listening."""
    made = Backends(chance)
    await made.odd.start()
    for engine in made.engines:
        await engine.start()
    try:
        yield made
    finally:
        await made.odd.stop()
        for engine in made.engines:
            await engine.stop()
