"""What the direct connector does beyond the contract: kept connections, time, refusals, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import math
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from headrace.connectors.direct import DirectConnector, Limits
from headrace.connectors.endpoint import Endpoint
from headrace.domain.inference import Timeouts
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import ConfigError
from headrace.ports.connector import Busy, Exchange, Headers, Lost, NotSent, UpstreamRequest
from headrace.testing.clock import ManualClock
from support.connector_contract import altered
from support.http_peer import HttpPeer, PeerConnection
from support.recorder import Recorder

GET = UpstreamRequest("GET", "/x")
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
async def peer() -> AsyncIterator[HttpPeer]:
    """A backend that the test plays."""
    async with HttpPeer() as peer:
        yield peer


class Harness:
    """A connector on a clock that the test moves, and its backend."""

    def __init__(self, peer: HttpPeer, limits: Limits | None = None) -> None:
        self.peer = peer
        self.clock = ManualClock()
        endpoint = Endpoint.parse(peer.url)
        self.connector = DirectConnector(endpoint, clock=self.clock, limits=limits or Limits())

    def start(self, request: UpstreamRequest = GET) -> tuple[Recorder, Exchange]:
        """Begin."""
        sink = Recorder()
        with sink.quiet():
            return sink, self.connector.start(request, sink)

    async def begin(self, request: UpstreamRequest = GET) -> tuple[Recorder, PeerConnection]:
        """Begin on a connection that isn't there yet; the request has come."""
        sink, _ = self.start(request)
        connection = await self.peer.connection()
        await connection.request()
        return sink, connection

    async def settled(self, connections: int) -> None:
        """Wait until so many are open."""
        async with asyncio.timeout(20):
            while self.connector.open_connections != connections:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)

    async def again(self, connection: PeerConnection, answer: bytes = EMPTY) -> Recorder:
        """A whole exchange on a connection that stands."""
        sink, _ = self.start()
        await connection.request()
        connection.send(answer)
        return await sink.last()


@pytest.fixture
async def harness(peer: HttpPeer) -> AsyncIterator[Harness]:
    """A connector with the default limits."""
    harness = Harness(peer)
    yield harness
    await harness.connector.close()


# -- kept connections --------------------------------------------------------------------------------------------------


@pytest.mark.req("D24", "D39")
async def test_a_connection_is_used_again_without_a_task(harness: Harness) -> None:
    sink, connection = await harness.begin()
    connection.send(EMPTY)
    await sink.last()
    tasks = asyncio.all_tasks()
    for _ in range(50):
        sink, _ = harness.start()
        assert asyncio.all_tasks() == tasks
        await connection.request()
        connection.send(EMPTY)
        assert (await sink.last()).ended
    assert len(harness.peer.connections) == 1
    assert harness.connector.open_connections == harness.connector.idle_connections == 1
    assert harness.connector.requests_started == 51


@pytest.mark.req("D24", "D39")
async def test_the_one_used_last_is_used_first(harness: Harness) -> None:
    first_sink, first = await harness.begin()
    second_sink, second = await harness.begin()
    for connection, sink in ((second, second_sink), (first, first_sink)):
        connection.send(EMPTY)
        await sink.last()
    await harness.again(first)
    await harness.again(first)
    assert harness.connector.idle_connections == 2


@pytest.mark.req("D24")
async def test_idle_connections_have_a_bound_in_number(peer: HttpPeer) -> None:
    harness = Harness(peer, Limits(idle=2))
    pairs = [await harness.begin() for _ in range(4)]
    for sink, connection in pairs:
        connection.send(EMPTY)
        await sink.last()
    assert harness.connector.idle_connections == harness.connector.open_connections == 2
    for _, connection in pairs[:2]:
        await connection.left()
    await harness.connector.close()


@pytest.mark.req("D24")
async def test_idle_connections_have_a_bound_in_age(peer: HttpPeer) -> None:
    harness = Harness(peer, Limits(keep_alive_s=10))
    sink, connection = await harness.begin()
    connection.send(EMPTY)
    await sink.last()
    harness.clock.advance(9.9)
    await harness.again(connection)
    harness.clock.advance(9.9)
    assert harness.connector.idle_connections == 1
    harness.clock.advance(0.2)
    assert harness.connector.idle_connections == harness.connector.open_connections == 0
    await connection.left()
    await harness.connector.close()


