"""Peers that cheat, over real sockets: the exchange is lost, the connection closed, and its siblings never notice."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint
from headrace.kernel.clock import SystemClock
from headrace.ports.connector import Lost, NotSent, UpstreamRequest
from support.http_peer import HttpPeer
from support.recorder import Recorder

GET = UpstreamRequest("GET", "/x")
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def peer() -> AsyncIterator[HttpPeer]:
    """A backend that the test plays."""
    async with HttpPeer() as peer:
        yield peer


@pytest.fixture
async def connector(peer: HttpPeer) -> AsyncIterator[DirectConnector]:
    """A connector to it."""
    connector = DirectConnector(Endpoint.parse(peer.url), clock=SystemClock())
    yield connector
    await connector.close()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"Content-Length: 2\r\nContent-Length: 30\r\n\r\nhi", id="two lengths"),
        pytest.param(
            OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="length and chunked"
        ),
        pytest.param(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="gzip"),
        pytest.param(OK + b"X: " + b"a" * 70_000 + b"\r\n\r\n", id="huge header"),
        pytest.param(OK + b"X: a\r\n" * 200 + b"\r\n", id="many headers"),
        pytest.param(b"HTTP/1.1 100 C\r\n\r\n" * 40, id="only interim"),
        pytest.param(b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="upgrade"),
        pytest.param(b"\x16\x03\x01\x00\xff" * 50, id="tls"),
        pytest.param(b"hello, I am not a web server\r\n", id="banner"),
        pytest.param(CHUNKED + b"fffffffffffffffff\r\n", id="chunk size overflow"),
        pytest.param(CHUNKED + b"2\r\nhi" + b"x" * 50, id="chunk overrun"),
        pytest.param(CHUNKED + b"0\r\nX: " + b"a" * 300_000, id="endless trailer"),
    ],
)
async def test_a_cheat_is_lost_and_cut_off(peer: HttpPeer, connector: DirectConnector, answer: bytes) -> None:
    sibling, sink = Recorder(), Recorder()
    connector.start(GET, sibling)
    honest = await peer.connection()
    await honest.request()
    connector.start(GET, sink)
    connection = await peer.connection()
    await connection.request()
    connection.send(answer)
    await sink.last()
    assert isinstance(sink.failure, Lost)
    assert not sink.failure.timed_out
    assert "hello" not in sink.failure.reason
    await connection.left()
    honest.send(OK + b"Content-Length: 2\r\n\r\nhi")
    await sibling.last()
    assert (bytes(sibling.body), connector.open_connections) == (b"hi", 1)


ANSWER = OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"


@pytest.mark.parametrize("how", ["finish", "reset"])
async def test_an_early_close_anywhere_is_lost(peer: HttpPeer, connector: DirectConnector, how: str) -> None:
    for length in range(len(ANSWER)):
        sink = Recorder()
        connector.start(GET, sink)
        connection = await peer.connection()
        await connection.request()
        connection.send(ANSWER[:length])
        getattr(connection, how)()
        await sink.last()
        assert isinstance(sink.failure, Lost)
    assert connector.open_connections == 0


async def test_a_peer_that_speaks_first_gets_no_request(peer: HttpPeer, connector: DirectConnector) -> None:
    """Whether its words are seen before or after our request has gone, they never pass for a good connection."""
    sink = Recorder()
    connector.start(GET, sink)
    connection = await peer.connection()
    connection.send(b"220 mail.example ESMTP\r\n")
    await sink.last()
    assert isinstance(sink.failure, NotSent | Lost)
    await connection.left()
    assert connector.open_connections == 0


@given(
    answer=st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda at, piece: ANSWER[: at % len(ANSWER)] + piece + ANSWER[at % len(ANSWER) :],
            st.integers(0, 200),
            st.binary(min_size=1, max_size=5),
        ),
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_garbage_comes_to_exactly_one_end(
    peer: HttpPeer, connector: DirectConnector, answer: bytes
) -> None:
    sink = Recorder()
    connector.start(GET, sink)
    connection = await peer.connection()
    await connection.request()
    connection.send(answer)
    connection.finish()
    await sink.last()
    assert sink.ended or isinstance(sink.failure, Lost)
    assert len(sink.body) <= len(answer)
