"""The direct connector does what every connector must, and so does one that reads refusals."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest

from headrace.connectors.direct import DirectConnector, Limits
from headrace.connectors.endpoint import Endpoint
from headrace.connectors.refusals import Judging, KnownRefusals
from headrace.kernel.clock import SystemClock
from headrace.ports.connector import Connector, Headers
from support.connector_contract import ConnectorContract, Stage
from support.http_peer import HttpPeer, PeerConnection, PeerRequest


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
    def staged(self, connector: Connector, peer: Backend, unreachable: Connector, full: Connector) -> Stage:
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
    def staged(self, connector: Connector, peer: Backend, unreachable: Connector, full: Connector) -> Stage:
        connector, unreachable, full = (
            Judging(each, KnownRefusals()) for each in (connector, unreachable, full)
        )
        return super().staged(connector, peer, unreachable, full)
