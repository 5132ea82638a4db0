"""The listener's protocol: uvicorn's HTTP over httptools, with the bounds that uvicorn leaves open.

What is added: limits on the bytes and the time of a request's head, on connections, errors of the parser in OpenAI's
envelope with a request id, and a disconnect that is always seen: bytes behind a running request are dropped while
reading goes on (uvicorn stops reading there, and then misses it), and the connection closes after that answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from headrace.gateway.problems import problem
from headrace.kernel.errors import HeadersTooLarge, InvalidRequest, RequestError, RequestTimeout, Unavailable
from headrace.kernel.ids import request_id
from headrace.kernel.units import format_bytes

MAX_HEADERS = 128
LINGER_S = 2.0
"""How long a client that is still sending may go on after we hung up, so that it reads our answer."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of one connection, and on how many there are."""

    head_bytes: int = 64 * 1024
    head_time_s: float = 10.0
    connections: int = 10_000


class GatewayProtocol(HttpToolsProtocol):
    """One client connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        limits: ConnectionLimits,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._head_bytes = 0
        self._in_head = False
        self._in_body = False
        self._deaf = False  # what still comes on this connection is dropped
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or say that there are too many."""
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn's is narrower than asyncio's
        if len(self.connections) > self._limits.connections:
            self._refuse(Unavailable("Too many connections.", retry_after_s=1.0, code="too_many_connections"))
        else:
            self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, within the bounds."""
        if self._deaf:
            return
        if not self._in_body and self._answering():
            self._hang_up_after_answer()
            return
        if self._answering() or not self._in_body:
            self._unset_keepalive_if_required()  # but a body that nobody reads any more doesn't keep us
        if self._head_timer is None and not self._in_body:
            self._time_head()
        if self._in_head or not self._in_body:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(InvalidRequest("This server doesn't switch protocols.", code="upgrade_refused"))
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(
                cause
                if isinstance(cause, RequestError)
                else InvalidRequest("The request is not valid HTTP.", code="invalid_http")
            )
        else:
            if self._in_head and self._head_bytes > self._limits.head_bytes:
                self._refuse(self._head_too_large())

    def on_message_begin(self) -> None:
        """A request begins; one behind a running request is not looked at."""
        if self._answering():
            self._hang_up_after_answer()
            return
        self._in_head = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        if not self._deaf:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if not self._deaf:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the head's bounds, then start the request."""
        if self._deaf:
            return
        self._stop_head_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.head_bytes or len(self.headers) > MAX_HEADERS:
            raise self._head_too_large()
        if self.parser.should_upgrade():
            raise InvalidRequest("This server doesn't switch protocols.", code="upgrade_refused")
        _check_target(self.url)
        self._in_head, self._in_body, self._head_bytes = False, True, 0
        super().on_headers_complete()
        self.cycle.transport = _AnswerTransport(self.transport, self._hang_up)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Some of the request's body."""
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has been read."""
        if not self._deaf:
            self._in_body = False
            super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """No next request came."""
        self.transport.close()

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = (
            self.cycle
        )  # None before the first request, whatever uvicorn declares
        return cycle is not None and not cycle.response_complete

    def _hang_up_after_answer(self) -> None:
        self._deaf = True
        self.cycle.keep_alive = False

    def _hang_up(self) -> None:
        """Close, but not under the feet of a client that is still sending: a reset would take our answer from it."""
        self._deaf = True
        if not self._in_body and not self._in_head:
            self.transport.close()
            return
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _time_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_time_s, self._head_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self._in_head or self._head_bytes:
            self._refuse(
                RequestTimeout(f"The request's head didn't arrive within {self._limits.head_time_s:g} s.")
            )
        else:
            self.transport.close()

    def _head_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"The request's head is over the limit of {format_bytes(self._limits.head_bytes)} "
            f"or {MAX_HEADERS} headers."
        )

    def _refuse(self, error: RequestError) -> None:
        """Answer outside of any ASGI request, and hang up."""
        self._deaf = True
        self._stop_head_timer()
        if self._answering():
            self.cycle.keep_alive = False
            if not self.cycle.more_body:
                return  # the garbage came behind a whole request, which still gets its answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        refusal = problem(error)
        headers = {
            b"content-type": b"application/json",
            b"content-length": str(len(refusal.body)).encode(),
            b"connection": b"close",
            b"x-request-id": request_id().encode(),
            **refusal.headers,
        }
        head = b"".join([name + b": " + value + b"\r\n" for name, value in headers.items()])
        self.transport.write(STATUS_LINE[refusal.status] + head + b"\r\n" + refusal.body)
        self._in_head = True  # whatever it was, it wasn't read to its end
        self._hang_up()


class _AnswerTransport:
    """The transport as uvicorn's response cycle sees it; it closes when we find that right."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, hang_up: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = hang_up


def _check_target(target: bytes) -> None:
    """Refuse what can't be a path here: uvicorn would raise in the middle of its work.

    Raises:
        InvalidRequest: not an absolute path or URL of ASCII characters.
    """
    try:
        path = httptools.parse_url(target).path
    except httptools.HttpParserInvalidURLError:
        path = None
    if not path or not path.isascii():
        raise InvalidRequest("The request target is not a valid path.", code="invalid_http")
