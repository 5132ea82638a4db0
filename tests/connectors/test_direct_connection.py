"""One connection, fed by hand: what depends on how much a transport reads at once, and on what it tells when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from headrace.connectors.connection import Connection, Owner
from headrace.connectors.exchange import DirectExchange
from headrace.domain.inference import Timeouts
from headrace.kernel.outbox import Outbox
from headrace.ports.connector import MAX_AFTER_PAUSE, Lost, UpstreamRequest
from support.recorder import Recorder

OK = b"HTTP/1.1 200 OK\r\n"


class HandTransport(asyncio.Transport):
    """Remembers; never calls back."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert low == 0


class Told(Owner):
    """Remembers what its connection tells."""

    def __init__(self) -> None:
        self.now = 100.0
        self.monotonic: Callable[[], float] = lambda: self.now
        self.heard: list[str] = []
        self.outbox = Outbox()

    def watch(self, at: float) -> None:
        assert at > self.now

    def released(self, connection: Connection, keep_alive: bytes, *, streamed: bool) -> None:
        self.heard.append("released")

    def retired(self, connection: Connection) -> None:
        self.heard.append("retired")

    def gone(self, connection: Connection) -> None:
        self.heard.append("gone")


class Bench:
    """A connection with a request under way; `hold` pauses the exchange at its first data."""

    def __init__(self, *, hold: bool = False) -> None:
        self.owner = Told()
        self.transport = HandTransport()
        self.connection = Connection(self.owner)
        self.connection.connection_made(self.transport)
        self.sink = Recorder(lambda _: self.exchange.pause() if hold else None)
        self.exchange = DirectExchange(UpstreamRequest("GET", "/x"), self.sink, Timeouts())
        self.connection.begin(self.exchange, b"GET /x HTTP/1.1\r\n\r\n")


def chunks(count: int) -> bytes:
    """So many chunks of 4 KiB."""
    return (b"1000\r\n" + b"x" * 4096 + b"\r\n") * count


async def test_of_a_large_read_only_so_much_passes_a_pause() -> None:
    bench = Bench(hold=True)
    bench.connection.data_received(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(64))
    assert 0 < len(bench.sink.body) <= MAX_AFTER_PAUSE
    assert not bench.transport.is_reading()
    while (before := len(bench.sink.body)) < 64 * 4096:
        with bench.sink.quiet():
            bench.exchange.resume()
        assert bench.transport.is_reading()
        await bench.sink.grown(bench.sink.chunks)
        assert 0 < len(bench.sink.body) - before <= MAX_AFTER_PAUSE
    bench.connection.data_received(b"0\r\n\r\n")
    await bench.sink.last()
    assert bench.owner.heard == ["released"]
    assert bench.transport.is_reading()


@pytest.mark.parametrize("surplus", [b"x", b"y" * 100_000])
async def test_surplus_behind_a_large_read_bars_reuse(surplus: bytes) -> None:
    bench = Bench()
    head = OK + b"Content-Length: %d\r\n\r\n"
    body = b"x" * (MAX_AFTER_PAUSE - len(head % 10_000))
    bench.connection.data_received(head % len(body) + body + surplus)
    await bench.sink.last()
    assert bytes(bench.sink.body) == body
    assert bench.sink.ended
    assert bench.owner.heard == ["retired"]


@pytest.mark.parametrize("orderly", [True, False])
async def test_the_end_waits_for_what_is_held(orderly: bool) -> None:
    bench = Bench(hold=True)
    body = b"x" * 250_000
    bench.connection.data_received(OK + b"\r\n" + body)
    if orderly:
        bench.connection.eof_received()
    bench.connection.connection_lost(None)
    assert not bench.sink.over
    while len(bench.sink.body) < len(body):
        seen = bench.sink.chunks
        bench.exchange.resume()
        await bench.sink.grown(seen)
    bench.exchange.resume()
    await bench.sink.last()
    assert bytes(bench.sink.body) == body
    assert bench.sink.ended == orderly
    assert isinstance(bench.sink.failure, Lost) != orderly
    assert bench.owner.heard == ["retired", "gone"]


async def test_a_cancel_forgets_what_is_held() -> None:
    bench = Bench(hold=True)
    bench.connection.data_received(OK + b"\r\n" + b"x" * 250_000)
    bench.connection.connection_lost(None)
    with bench.sink.quiet():
        bench.exchange.cancel()
    assert bench.owner.heard == ["retired", "gone"]
    passed = bench.sink.chunks
    assert isinstance((await bench.sink.last()).failure, Lost)
    assert bench.sink.chunks == passed


async def test_a_connection_is_fresh_while_young_and_open() -> None:
    bench = Bench()
    bench.connection.idle_until = 110.0
    assert bench.connection.fresh(109.9)
    assert not bench.connection.fresh(110.0)
    bench.transport.closing = True
    assert not bench.connection.fresh(109.9)


@pytest.mark.req("B16")
async def test_what_is_read_is_told_in_the_same_turn() -> None:
    bench = Bench()
    bench.connection.data_received(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    assert bench.sink.status == 200
    for number in range(5):
        bench.connection.data_received(b"1\r\n%d\r\n" % number)
        assert bench.sink.body.endswith(b"%d" % number)


async def test_a_pause_before_the_connection_stood_counts() -> None:
    owner, transport = Told(), HandTransport()
    connection = Connection(owner)
    connection.connection_made(transport)
    exchange = DirectExchange(UpstreamRequest("GET", "/x"), Recorder(), Timeouts())
    exchange.pause()
    connection.begin(exchange, b"GET /x HTTP/1.1\r\n\r\n")
    assert not transport.is_reading()
    exchange.resume()
    assert transport.is_reading()
