"""One HTTP/1.1 connection to a backend, and the exchange that it carries at a time.

This is the hottest path of all: what is read goes through the response reader straight to the sink. There is no task, no
timer and no buffer per request or per chunk; the owner looks after late ones now and then (`Connection.check`).
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable
from typing import Protocol, cast

import structlog

from headrace.connectors.exchange import DirectExchange
from headrace.kernel.outbox import Outbox
from headrace.ports.connector import MAX_AFTER_PAUSE, Failure, Headers, Lost, Sink
from headrace.wire.http1_response import KnownHead, ResponseError, ResponseReader

log = structlog.get_logger(__name__)

_ONE_WRITE_BYTES = 64 * 1024


class _Nobody:
    """Takes the rest of an answer that nobody wants."""

    def head(self, status: int, headers: Headers) -> None:
        """Drop it."""

    def data(self, chunk: bytes) -> None:
        """Drop it."""


_NOBODY = _Nobody()


class Owner(Protocol):
    """The one whose connections these are."""

    monotonic: Callable[[], float]
    """Now, in seconds."""

    outbox: Outbox

    def watch(self, at: float) -> None:
        """Have `Connection.check` called at that time, or soon after."""

    def released(self, connection: Connection, keep_alive: bytes, *, streamed: bool) -> None:
        """It can take another request. `keep_alive`: the peer's Keep-Alive field. `streamed`: the answer came in chunks."""

    def retired(self, connection: Connection) -> None:
        """It won't take another request. Told once."""

    def gone(self, connection: Connection) -> None:
        """Its socket is closed. Told once, if it was ever open."""


