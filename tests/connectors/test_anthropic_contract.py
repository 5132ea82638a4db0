"""The Anthropic connector does what every connector must, seen through a lens on either side.

The contract speaks of bytes; this connector of chats. So the lens before it puts the bytes of a request into a prompt, and takes
those of an answer out of the chunks' text; the one behind it does the same with Anthropic's messages and events.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from headrace.connectors.anthropic import KIND
from headrace.kernel.clock import SystemClock
from headrace.ports.backend import BackendSpec
from headrace.ports.connector import Connector, Exchange, Failure, Headers, Sink, UpstreamRequest
from headrace.wire.sse import EventSplitter, data_of, events
from support.connector_contract import PLAIN, REQUEST, ConnectorContract, Stage, altered, begin, round_trip
from support.http_peer import HttpPeer, PeerConnection, PeerRequest
from support.recorder import Recorder

_PIECE_BYTES = 3000
_START: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": {"input_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
]
_END: list[dict[str, Any]] = [
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
]


class Lens(Connector):
    """Bytes before it, chats behind it."""

    def __init__(self, connector: Connector) -> None:
        self.traits = connector.traits
        self._connector = connector

    def start(self, request: UpstreamRequest, sink: Sink) -> Exchange:
        prompt = base64.b64encode(request.body).decode()
        ask = {"model": "m", "stream": True, "messages": [{"role": "user", "content": prompt}]}
        return self._connector.start(altered(request, body=json.dumps(ask).encode()), Reading(sink))

    async def close(self) -> None:
        await self._connector.close()


class Reading(Sink):
    """Takes the bytes out of the chunks."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._splitter = EventSplitter()

    def head(self, status: int, headers: Headers) -> None:
        self._sink.head(status, headers)

    def data(self, chunk: bytes) -> None:
        said = b""
        for event in events(self._splitter.feed(chunk)):
            data = data_of(event)
            if data and data != b"[DONE]":
                [choice] = json.loads(data)["choices"]
                said += base64.b64decode(choice["delta"].get("content", ""))
        if said:
            self._sink.data(said)

    def end(self) -> None:
        self._sink.end()

    def fail(self, failure: Failure) -> None:
        self._sink.fail(failure)


class Answering:
    """A request on one connection, answered in events."""

    def __init__(self, connection: PeerConnection, request: PeerRequest) -> None:
        self.connection = connection
        self.method, self.path, _ = request.line.decode().split(" ")
        self.headers = request.headers
        self.asked: Any = json.loads(request.body)
        self.body = base64.b64decode(self.asked["messages"][0]["content"])

    def head(self, status: int, headers: Headers) -> None:
        kept = [(b"content-type", b"text/event-stream"), *(field for field in headers if field not in PLAIN)]
        lines = b"".join(b"%b: %b\r\n" % field for field in kept)
        self.connection.send(b"HTTP/1.1 %d X\r\ntransfer-encoding: chunked\r\n%b\r\n" % (status, lines))
        self._say(*_START)

    def data(self, chunk: bytes) -> None:
        for at in range(0, len(chunk), _PIECE_BYTES):
            text = base64.b64encode(chunk[at : at + _PIECE_BYTES]).decode()
            delta = {"type": "text_delta", "text": text}
            self._say({"type": "content_block_delta", "index": 0, "delta": delta})

    def end(self) -> None:
        self._say(*_END)
        self.connection.send(b"0\r\n\r\n")

    def cut(self) -> None:
        self.connection.finish()

    async def gone(self) -> None:
        await self.connection.left()

    def _say(self, *told: dict[str, Any]) -> None:
        for event in told:
            data = b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
            self.connection.send(b"%x\r\n%b\r\n" % (len(data), data))


class Backend:
    """Finds the next request on whichever connection it comes."""

    def __init__(self, peer: HttpPeer) -> None:
        self._peer = peer

    async def next(self) -> Answering:
        while True:
            for connection in self._peer.connections:
                if b"\r\n\r\n" in connection.received:
                    return Answering(connection, await connection.request())
            await self._peer.news()


@pytest.mark.req("C25", "C27")
class TestAnthropicConnector(ConnectorContract):
    @pytest.fixture
    async def stage(self) -> AsyncIterator[Stage]:
        with socket.socket() as bound:  # never listens: refuses
            bound.bind(("127.0.0.1", 0))
            nowhere = f"http://127.0.0.1:{bound.getsockname()[1]}"
            async with HttpPeer() as peer:
                opened = [
                    KIND.open(BackendSpec("a", url, api_key="k"), SystemClock())
                    for url in (f"{peer.url}/base/v1", nowhere)
                ]
                connector, unreachable = (Lens(each.connector) for each in opened)
                yield Stage(connector, Backend(peer), unreachable, None, prefix="/base")
                for each in opened:
                    await each.connector.close()

    async def test_the_request_crosses_whole(self, stage: Stage) -> None:
        sink = Recorder()
        request = altered(
            REQUEST, headers=[*REQUEST.headers, (b"x-one", b"1")], body=bytes(range(256)) * 1000
        )
        begin(stage.connector, sink, request)
        seen = await stage.peer.next()
        assert isinstance(seen, Answering)
        assert (seen.method, seen.path) == ("POST", "/base/v1/messages")
        for field in ((b"x-one", b"1"), (b"x-api-key", b"k"), (b"anthropic-version", b"2023-06-01")):
            assert field in seen.headers
        assert (b"content-type", b"application/json") in seen.headers
        assert seen.body == request.body
        assert seen.asked["max_tokens"] == 4096

    async def test_head_then_data_then_one_end(self, stage: Stage) -> None:
        sink = Recorder()
        begin(stage.connector, sink)
        answer = await stage.peer.next()
        answer.head(200, [*PLAIN, (b"X-Two", b"2")])
        await sink.headed()
        for number in range(5):
            answer.data(b"%d;" % number)
            await sink.grown(number)
        answer.end()
        await sink.last()
        assert (sink.status, bytes(sink.body), sink.ended) == (200, b"0;1;2;3;4;", True)
        assert (b"x-two", b"2") in sink.headers
        assert [value for name, value in sink.headers if name == b"content-type"] == [b"text/event-stream"]
        await round_trip(stage)
        assert sink.violations == []
