"""What every `Connector` must do: each sentence of the port's docstrings, as a test.

A subclass gives the fixture `stage`. What a connector can't be made to show is declared there (`Stage`), not skipped over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from headrace.domain.inference import Timeouts
from headrace.ports.connector import (
    MAX_AFTER_PAUSE,
    Busy,
    Connector,
    Exchange,
    Headers,
    Lost,
    NotSent,
    Traits,
    UpstreamRequest,
)
from support.recorder import Recorder


class PeerExchange(Protocol):
    """One request as the backend sees it, and the backend's answer, step by step."""

    @property
    def method(self) -> str:
        """Of the request."""

    @property
    def path(self) -> str:
        """The whole path that the backend sees."""

    @property
    def headers(self) -> Headers:
        """Of the request, names in lower case."""

    @property
    def body(self) -> bytes:
        """Of the request."""

    def head(self, status: int, headers: Headers) -> None:
        """Answer with a status and these headers, the body to follow."""

    def data(self, chunk: bytes) -> None:
        """Send some of the body."""

    def end(self) -> None:
        """End the answer in order."""

    def cut(self) -> None:
        """Break off."""

    async def gone(self) -> None:
        """Wait until the backend sees that nobody listens any more."""


class Peer(Protocol):
    """The backend."""

    async def next(self) -> PeerExchange:
        """The next request that reaches it."""


@dataclass(frozen=True)
class Stage:
    """A connector and the backend behind it.

    unreachable: a connector of the same kind whose backend isn't there. full: one that has no room for a second exchange,
    and whose first reaches `peer`; None where the kind can't refuse. prefix: what the backend's path has in front.
    """

    connector: Connector
    peer: Peer
    unreachable: Connector
    full: Connector | None
    prefix: str = ""


REQUEST = UpstreamRequest(
    "POST", "/v1/chat/completions", [(b"content-type", b"application/json")], b'{"a":1}'
)
PLAIN: Headers = [(b"content-type", b"text/plain")]


def altered(request: UpstreamRequest, **changes: Any) -> UpstreamRequest:
    """The same request but for these fields."""
    names = ("method", "path", "headers", "body", "timeouts", "stoppable")
    return UpstreamRequest(**{name: getattr(request, name) for name in names} | changes)


def begin(connector: Connector, sink: Recorder, request: UpstreamRequest = REQUEST) -> Exchange:
    """Start, and hold the connector to its silence meanwhile."""
    with sink.quiet():
        return connector.start(request, sink)


async def round_trip(stage: Stage) -> None:
    """A whole exchange: whatever was on its way to us before has come when this is over."""
    sink = Recorder()
    begin(stage.connector, sink)
    answer = await stage.peer.next()
    answer.head(200, PLAIN)
    answer.end()
    assert (await sink.last()).ended