class Connection(asyncio.Protocol):
    """One connection. `usable` while it can carry a request; `served`: requests that it carried; `idle_until`: when it
    is too old to be used again, while it waits."""

    __slots__ = (
        "_began_at", "_closed", "_exchange", "_heard_at", "_held", "_known", "_loop", "_now", "_orderly", "_owner", "_reader",
        "_sent_at", "_transport", "_unsent", "_writing", "idle_until", "served", "usable",
    )  # fmt: skip

    _transport: asyncio.Transport

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._now = owner.monotonic
        self._loop = asyncio.get_running_loop()
        self._exchange: DirectExchange | None = None
        self._reader: ResponseReader | None = None
        self._known: KnownHead | None = None
        self._held = b""
        self._orderly = False
        self._closed = False
        self._began_at = self._heard_at = self._sent_at = 0.0
        self._writing = False
        self._unsent = 0
        self.idle_until = math.inf
        self.served = 0
        self.usable = False

    # -- what the owner and the exchange ask ---------------------------------------------------------------------------

    def fresh(self, now: float) -> bool:
        """Whether a connection that waited can take a request: young enough, and its end not yet seen."""
        return now < self.idle_until and not self._transport.is_closing()

    def begin(self, exchange: DirectExchange, head: bytes) -> None:
        """Send the request; what comes is its answer. Only while `usable`, and nothing else is under way."""
        transport = self._transport
        request = exchange.request
        exchange.connection = self
        self._exchange = exchange
        sink = exchange.sink
        assert sink is not None, "an exchange that is over is not begun"
        self._reader = ResponseReader(sink, answers_head=request.method == "HEAD", known=self._known)
        body = request.body
        now = self._began_at = self._heard_at = self._sent_at = self._now()
        if len(body) <= _ONE_WRITE_BYTES:
            self._owner.outbox.send(transport, head + body)
        else:
            transport.write(head)
            transport.write(body)
        timeouts = exchange.timeouts
        self._owner.watch(now + min(timeouts.first_byte_s, timeouts.idle_s, timeouts.total_s))
        if exchange.paused:
            self.pause()

    def pause(self) -> None:
        """Stop reading."""
        transport = self._transport
        if not transport.is_closing():
            transport.pause_reading()

    def resume(self) -> None:
        """Read again; what was held back comes first, soon."""
        exchange = self._exchange
        if exchange is None:
            return
        self._heard_at = self._now()
        self._owner.watch(self._heard_at + exchange.timeouts.idle_s)
        transport = self._transport
        if not transport.is_closing():
            transport.resume_reading()
        if self._held:
            self._loop.call_soon(self._pass_on_held)

    def hand_over(self, sink: Sink) -> None:
        """What comes from now on is *sink*'s."""
        if self._reader is not None:
            self._reader.receiver = sink

    def leave(self, *, drain: bool) -> None:
        """The exchange was cancelled: cut the connection, or read its answer to the end for nobody."""
        if drain and self._reader is not None:
            self._reader.receiver = _NOBODY
            return
        exchange = self._detach()
        self.retire()
        if exchange is not None:
            self._loop.call_soon(exchange.fail, Lost("cancelled"))

    def cut(self, failure: Failure) -> None:
        """Close the socket at once; the exchange under way fails so."""
        exchange = self._detach()
        self.retire()
        if exchange is not None:
            exchange.fail(failure)

    def retire(self) -> None:
        """Close the socket at once, and take no more requests. Idempotent."""
        if not self.usable:
            return
        self.usable = False
        self._owner.retired(self)
        if self._closed:
            self._owner.gone(self)
        else:
            self._transport.abort()

    def check(self, now: float) -> float:
        """Act on what is overdue at *now*; when to look again, infinity for never."""
        exchange = self._exchange
        if exchange is None:
            if now < self.idle_until:
                return self.idle_until
            self.retire()
            return math.inf
        timeouts = exchange.timeouts
        over = self._began_at + timeouts.total_s
        if now >= over:
            self.cut(Lost(f"the answer was not complete within {timeouts.total_s:g} s", timed_out=True))
            return math.inf
        if exchange.paused:
            return over
        headed = self._reader is not None and self._reader.headed
        if self._is_writing(now) or headed:
            due = max(self._heard_at, self._sent_at) + timeouts.idle_s
        else:
            due = self._sent_at + timeouts.first_byte_s
        if now < due:
            return min(due, over, now + timeouts.idle_s)
        limit = timeouts.idle_s if headed or self._writing else timeouts.first_byte_s
        what = "the rest of its answer" if headed else "its answer"
        self.cut(Lost(f"the backend kept us waiting more than {limit:g} s for {what}", timed_out=True))
        return math.inf

    def _is_writing(self, now: float) -> bool:
        """Whether the request is still going out; notes progress."""
        if self._writing:
            unsent = self._transport.get_write_buffer_size()
            if unsent != self._unsent:
                self._unsent, self._sent_at = unsent, now
        return self._writing

    # -- what the transport tells --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands, TLS included."""
        self._transport = cast("asyncio.Transport", transport)
        # 0: `resume_writing` comes when the last byte has left us
        self._transport.set_write_buffer_limits(high=_ONE_WRITE_BYTES, low=0)
        self.usable = True

    def pause_writing(self) -> None:
        """A long request is going out."""
        self._writing = True

    def resume_writing(self) -> None:
        """All of it has left us."""
        self._writing = False
        self._sent_at = self._now()

    def data_received(self, data: bytes) -> None:
        """Some bytes were read."""
        reader = self._reader
        if reader is None:
            self.retire()  # nobody asked: whatever it is, the next answer couldn't be told from it
        elif len(data) > MAX_AFTER_PAUSE or self._held:
            self._held += data
            self._pass_on_held()
        else:
            self._pass_on(reader, data)

    def eof_received(self) -> None:
        """The peer sends no more. The transport closes itself afterwards."""
        if self._held:
            self._orderly = self._closed_in_order()
        elif self._reader is None:
            self.retire()
        else:
            self._end_of_input(self._reader, orderly=self._closed_in_order())

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed."""
        self._closed = True
        if self._held:
            return  # `_pass_on_held` sees to it
        if self._reader is not None:
            self._end_of_input(self._reader, orderly=False)
        elif self.usable:
            self.retire()
        else:
            self._owner.gone(self)

    # -- passing on ----------------------------------------------------------------------------------------------------

    def _pass_on(self, reader: ResponseReader, data: bytes) -> None:
        self._heard_at = self._now()
        try:
            complete = reader.feed(data)
        except ResponseError as error:
            self.cut(Lost(str(error)))
        except Exception:  # a sink's bug: only its own exchange may suffer
            log.exception("a sink raised", action="sink.raised")
            self.cut(Lost("the answer could not be passed on"))
        else:
            if complete and self._reader is reader:
                self._complete(reader)

    def _pass_on_held(self) -> None:
        """In pieces, so that a pause takes effect after one of them: a transport reads up to 256 KiB at once."""
        while self._held:
            exchange, reader = self._exchange, self._reader
            if exchange is None or reader is None or exchange.paused:
                return
            data = self._held
            self._held = data[MAX_AFTER_PAUSE:]
            self._pass_on(reader, data[:MAX_AFTER_PAUSE])
        if self._reader is not None and (self._closed or self._orderly):
            self._end_of_input(self._reader, orderly=self._orderly)

    def _closed_in_order(self) -> bool:
        """With TLS, whether the peer said so itself: a bare end of input can be the work of someone in between, who cuts
        short a body that ends with the connection. (asyncio reports both alike.)"""
        secure = self._transport.get_extra_info("ssl_object")
        if secure is None:
            return True
        try:
            return not secure.read(1)
        except ssl.SSLZeroReturnError:
            return True
        except ssl.SSLError:
            return False

    def _end_of_input(self, reader: ResponseReader, *, orderly: bool) -> None:
        if orderly and reader.end_of_input():
            self._complete(reader)
        else:
            self.cut(Lost("the connection ended before the answer was complete"))

    def _complete(self, reader: ResponseReader) -> None:
        reusable = reader.reusable and not self._held and self._sent_whole()
        exchange = self._detach()
        self.served += 1
        self._known = reader.known
        if reusable:
            self._owner.released(self, reader.keep_alive, streamed=reader.chunked)
        else:
            self.retire()
        if exchange is not None:
            exchange.end()

    def _sent_whole(self) -> bool:
        """Whether the request has left us, and the connection goes on being read."""
        transport, exchange = self._transport, self._exchange
        if transport.is_closing() or transport.get_write_buffer_size():
            return False
        if exchange is not None and exchange.paused:
            transport.resume_reading()
        return True

    def _detach(self) -> DirectExchange | None:
        exchange, self._exchange = self._exchange, None
        reader, self._reader = self._reader, None
        self._held = b""
        if reader is not None:
            reader.receiver = _NOBODY
            reader.release()
        return exchange
