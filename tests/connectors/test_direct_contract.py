"""The direct connector does what every connector must, and so does one that reads refusals."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest

from headrace.connectors.direct import DirectConnector, Limits
from headrace.connectors.endpoint import Endpoint
from headrace.connectors.exchange import DirectExchange
from headrace.connectors.refusals import Judging, KnownRefusals
from headrace.kernel.clock import SystemClock
from headrace.ports.connector import Exchange, Headers, UpstreamRequest
from support.connector_contract import ConnectorContract, Stage
from support.http_peer import HttpPeer, PeerConnection, PeerRequest
from support.recorder import Recorder


class Answering:
    """A request on one connection, answered in chunks."""

    def __init__(self, connection: PeerConnection, request: PeerRequest) -> None:
        self.connection = connection
        self.method, self.path, _ = request.line.decode().split(" ")
        self.headers = request.headers
        self.body = request.body

    def head(self, status: int, headers: Headers) -> None:
        lines = b"".join(b"%b: %b\r\n" % field for field in headers)
        self.connection.send(b"HTTP/1.1 %d X\r\ntransfer-encoding: chunked\r\n%b\r\n" % (status, lines))

    def data(self, chunk: bytes) -> None:
        self.connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    def end(self) -> None:
        self.connection.send(b"0\r\n\r\n")

    def cut(self) -> None:
        self.connection.finish()

    async def gone(self) -> None:
        await self.connection.left()


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


@pytest.mark.req("C25")
class TestDirectConnector(ConnectorContract):
    def staged(
        self, connector: DirectConnector, peer: Backend, unreachable: DirectConnector, full: DirectConnector
    ) -> Stage:
        return Stage(connector, peer, unreachable, full, prefix="/base")

    @pytest.fixture
    async def stage(self) -> AsyncIterator[Stage]:
        clock = SystemClock()
        with socket.socket() as bound:  # never listens: refuses
            bound.bind(("127.0.0.1", 0))
            nowhere = Endpoint.parse(f"http://127.0.0.1:{bound.getsockname()[1]}")
            async with HttpPeer() as peer:
                endpoint = Endpoint.parse(f"{peer.url}/base/")
                connector = DirectConnector(endpoint, clock=clock)
                unreachable = DirectConnector(nowhere, clock=clock)
                full = DirectConnector(endpoint, clock=clock, limits=Limits(connections=1))
                yield self.staged(connector, Backend(peer), unreachable, full)
                for each in (connector, unreachable, full):
                    await each.close()


class TestJudging(TestDirectConnector):
    def staged(
        self, connector: DirectConnector, peer: Backend, unreachable: DirectConnector, full: DirectConnector
    ) -> Stage:
        judging = [Judging(each, KnownRefusals()) for each in (connector, unreachable, full)]
        return Stage(judging[0], peer, judging[1], judging[2], prefix="/base")

    async def test_whoever_leaves_at_the_head_of_a_long_error_hears_no_more_of_it(self, stage: Stage) -> None:
        sink = Leaving()
        sink.exchange = stage.connector.start(UpstreamRequest("GET", "/"), sink)
        answer = await stage.peer.next()
        answer.head(503, [(b"content-type", b"text/plain")])
        answer.data(b"x" * 100_000)
        await sink.last()
        assert (sink.status, sink.chunks) == (503, 0)
        assert sink.failure is not None
        await answer.gone()

    @pytest.mark.parametrize("status", [200, 500])
    async def test_nothing_stands_between_the_backend_and_the_sink_once_it_answers(
        self, stage: Stage, status: int
    ) -> None:
        sink = Recorder()
        exchange = stage.connector.start(UpstreamRequest("GET", "/"), sink)
        assert isinstance(exchange, DirectExchange)
        answer = await stage.peer.next()
        answer.head(status, [])
        answer.data(b"x" * 100_000)
        await sink.headed()
        assert exchange.sink is sink
        answer.end()
        assert (await sink.last()).ended
        assert len(sink.body) == 100_000


class Leaving(Recorder):
    """Cancels with the head."""

    exchange: Exchange

    def head(self, status: int, headers: Headers) -> None:
        super().head(status, headers)
        self.exchange.cancel()