class ConnectorContract:
    """Subclass it, name it `Test…`, and give the fixture."""

    @pytest.fixture
    def stage(self) -> Stage | AsyncIterator[Stage]:
        """A fresh connector and backend."""
        raise NotImplementedError

    def test_declares_its_traits(self, stage: Stage) -> None:
        assert isinstance(stage.connector.traits, Traits)

    async def test_the_request_crosses_whole(self, stage: Stage) -> None:
        sink = Recorder()
        request = altered(
            REQUEST, headers=[*REQUEST.headers, (b"x-one", b"1")], body=bytes(range(256)) * 1000
        )
        begin(stage.connector, sink, request)
        seen = await stage.peer.next()
        assert (seen.method, seen.path) == ("POST", stage.prefix + REQUEST.path)
        assert (b"x-one", b"1") in seen.headers
        assert (b"content-type", b"application/json") in seen.headers
        assert seen.body == request.body

    async def test_head_then_data_then_one_end(self, stage: Stage) -> None:
        sink = Recorder()
        begin(stage.connector, sink)
        answer = await stage.peer.next()
        answer.head(201, [*PLAIN, (b"X-Two", b"2")])
        await sink.headed()
        for number in range(5):
            answer.data(b"%d;" % number)
            await sink.grown(number)
        answer.end()
        await sink.last()
        assert (sink.status, bytes(sink.body), sink.ended) == (201, b"0;1;2;3;4;", True)
        assert (b"x-two", b"2") in sink.headers
        await round_trip(stage)
        assert sink.violations == []

    async def test_an_empty_body_has_no_data(self, stage: Stage) -> None:
        sink = Recorder()
        begin(stage.connector, sink)
        answer = await stage.peer.next()
        answer.head(200, PLAIN)
        answer.end()
        await sink.last()
        assert (sink.status, sink.chunks, sink.ended) == (200, 0, True)

    async def test_hop_by_hop_headers_stay_behind(self, stage: Stage) -> None:
        sink = Recorder()
        begin(stage.connector, sink)
        answer = await stage.peer.next()
        answer.head(200, [*PLAIN, (b"Keep-Alive", b"timeout=5"), (b"Connection", b"x-hop"), (b"X-Hop", b"1")])
        answer.end()
        await sink.last()
        names = {name for name, _ in sink.headers}
        assert b"content-type" in names
        assert not names & {b"keep-alive", b"connection", b"x-hop", b"transfer-encoding"}

    async def test_a_backend_that_breaks_off_is_lost_not_ended(self, stage: Stage) -> None:
        for told in range(3):
            sink = Recorder()
            begin(stage.connector, sink)
            answer = await stage.peer.next()
            if told > 0:
                answer.head(200, PLAIN)
                await sink.headed()
            if told > 1:
                answer.data(b"half")
                await sink.grown()
            answer.cut()
            await sink.last()
            assert isinstance(sink.failure, Lost)
            assert not sink.failure.timed_out
            assert (sink.status is None) == (told == 0)

    async def test_a_backend_that_is_not_there_is_not_sent(self, stage: Stage) -> None:
        sink = Recorder()
        begin(stage.unreachable, sink)
        await sink.last()
        assert isinstance(sink.failure, NotSent)

    async def test_without_room_it_is_busy_at_once(self, stage: Stage) -> None:
        if stage.full is None:
            return
        first, second = Recorder(), Recorder()
        begin(stage.full, first)
        answer = await stage.peer.next()
        begin(stage.full, second)
        await second.last()
        assert isinstance(second.failure, Busy)
        answer.head(200, PLAIN)
        answer.end()
        assert (await first.last()).ended

    async def test_the_first_byte_is_waited_for_only_so_long(self, stage: Stage) -> None:
        sink = Recorder()
        begin(stage.connector, sink, altered(REQUEST, timeouts=Timeouts(first_byte_s=0.05)))
        answer = await stage.peer.next()
        await sink.last()
        assert isinstance(sink.failure, Lost)
        assert sink.failure.timed_out
        await answer.gone()

    async def test_more_is_waited_for_only_so_long(self, stage: Stage) -> None:
        sink = Recorder()
        begin(stage.connector, sink, altered(REQUEST, timeouts=Timeouts(idle_s=0.05)))
        answer = await stage.peer.next()
        answer.head(200, PLAIN)
        answer.data(b"half")
        await sink.last()
        assert isinstance(sink.failure, Lost)
        assert sink.failure.timed_out
        await answer.gone()

    async def test_a_pause_stops_the_flow_and_its_clock(self, stage: Stage) -> None:
        sink = Recorder()
        exchange = begin(stage.connector, sink, altered(REQUEST, timeouts=Timeouts(idle_s=0.3)))
        answer = await stage.peer.next()
        answer.head(200, PLAIN)
        answer.data(b"x")
        await sink.grown()
        with sink.quiet():
            exchange.pause()
            exchange.pause()
        before = len(sink.body)
        sent = b"0123456789abcdef" * 65536
        answer.data(sent)
        other = Recorder()
        begin(stage.connector, other, altered(REQUEST, timeouts=Timeouts(first_byte_s=0.6)))
        await stage.peer.next()
        assert (await other.last()).failure is not None  # as long as that, and more than the idle time-out
        assert len(sink.body) - before <= MAX_AFTER_PAUSE
        assert not sink.over
        with sink.quiet():
            exchange.resume()
            exchange.resume()
        answer.end()
        await sink.last()
        assert (bytes(sink.body), sink.ended) == (b"x" + sent, True)

    async def test_a_pause_from_within_data_holds_what_was_read(self, stage: Stage) -> None:
        after = 0
        paused = False

        def on_data(chunk: bytes) -> None:
            nonlocal after, paused
            if paused:
                after += len(chunk)
            else:
                paused = True
                exchange.pause()

        sink = Recorder(on_data)
        exchange = begin(stage.connector, sink)
        answer = await stage.peer.next()
        answer.head(200, PLAIN)
        piece = bytes(range(256)) * 16
        sent = piece * 512
        for _ in range(512):
            answer.data(piece)
        answer.end()
        await sink.until(lambda: paused)
        for _ in range(3):
            await round_trip(stage)
            assert after <= MAX_AFTER_PAUSE
        while len(sink.body) < len(sent):
            paused, after, held = False, 0, sink.chunks
            with sink.quiet():
                exchange.resume()
            await sink.grown(held)
        exchange.resume()
        await sink.last()
        assert (bytes(sink.body), sink.ended) == (sent, True)

    async def test_a_cancel_stops_the_backend(self, stage: Stage) -> None:
        for told in range(3):
            sink = Recorder()
            exchange = begin(stage.connector, sink)
            answer = await stage.peer.next()
            if told > 0:
                answer.head(200, PLAIN)
                await sink.headed()
            if told > 1:
                answer.data(b"half")
                await sink.grown()
            chunks = sink.chunks
            with sink.quiet():
                exchange.cancel()
                exchange.cancel()
                exchange.pause()
                exchange.resume()
            await answer.gone()
            await sink.last()
            assert isinstance(sink.failure, Lost)
            assert sink.chunks == chunks
            with sink.quiet():
                exchange.cancel()
        await round_trip(stage)

    async def test_a_cancel_while_paused_stops_the_backend(self, stage: Stage) -> None:
        sink = Recorder()
        exchange = begin(stage.connector, sink)
        answer = await stage.peer.next()
        answer.head(200, PLAIN)
        await sink.headed()
        exchange.pause()
        answer.data(b"x" * 300_000)
        with sink.quiet():
            exchange.cancel()
        await answer.gone()
        assert isinstance((await sink.last()).failure, Lost)
        assert sink.chunks == 0

    async def test_a_cancel_before_anything_is_sent(self, stage: Stage) -> None:
        sink = Recorder()
        exchange = begin(stage.unreachable, sink)
        with sink.quiet():
            exchange.cancel()
        assert isinstance((await sink.last()).failure, NotSent)

    async def test_what_cannot_stop_is_read_to_its_end_and_dropped(self, stage: Stage) -> None:
        sink = Recorder()
        exchange = begin(stage.connector, sink, altered(REQUEST, stoppable=False))
        answer = await stage.peer.next()
        with sink.quiet():
            exchange.cancel()
        answer.head(200, PLAIN)
        answer.data(b"x" * 100_000)
        await round_trip(stage)
        assert not sink.over
        answer.end()
        await sink.last()
        assert isinstance(sink.failure, Lost)
        assert (sink.status, sink.chunks) == (None, 0)

    async def test_what_cannot_stop_is_read_to_its_end_though_it_was_paused(self, stage: Stage) -> None:
        sink = Recorder()
        exchange = begin(stage.connector, sink, altered(REQUEST, stoppable=False))
        answer = await stage.peer.next()
        answer.head(200, PLAIN)
        await sink.headed()
        exchange.pause()
        answer.data(b"x" * 10_000_000)
        answer.end()
        with sink.quiet():
            exchange.cancel()
        await sink.last()
        assert isinstance(sink.failure, Lost)
        assert sink.chunks == 0

    async def test_a_pause_before_anything_came_holds(self, stage: Stage) -> None:
        sink = Recorder()
        exchange = begin(stage.connector, sink)
        with sink.quiet():
            exchange.pause()
        answer = await stage.peer.next()
        answer.head(200, PLAIN)
        sent = b"x" * 1_000_000
        answer.data(sent)
        answer.end()
        await round_trip(stage)
        assert len(sink.body) <= MAX_AFTER_PAUSE
        exchange.resume()
        assert bytes((await sink.last()).body) == sent

    async def test_what_cannot_stop_is_still_timed(self, stage: Stage) -> None:
        sink = Recorder()
        exchange = begin(
            stage.connector, sink, altered(REQUEST, stoppable=False, timeouts=Timeouts(first_byte_s=0.05))
        )
        answer = await stage.peer.next()
        exchange.cancel()
        await sink.last()
        assert isinstance(sink.failure, Lost)
        assert sink.failure.timed_out
        await answer.gone()

    async def test_a_cancel_after_the_end_is_harmless(self, stage: Stage) -> None:
        sink = Recorder()
        exchange = begin(stage.connector, sink)
        answer = await stage.peer.next()
        answer.head(200, PLAIN)
        answer.end()
        await sink.last()
        other = Recorder()
        begin(stage.connector, other)
        another = await stage.peer.next()
        with sink.quiet():
            exchange.pause()
            exchange.resume()
            exchange.cancel()
        another.head(200, PLAIN)
        another.data(b"untouched")
        another.end()
        assert bytes((await other.last()).body) == b"untouched"
        assert sink.violations == []

    async def test_exchanges_do_not_disturb_each_other(self, stage: Stage) -> None:
        sinks = [Recorder() for _ in range(8)]
        for number, sink in enumerate(sinks):
            begin(stage.connector, sink, altered(REQUEST, body=b"%d" % number))
        answers = [await stage.peer.next() for _ in sinks]
        for answer in reversed(answers):
            answer.head(200, PLAIN)
            answer.data(b"to " + answer.body)
        answers[0].cut()
        for answer in answers[1:]:
            answer.end()
        for number, sink in enumerate(sinks):
            await sink.last()
            if b"%d" % number != answers[0].body:
                assert (bytes(sink.body), sink.ended) == (b"to %d" % number, True)

    async def test_close_fails_what_is_open(self, stage: Stage) -> None:
        waiting, streaming, connecting = Recorder(), Recorder(), Recorder()
        begin(stage.connector, waiting)
        first = await stage.peer.next()
        begin(stage.connector, streaming)
        second = await stage.peer.next()
        second.head(200, PLAIN)
        await streaming.headed()
        begin(stage.connector, connecting)
        await stage.connector.close()
        for sink in (waiting, streaming, connecting):
            assert sink.failure is not None
            await sink.last()
        await first.gone()
        await second.gone()
        await stage.connector.close()
        late = Recorder()
        begin(stage.connector, late)
        assert isinstance((await late.last()).failure, NotSent)