@pytest.mark.req("D39")
async def test_the_peers_keep_alive_time_is_heeded_with_a_margin(harness: Harness) -> None:
    answer = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=100\r\nContent-Length: 0\r\n\r\n"
    sink, connection = await harness.begin()
    connection.send(answer)
    await sink.last()
    harness.clock.advance(3.9)
    await harness.again(connection, answer)
    harness.clock.advance(4.1)
    await connection.left()
    assert harness.connector.idle_connections == 0
    sink, connection = await harness.begin()
    connection.send(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\n")
    await sink.last()
    await connection.left()


@pytest.mark.req("D39")
async def test_the_peers_last_request_on_a_connection_is_not_tried(harness: Harness) -> None:
    answer = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=50, max=4\r\nContent-Length: 0\r\n\r\n"
    sink, connection = await harness.begin()
    connection.send(answer)
    await sink.last()
    await harness.again(connection, answer)
    await harness.again(connection, answer)
    await connection.left()
    assert harness.connector.open_connections == 0


@pytest.mark.parametrize("how", ["finish", "reset", "chatter"])
async def test_an_idle_connection_that_ends_or_talks_is_not_used(harness: Harness, how: str) -> None:
    sink, connection = await harness.begin()
    connection.send(EMPTY)
    await sink.last()
    if how == "finish":
        connection.finish()
    elif how == "reset":
        connection.reset()
    else:
        connection.send(EMPTY)
    await connection.left()
    await harness.settled(0)
    barrier, other = await harness.begin()
    other.send(EMPTY)
    assert (await barrier.last()).ended
    assert len(harness.peer.connections) == 2
    assert harness.connector.open_connections == 1


async def test_a_connection_rests_after_a_streamed_answer_because_some_peers_close_it_right_then(
    harness: Harness,
) -> None:
    streamed = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    sink, first = await harness.begin()
    first.send(streamed)
    await sink.last()
    assert harness.connector.idle_connections == 1
    sink, second = await harness.begin()  # at once: on a connection of its own
    second.send(EMPTY)
    await sink.last()
    await harness.again(second)  # after a plain answer there is no rest
    second.finish()
    await harness.settled(1)
    harness.clock.advance(0.1)
    await harness.again(first)
    assert len(harness.peer.connections) == 2


async def test_connections_that_rest_keep_no_request_out(peer: HttpPeer) -> None:
    streamed = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    harness = Harness(peer, Limits(connections=2))
    for _ in range(2):
        sink, connection = await harness.begin()
        connection.send(streamed)
        await sink.last()
    assert harness.connector.idle_connections == 2
    working = [await harness.begin() for _ in range(2)]
    refused, _ = harness.start()
    assert isinstance((await refused.last()).failure, Busy)
    for sink, connection in working:
        connection.send(EMPTY)
        assert (await sink.last()).ended
    assert harness.connector.open_connections == 2
    await harness.connector.close()


async def test_a_kept_connection_that_ends_without_a_word_is_lost_not_retried(harness: Harness) -> None:
    sink, connection = await harness.begin()
    connection.send(EMPTY)
    await sink.last()
    sink, _ = harness.start()
    await connection.request()
    connection.finish()
    await sink.last()
    assert isinstance(sink.failure, Lost)
    assert len(harness.peer.connections) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", id="close"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", id="http/1.0"),
        pytest.param(EMPTY + EMPTY, id="surplus"),
        pytest.param(EMPTY + b"x", id="surplus byte"),
    ],
)
async def test_an_answer_that_bars_reuse_stands_and_the_connection_closes(
    harness: Harness, answer: bytes
) -> None:
    sink, connection = await harness.begin()
    connection.send(answer)
    assert (await sink.last()).ended
    await connection.left()
    assert harness.connector.open_connections == 0


async def test_beyond_the_limit_it_is_busy(peer: HttpPeer) -> None:
    harness = Harness(peer, Limits(connections=2))
    (first, connection), (second, exchange) = await harness.begin(), harness.start()
    third, _ = harness.start()
    assert isinstance((await third.last()).failure, Busy)
    exchange.cancel()
    await second.last()
    connection.send(EMPTY)
    await first.last()
    await harness.again(connection)
    await harness.connector.close()


# -- answers -----------------------------------------------------------------------------------------------------------


async def test_head_has_no_body(harness: Harness) -> None:
    for _ in range(2):
        sink, _ = harness.start(altered(GET, method="HEAD"))
        connection = (
            harness.peer.connections[0] if harness.peer.connections else await harness.peer.connection()
        )
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
        await sink.last()
        assert (sink.status, sink.chunks, sink.ended) == (200, 0, True)
        assert (b"content-length", b"500") in sink.headers
    assert len(harness.peer.connections) == 1


