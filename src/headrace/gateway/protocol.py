"""The listener's protocol: uvicorn's HTTP over httptools, with two lanes, and the bounds that uvicorn leaves open.

Inference requests take the *token lane*: they are answered here, without an ASGI cycle or a task. All others go to the
ASGI application as uvicorn does it. Both get: limits on the bytes, number and time of a request's head, on connections, on
the time a client may leave our bytes unread; errors of the parser in OpenAI's envelope; and a disconnect that is always
seen: bytes behind a running request are dropped while reading goes on (uvicorn stops reading there, and then misses it), and
the connection closes after that answer.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from headrace.gateway.addresses import UNIX
from headrace.gateway.asgi_lane import AnswerTransport, check_target
from headrace.gateway.gate import NEVER, Gate
from headrace.gateway.heads import RequestHead
from headrace.gateway.problems import problem
from headrace.gateway.token_lane import Client, TokenLane, TokenRequest
from headrace.kernel.errors import HeadersTooLarge, InvalidRequest, RequestError, RequestTimeout, Unavailable
from headrace.kernel.ids import request_id
from headrace.kernel.units import format_bytes
from headrace.wire.http1_template import HeadTemplate

MAX_HEADERS = 128
_ONE_READ_BYTES = 256 * 1024
LINGER_S = 2.0
"""How long a client that is still sending may go on after we hung up, so that it reads our answer."""


class GatewayProtocol(HttpToolsProtocol, Client):
    """One client connection.

    A request's life here: idle → head → body → answering → idle. `deadline` belongs to whichever it is in.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        gate: Gate,
        lane: TokenLane | None = None,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.gate = gate
        self.deadline = NEVER
        self._lane = lane
        self._request: TokenRequest | None = None  # on the token lane, until its answer is complete
        self._known: tuple[HeadTemplate, RequestHead] | None = None  # the last head on the token lane
        self._repeatable: tuple[HeadTemplate, RequestHead] | None = None  # the same, while it may come again
        self._block = b""  # what the head under way began with
        self._head_bytes = 0
        self._overhead = (
            0  # bytes since the body's last ones: chunk extensions and trailers, which nobody wants
        )
        self._in_head = False
        self._in_body = False
        self._deaf = False  # what still comes on this connection is dropped
        self.keep_alive = True
        self._unread_bytes: int | None = (
            None  # while the client doesn't keep up: what it had left unread when we looked
        )

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or say that there are too many."""
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn's is narrower than asyncio's
        self.write = partial(self.gate.outbox.send, self.transport)
        if len(self.connections) > self.gate.limits.connections:
            self._refuse(Unavailable("Too many connections.", retry_after_s=1.0, code="too_many_connections"))
        else:
            self.deadline = self.gate.now() + self.gate.limits.head_time_s

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self.deadline = NEVER
        if self._request is not None:
            request, self._request = self._request, None
            request.gone()
            self.gate.done(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, within the bounds."""
        if self._deaf:
            return
        if self._repeatable is not None and self._repeats(data):
            return
        if not self._in_body:
            if self._answering():
                self._hang_up_after_answer()
                return
            if not self._in_head:
                self._in_head = True
                self._head_bytes = 0
                self._block = data
                self.deadline = self.gate.now() + self.gate.limits.head_time_s
            self._head_bytes += len(data)
        self._overhead += len(data)
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
            if self._in_head and self._head_bytes > self.gate.limits.head_bytes:
                self._refuse(self._head_too_large())
            elif self._in_body and self._overhead > self.gate.limits.head_bytes + _ONE_READ_BYTES:
                self._refuse(HeadersTooLarge("The body's chunk extensions or trailers are too long."))

    def pause_writing(self) -> None:
        """The client doesn't keep up: its backend waits."""
        self._unread_bytes = self.transport.get_write_buffer_size()
        self.deadline = self.gate.now() + self.gate.limits.write_s
        if self._request is None:
            self.flow.pause_writing()
        elif self._request.call is not None:
            self._request.call.pause()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._unread_bytes = None
        self.flow.resume_writing()
        if self._request is not None:
            self._request.caught_up()
            if self._request.call is not None:
                self._request.call.resume()
        elif not self._answering():
            self._await_next()

    def overdue(self, now: float) -> None:
        """A deadline has passed: whose, depends on what the connection is at."""
        self.deadline = NEVER
        if self._unread_bytes is not None:
            self._check_progress(now)
        elif self.transport.is_closing():
            self.transport.abort()
        elif self._request is not None:
            self._request.overdue(now)
        elif self._in_head:
            limit_s = self.gate.limits.head_time_s
            self._refuse(RequestTimeout(f"The request's head didn't arrive within {limit_s:g} s."))
        elif not self._answering():
            self._close()

    def _check_progress(self, now: float) -> None:
        """A slow reader may go on; one that read nothing since we looked is cut off."""
        left = self.transport.get_write_buffer_size()
        if self._unread_bytes is not None and left >= self._unread_bytes:
            self.transport.abort()
        else:
            self._unread_bytes = left
            self.deadline = now + self.gate.limits.write_s

    # What the parser finds

    def on_message_begin(self) -> None:
        """A request begins; one behind a running request is not looked at."""
        if self._answering():
            self._hang_up_after_answer()
            return
        self._in_head = True
        self._repeatable = None
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.expect_100_continue = False

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. Trailers aren't kept: nothing bounds their number."""
        if not self._deaf and not self._in_body:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Check the head's bounds, then start the request on its lane."""
        if self._deaf:
            return
        if self._head_bytes > self.gate.limits.head_bytes:  # else the head within it is small enough, too
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.gate.limits.head_bytes:
                raise self._head_too_large()
        if len(self.headers) > MAX_HEADERS:
            raise self._head_too_large()
        if self.parser.should_upgrade():
            raise InvalidRequest("This server doesn't switch protocols.", code="upgrade_refused")
        self._in_head, self._in_body, self.deadline = False, True, NEVER
        self._overhead = 0
        operation = self._lane and self._lane.operation(self.parser.get_method(), self.url)
        if self._lane is not None and operation:
            self._begin(self._lane, RequestHead(operation, modern=self.parser.get_http_version() != "1.0"))
        else:
            self._start_cycle()

    def _begin(self, lane: TokenLane, head: RequestHead) -> None:
        """A request on the token lane begins."""
        head.read(self.headers)
        self.keep_alive = head.modern and self.parser.should_keep_alive()
        self._request = request = TokenRequest(lane, self, head)
        self.gate.begin(self)
        if head.forwarded:
            head.client = self.client_address(head.forwarded)  # now: a forged one is to be noticed
        if head.expects:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.begin()
        in_one_piece = self._head_bytes == len(self._block)
        right = self.keep_alive and not request.over and not head.expects
        template = HeadTemplate.of(self._block) if in_one_piece and right else None
        self._known = (template, head) if template else None
        self._block = b""

    def _repeats(self, data: bytes) -> bool:
        """Answer *data* where it is a whole request with the head of the one before: the parser need not see it."""
        known, self._repeatable = self._repeatable, None
        if known is None or self._lane is None:
            return False
        template, head = known
        match = template.match(data)
        if match is None or match[0] != len(data) - match[1]:
            return False
        self.deadline = NEVER
        self._request = TokenRequest(self._lane, self, head)
        self.gate.begin(self)
        self._request.repeat(data[match[1] :])
        return True

    def on_body(self, body: bytes) -> None:
        """Some of the request's body."""
        self._overhead = 0
        if self._deaf:
            return  # the body of a request behind the running one, which must not get into that one's answer
        if self._request is not None:
            self._request.body(body)
        elif self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has been read."""
        if self._deaf:
            return
        self._in_body = False
        if self._request is not None:
            self._request.complete()
        elif self.cycle is not None:
            super().on_message_complete()
        if not self._answering():
            self._await_next()

    # What the lanes ask and tell

    def client_address(self, forwarded: bytes) -> str:
        """Where a request comes from whose X-Forwarded-For is this."""
        assert self._lane is not None, "only the token lane asks"
        return self._lane.addresses.client(self.client[0] if self.client else UNIX, forwarded)

    def answered(self, *, closes: bool) -> None:
        """The token lane's response is complete."""
        self._request = None
        self.gate.done(self)
        if closes or self._deaf or not self.keep_alive:
            self._hang_up()
            return
        self._await_next()
        if not self._in_body:
            self._repeatable = self._known

    def on_response_complete(self) -> None:
        """The ASGI lane's response is complete."""
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._await_next()

    def shutdown(self) -> None:
        """No further request on this connection; a running one goes on."""
        if not self._answering():
            self._close()
        elif self._request is not None:
            self.keep_alive = False
        else:
            self.cycle.keep_alive = False

    def _start_cycle(self) -> None:
        """Hand the request to uvicorn, which sets up its own state for it."""
        check_target(self.url)
        self._block = b""
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers += headers
        self.expect_100_continue = (b"expect", b"100-continue") in headers
        super().on_headers_complete()
        self.cycle.transport = AnswerTransport(self.transport, self._hang_up)  # type: ignore[assignment]

    def _answering(self) -> bool:
        if self._request is not None:
            return True
        cycle: RequestResponseCycle | None = (
            self.cycle
        )  # None before the first request, whatever uvicorn declares
        return cycle is not None and not cycle.response_complete

    def _await_next(self) -> None:
        """The next request may come; what is left of this one's body, if anything, is dropped till then."""
        self.deadline = self.gate.now() + self.gate.limits.keep_alive_s

    def _hang_up_after_answer(self) -> None:
        self._deaf = True
        self.keep_alive = False
        if self._request is None:
            self.cycle.keep_alive = False

    def _hang_up(self) -> None:
        """Close, but not under the feet of a client that is still sending: a reset would take our answer from it."""
        self._deaf = True
        if not self._in_body and not self._in_head:
            self._close()
            return
        self.gate.outbox.flush(self.transport)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _close(self) -> None:
        self.gate.outbox.flush(self.transport)
        self.transport.close()

    def _head_too_large(self) -> HeadersTooLarge:
        limit = format_bytes(self.gate.limits.head_bytes)
        return HeadersTooLarge(f"The request's head is over the limit of {limit} or {MAX_HEADERS} headers.")

    def _refuse(self, error: RequestError) -> None:
        """Answer what can't be read any further, and hang up."""
        self._deaf = True
        if self._in_body and not self._answering():
            self._hang_up()  # it has its answer already, and must not get two
            return
        if self._request is not None:
            self.keep_alive = False
            if self._in_body:
                self._request.fail(error)
            return  # else the garbage came behind a whole request, which still gets its answer
        if self._answering():
            self.cycle.keep_alive = False
            if not self.cycle.more_body:
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        refusal = problem(error)
        lines = b"".join([name + b": " + value + b"\r\n" for name, value in refusal.headers.items()])
        self.write(
            b"HTTP/1.1 %b\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
            b"x-request-id: %b\r\n%b\r\n%b"
            % (
                refusal.status_line,
                self.gate.date,
                len(refusal.body),
                request_id().encode(),
                lines,
                refusal.body,
            )
        )
        self._in_head = True  # whatever it was, it wasn't read to its end
        self._hang_up()