async def test_a_body_that_ends_with_the_connection(harness: Harness) -> None:
    sink, connection = await harness.begin()
    connection.send(b"HTTP/1.0 200 OK\r\nContent-Type: a/b\r\n\r\nhello")
    connection.finish()
    await sink.last()
    assert (bytes(sink.body), sink.ended) == (b"hello", True)


async def test_a_body_that_a_reset_ends_is_lost(harness: Harness) -> None:
    sink, connection = await harness.begin()
    connection.send(b"HTTP/1.0 200 OK\r\n\r\nhello")
    await sink.grown()
    connection.reset()
    assert isinstance((await sink.last()).failure, Lost)


@pytest.mark.parametrize("size", [65_536, 65_537, 300_000, 20_000_000])
async def test_large_bodies_both_ways(harness: Harness, size: int) -> None:
    body = os.urandom(1024) * (size // 1024) + b"x" * (size % 1024)
    sink, _ = harness.start(UpstreamRequest("POST", "/x", body=body))
    connection = await harness.peer.connection()
    assert (await connection.request()).body == body
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    connection.send(body)
    await sink.last()
    assert (bytes(sink.body), sink.ended) == (body, True)
    await harness.again(connection)


async def test_an_answer_before_the_request_was_sent_whole_stands(harness: Harness) -> None:
    sink, _ = harness.start(UpstreamRequest("POST", "/x", body=bytes(50_000_000)))
    connection = await harness.peer.connection()
    await connection.news()
    connection.transport.pause_reading()
    connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    await sink.last()
    assert (sink.status, bytes(sink.body), sink.ended) == (413, b"no", True)
    assert harness.connector.open_connections == 0


async def test_a_body_that_ends_with_the_connection_while_paused(harness: Harness) -> None:
    sink = Recorder(lambda _: exchange.pause())
    exchange = harness.connector.start(GET, sink)
    connection = await harness.peer.connection()
    await connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    await sink.headed()
    body = bytes(range(256)) * 4000
    connection.send(body)
    connection.finish()
    while len(sink.body) < len(body):
        await sink.grown(sink.chunks - 1)
        seen = sink.chunks
        exchange.resume()
        await sink.grown(seen)
    exchange.resume()
    await sink.last()
    assert (bytes(sink.body), sink.ended) == (body, True)


async def test_an_answer_that_ends_while_paused_leaves_a_connection_that_works(harness: Harness) -> None:
    sink = Recorder(lambda _: exchange.pause())
    exchange = harness.connector.start(GET, sink)
    connection = await harness.peer.connection()
    await connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    await sink.last()
    assert (bytes(sink.body), sink.ended, harness.connector.idle_connections) == (b"hi", True, 1)
    await harness.again(connection)


# -- time --------------------------------------------------------------------------------------------------------------

SLOW = altered(GET, timeouts=Timeouts(connect_s=5, first_byte_s=100, idle_s=10))


async def test_a_head_that_drips_counts_as_no_answer(harness: Harness) -> None:
    sink, connection = await harness.begin(SLOW)
    for byte in b"HTTP/1.1 200":
        connection.send(bytes([byte]))
        await asyncio.sleep(0)
        harness.clock.advance(8)
    assert not sink.over
    harness.clock.advance(5)
    await sink.last()
    assert isinstance(sink.failure, Lost)
    assert sink.failure.timed_out
    await connection.left()


async def test_each_read_starts_the_idle_time_anew(harness: Harness) -> None:
    sink, connection = await harness.begin(SLOW)
    harness.clock.advance(99)
    connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    await sink.headed()
    for number in range(5):
        harness.clock.advance(9.5)
        connection.send(b"x")
        await sink.grown(number)
    assert not sink.over
    harness.clock.advance(9.5)
    assert not sink.over
    harness.clock.advance(1)
    await sink.last()
    assert isinstance(sink.failure, Lost)
    assert sink.failure.timed_out


async def test_the_idle_time_holds_from_the_head_on(harness: Harness) -> None:
    sink, connection = await harness.begin(SLOW)
    harness.clock.advance(11)
    connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    await sink.headed()
    harness.clock.advance(9.5)
    assert not sink.over
    harness.clock.advance(1)
    assert isinstance((await sink.last()).failure, Lost)


async def test_a_pause_stops_the_idle_time(harness: Harness) -> None:
    sink, exchange = harness.start(SLOW)
    connection = await harness.peer.connection()
    await connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    await sink.headed()
    exchange.pause()
    harness.clock.advance(1000)
    assert not sink.over
    exchange.resume()
    harness.clock.advance(9)
    assert not sink.over
    harness.clock.advance(2)
    assert isinstance((await sink.last()).failure, Lost)


async def test_a_peer_that_takes_no_more_of_the_request_is_given_up(harness: Harness) -> None:
    sink, _ = harness.start(altered(SLOW, method="POST", body=bytes(50_000_000)))
    connection = await harness.peer.connection()
    await connection.news()
    connection.transport.pause_reading()
    async with asyncio.timeout(20):
        while not sink.over:  # what the kernels still take counts as progress
            harness.clock.advance(11)
            await asyncio.sleep(0)
    await sink.last()
    assert isinstance(sink.failure, Lost)
    assert sink.failure.timed_out
    assert "10 s" in sink.failure.reason


async def test_a_slow_upload_that_moves_is_not_given_up(harness: Harness) -> None:
    body = bytes(50_000_000)
    request = altered(SLOW, method="POST", body=body, timeouts=Timeouts(first_byte_s=1000, idle_s=10))
    sink, _ = harness.start(request)
    connection = await harness.peer.connection()
    while len(connection.received) < len(body):
        await connection.news()
        harness.clock.advance(0.9)
    assert not sink.over
    await connection.request()
    connection.send(EMPTY)
    assert (await sink.last()).ended


async def test_connecting_takes_only_so_long() -> None:
    clock = ManualClock()

    class Stuck(Endpoint):
        """An address that swallows connection attempts."""

        async def connect(self, protocol: object) -> None:
            await asyncio.Event().wait()

    stuck = Stuck(name="http://stuck", authority="stuck")
    connector = DirectConnector(stuck, clock=clock)
    sink = Recorder()
    connector.start(SLOW, sink)
    await clock.until_pending()
    clock.advance(4.9)
    assert not sink.over
    clock.advance(0.2)
    await sink.last()
    assert isinstance(sink.failure, NotSent)
    assert "within 5 s" in sink.failure.reason
    await connector.close()


async def test_a_cancel_that_crosses_the_new_connection_sends_nothing(peer: HttpPeer) -> None:
    class Crossing(Endpoint):
        """Has the exchange cancelled just when the connection stands."""

        async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> None:
            await Endpoint.connect(self, protocol)
            asyncio.get_running_loop().call_soon(exchange.cancel)

    endpoint = Crossing(name="http://x", authority="x", host="127.0.0.1", port=peer.port)
    connector = DirectConnector(endpoint, clock=SystemClock())
    sink = Recorder()
    exchange = connector.start(GET, sink)
    connection = await peer.connection()
    assert isinstance((await sink.last()).failure, NotSent)
    await connection.left()
    assert not connection.received
    assert connector.open_connections == 0
    await connector.close()


async def test_requests_without_time_outs_have_the_connectors(peer: HttpPeer) -> None:
    clock = ManualClock()
    connector = DirectConnector(Endpoint.parse(peer.url), clock=clock, timeouts=Timeouts(first_byte_s=3))
    sink = Recorder()
    connector.start(GET, sink)
    await (await peer.connection()).request()
    clock.advance(2.9)
    assert not sink.over
    clock.advance(0.2)
    assert isinstance((await sink.last()).failure, Lost)
    await connector.close()


async def test_one_timer_serves_all(harness: Harness) -> None:
    sink, connection = await harness.begin(SLOW)
    connection.send(EMPTY)
    await sink.last()
    before = harness.clock.pending
    for _ in range(20):
        sink, _ = harness.start(SLOW)
        await connection.request()
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await sink.grown()
        connection.send(b"1\r\nx\r\n0\r\n\r\n")
        await sink.last()
        harness.clock.advance(0.1)  # the connection rests after a streamed answer
    assert harness.clock.pending == before == 1


# -- our own faults ----------------------------------------------------------------------------------------------------


async def test_a_request_that_cannot_be_written_is_refused_at_once(harness: Harness) -> None:
    headers: Headers = [(b"x", b"1\r\ny: 2")]
    for request in (altered(GET, path="/a\r\nb"), altered(GET, headers=headers), altered(GET, method="G T")):
        with pytest.raises(ValueError, match=r"must|method|path"):
            harness.connector.start(request, Recorder())
    assert (harness.connector.requests_started, harness.connector.open_connections) == (0, 0)


class Faulty(Recorder):
    """Raises in one of its calls."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def head(self, status: int, headers: Headers) -> None:
        super().head(status, headers)
        self._maybe("head")

    def data(self, chunk: bytes) -> None:
        super().data(chunk)
        self._maybe("data")

    def end(self) -> None:
        super().end()
        self._maybe("end")

    def _maybe(self, where: str) -> None:
        if where == self._where:
            raise RuntimeError("a bug in a sink")


@pytest.mark.parametrize("where", ["head", "data", "end"])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_sink_that_raises_harms_only_itself(harness: Harness, where: str, chunked: bool) -> None:
    sibling, other = await harness.begin()
    sink = Faulty(where)
    harness.connector.start(GET, sink)
    connection = await harness.peer.connection()
    await connection.request()
    framing = (
        (b"Transfer-Encoding: chunked", b"2\r\nhi\r\n0\r\n\r\n") if chunked else (b"Content-Length: 2", b"hi")
    )
    connection.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % framing)
    await sink.last()
    if where != "end":
        assert isinstance(sink.failure, Lost)
        await connection.left()
    other.send(EMPTY)
    assert (await sibling.last()).ended


async def test_a_sink_may_cancel_or_start_another_in_any_call(harness: Harness) -> None:
    sink = Recorder(lambda _: exchange.cancel())
    exchange = harness.connector.start(GET, sink)
    connection = await harness.peer.connection()
    await connection.request()
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
    await sink.last()
    assert (bytes(sink.body), type(sink.failure)) == (b"a", Lost)

    following = Recorder()

    class Chain(Recorder):
        def end(self) -> None:
            super().end()
            with following.quiet():
                harness.connector.start(GET, following)

    chain = Chain()
    harness.connector.start(GET, chain)
    connection = await harness.peer.connection()
    for _ in range(2):
        await connection.request()
        connection.send(EMPTY)
    await following.last()
    assert chain.ended
    assert len(harness.peer.connections) == 2


# -- nothing left behind -----------------------------------------------------------------------------------------------


def sockets() -> int:
    """How many this process has open."""
    targets = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            targets.append(str(entry.readlink()))
        except OSError:  # the folder's own handle
            continue
    return sum(target.startswith("socket:") for target in targets)


async def test_close_leaves_no_task_no_socket_no_timer() -> None:
    tasks, open_before = asyncio.all_tasks(), sockets()
    async with HttpPeer() as peer:
        harness = Harness(peer)
        open_before_start = sockets()
        idle, idle_connection = await harness.begin()
        streaming = [await harness.begin() for _ in range(3)]
        paused, exchange = harness.start()
        exchange.pause()
        connecting = [harness.start()[0] for _ in range(3)]
        idle_connection.send(EMPTY)
        await idle.last()
        await asyncio.gather(harness.connector.close(), harness.connector.close())
        assert all(sink.over for sink in (idle, paused, *connecting, *(sink for sink, _ in streaming)))
        assert asyncio.all_tasks() == tasks
        assert harness.clock.pending == 0
        assert (harness.connector.open_connections, harness.connector.idle_connections) == (0, 0)
        for connection in harness.peer.connections:
            await connection.left()
        await asyncio.sleep(0)
        assert sockets() <= open_before_start
    await asyncio.sleep(0)
    gc.collect()
    assert sockets() <= open_before


async def test_finished_exchanges_leave_no_garbage(harness: Harness) -> None:
    sink, connection = await harness.begin()
    connection.send(EMPTY)
    await sink.last()
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    await harness.again(connection, answer)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            harness.clock.advance(0.1)  # the connection rests after a streamed answer
            await harness.again(connection, answer)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = {type(thing).__name__ for thing in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kinds & {"ResponseReader", "HttpResponseParser", "DirectExchange", "Connection"}


async def test_needs_no_loop_to_be_made(peer: HttpPeer) -> None:
    connector = await asyncio.to_thread(DirectConnector, Endpoint.parse(peer.url), clock=SystemClock())
    assert connector.open_connections == 0
    await connector.close()


def test_credentials_that_cannot_be_sent_are_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="CR, LF") as caught:
        DirectConnector(
            Endpoint.parse("http://h"), clock=SystemClock(), headers=[(b"authorization", b"sec\nret")]
        )
    assert "sec" not in caught.value.message


@pytest.mark.req("C25")
async def test_golden_bytes_on_the_wire(peer: HttpPeer) -> None:
    endpoint = Endpoint.parse(f"{peer.url}/api/")
    connector = DirectConnector(endpoint, clock=SystemClock(), headers=[(b"Authorization", b"Bearer k")])
    sink = Recorder()
    connector.start(UpstreamRequest("POST", "/v1/chat", [(b"content-type", b"a/b")], b"{}"), sink)
    connection = await peer.connection()
    request = await connection.request()
    assert request.raw_head == (
        b"POST /api/v1/chat HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer k\r\n"
        b"Accept-Encoding: identity\r\ncontent-length: 2\r\ncontent-type: a/b\r\n\r\n" % peer.port
    )
    assert request.body == b"{}"
    await connector.close()
    assert math.isinf(connector._watch_at)
