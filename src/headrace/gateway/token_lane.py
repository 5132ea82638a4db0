"""The token lane: inference requests, answered by the connection itself.

No ASGI cycle, no task and no coroutine: what the backend sends is written to the client's transport as it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from headrace.control.access import KeyRing
from headrace.core.answer import Answer
from headrace.core.inference import Inference, InferenceCall
from headrace.domain.access import Principal
from headrace.domain.inference import Api, Operation
from headrace.gateway.addresses import Addresses
from headrace.gateway.gate import NEVER, Gate
from headrace.gateway.guard import GUARDED, AddressGuard
from headrace.gateway.heads import RequestHead, way_lines
from headrace.gateway.problems import Problem, problem
from headrace.gateway.requests import BodyLimits, check_media, echoed_id, too_large
from headrace.kernel.errors import RequestError, RequestTimeout, Unauthenticated
from headrace.kernel.ids import request_id
from headrace.ports.control import Grant
from headrace.wire.openai import decode_request
from headrace.wire.sse import data_event

_EVENT_STREAM = b"text/event-stream"
_COMMENT = b": still working\n\n"
_LAST_CHUNK = b"0\r\n\r\n"
_CLOSE = b"connection: close\r\n"


@dataclass(frozen=True, slots=True)
class Patience:
    """How a long wait looks to the client of a stream.

    grace_s: until then nothing is sent, so that an error keeps its status. Then the head goes out, and a comment. interval_s:
    a comment follows each stretch of that length in which nothing came, before the first event and after it.
    """

    grace_s: float = 10.0
    interval_s: float = 15.0


@dataclass(frozen=True, slots=True)
class TokenLane:
    """The parts that inference requests pass through, and the settings of the way."""

    keys: KeyRing
    inference: Inference
    cors: Cors
    limits: BodyLimits = field(default_factory=BodyLimits)
    patience: Patience = field(default_factory=Patience)
    default_model: str = ""
    default_embedding_model: str = ""
    guard: AddressGuard = field(default_factory=lambda: AddressGuard(per_minute=0))
    addresses: Addresses = field(default_factory=Addresses)

    def operation(self, method: bytes, target: bytes) -> Operation | None:
        """Which inference operation a request line asks for; None: not one of this lane."""
        return _OPERATIONS.get(target.partition(b"?")[0]) if method == b"POST" else None

    def default(self, operation: Operation) -> str:
        """The model for a request that names none; empty where it must."""
        return self.default_embedding_model if operation is Operation.EMBEDDING else self.default_model


_OPERATIONS = {operation.path.encode(): operation for operation in Operation.of(Api.OPENAI)}


class Cors(Protocol):
    """Which response headers a browser's page needs."""

    def lines(self, origin: bytes) -> bytes:
        """Header lines for a request with this `Origin`; empty where it isn't allowed or there is none."""


class Client(Protocol):
    """The connection that a request came on. `keep_alive`: it stays open after the answer."""

    gate: Gate
    deadline: float
    keep_alive: bool
    write: Callable[
        [bytes], None
    ]  # puts bytes on their way; what doesn't fit is buffered, and the call paused

    def client_address(self, forwarded: bytes) -> str:
        """Where a request comes from whose X-Forwarded-For is this."""

    def answered(self, *, closes: bool) -> None:
        """The response is complete."""


class TokenRequest(Answer):
    """One inference request on the token lane, from its head to the last byte of its answer."""

    __slots__ = (
        "_chunked",
        "_client",
        "_extra",
        "_head",
        "_lane",
        "_parts",
        "_principal",
        "_received",
        "_silent",
        "_size",
        "_streaming",
        "_whole_head",
        "call",
        "id",
        "over",
    )

    def __init__(self, lane: TokenLane, client: Client, head: RequestHead) -> None:
        self.id = request_id()
        self.call: InferenceCall | None = None
        self.over = False
        self._lane = lane
        self._client = client
        self._head = head
        self._chunked = head.modern
        self._parts: list[bytes] = []
        self._size = 0
        self._streaming = False
        self._silent = True  # since the deadline was looked at
        self._extra = lane.cors.lines(head.origin) if head.origin else b""
        if head.given_id:
            self._extra += _echo(head.given_id)

    @property
    def client_address(self) -> str:
        """Where the request comes from. It is found out when it is first wanted, once for as long as the head repeats."""
        head = self._head
        if not head.client:
            head.client = self._client.client_address(head.forwarded)
        return head.client

    def begin(self) -> None:
        """The request's head is here: whatever it alone can decide is decided before the body is read."""
        limits = self._lane.limits
        self._received = self._client.gate.now()
        self._client.deadline = self._received + limits.pause_s
        head = self._head
        try:
            self._principal: Principal = self._lane.keys.authenticate(head.key)
            if head.media != b"application/json" or head.encoding:
                check_media(head.media.decode("latin-1"), head.encoding.decode("latin-1"))
            if head.length > limits.max_bytes:
                raise too_large(limits)
        except RequestError as error:
            self.fail(error)

    def body(self, data: bytes) -> None:
        """Some of the request's body."""
        if self.over:
            return
        self._size += len(data)
        if self._size > self._lane.limits.max_bytes:
            self.fail(too_large(self._lane.limits))
            return
        self._parts.append(data)
        limits = self._lane.limits
        self._client.deadline = min(self._client.gate.now() + limits.pause_s, self._received + limits.total_s)

    def complete(self) -> None:
        """The request is here, whole: check it, and ask for its answer."""
        if self.over:
            return
        raw = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._ask(raw)

    def repeat(self, raw: bytes) -> None:
        """The request is here, whole, with the head of one that was found right before: only its key is looked at again."""
        try:
            self._principal = self._lane.keys.authenticate(self._head.key)
            if len(raw) > self._lane.limits.max_bytes:
                raise too_large(self._lane.limits)
        except RequestError as error:
            self.fail(error)
        else:
            self._ask(raw)

    def _ask(self, raw: bytes) -> None:
        operation = self._head.operation
        try:
            body = decode_request(operation, raw, self._lane.default(operation))
            self._received = self._client.gate.now()
            origin = self._head.origin_of(self._received, self._head.client or self.client_address)
        except RequestError as error:
            self.fail(error)
            return
        self._client.deadline = self._received + self._lane.patience.grace_s if body.stream else NEVER
        call = self._lane.inference.start(self.id, self._principal, body, self, origin)
        if not self.over:
            self.call = call

    # The answer

    def head(self, content_type: bytes, grant: Grant) -> None:
        """The answer begins."""
        facts = way_lines(grant, self._received)
        if content_type != _EVENT_STREAM:
            self._whole_head = b"content-type: " + content_type + b"\r\n" + facts
        elif not self._streaming:
            self._begin_stream(facts)
        self.caught_up()

    def caught_up(self) -> None:
        """The client reads, and the answer is under way: from now on it should hear something now and then."""
        gate = self._client.gate
        self._client.deadline = gate.now() + self._lane.patience.interval_s if self._streaming else NEVER

    def data(self, chunk: bytes) -> None:
        """Some of it."""
        self._silent = False
        if not self._streaming:
            self._parts.append(chunk)
        elif self._chunked:
            self._client.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        else:
            self._client.write(chunk)

    def end(self) -> None:
        """It is complete."""
        if self._streaming:
            self._end_stream()
        else:
            self._whole(b"200 OK", b"".join(self._parts), self._whole_head)

    def fail(self, error: RequestError) -> None:
        """There will be no more of it: a status where none was sent, else a last event."""
        if isinstance(error, GUARDED):
            error = self._guarded(error)
        refusal = problem(error)
        if self._streaming:
            self.data(data_event(refusal.body))
            self._end_stream()
        else:
            self._refuse(refusal)

    def _guarded(self, error: RequestError) -> RequestError:
        key_id = "" if isinstance(error, Unauthenticated) else self._principal.id
        given = bool(self._head.key)
        return self._lane.guard.refused(error, self.client_address, key_id=key_id, given=given)

    def gone(self) -> None:
        """The client is gone."""
        self.over = True
        self._parts = []
        if self.call is not None:
            self.call.cancel()

    def overdue(self, now: float) -> None:
        """The client's deadline has passed: the body is late, or the client of a stream should see that we live."""
        if self.over:
            return
        if self.call is None:
            self.fail(RequestTimeout("The body didn't arrive in time."))
            return
        if not self._streaming:
            self._begin_stream(b"")
        if self._silent:
            self.data(_COMMENT)
        self._silent = True
        self._client.deadline = now + self._lane.patience.interval_s

    def _begin_stream(self, facts: bytes) -> None:
        self._streaming = True
        coding = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        if not self._client.keep_alive:
            coding += _CLOSE
        self._client.write(
            b"HTTP/1.1 200 OK\r\n%bcontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
            b"x-accel-buffering: no\r\n%bx-request-id: %b\r\n%b%b\r\n"
            % (self._client.gate.date, coding, self.id.encode(), facts, self._extra)
        )

    def _end_stream(self) -> None:
        self.over = True
        self.call = None  # it knows us as its answer: nothing is left to the garbage collector
        if self._chunked:
            self._client.write(_LAST_CHUNK)
        self._client.answered(closes=not self._chunked)

    def _refuse(self, refusal: Problem) -> None:
        lines = b"content-type: application/json\r\n"
        for name, value in refusal.headers.items():
            lines += name + b": " + value + b"\r\n"
        self._whole(refusal.status_line, refusal.body, lines, closes=refusal.closes)

    def _whole(self, status: bytes, body: bytes, lines: bytes, *, closes: bool = False) -> None:
        self.over = True
        self.call = None
        self._parts = []
        if closes or not self._client.keep_alive:
            lines += _CLOSE
        self._client.write(
            b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\nx-request-id: %b\r\n%b%b\r\n%b"
            % (status, self._client.gate.date, len(body), self.id.encode(), lines, self._extra, body)
        )
        self._client.answered(closes=closes)


def _echo(given: bytes) -> bytes:
    """The header line that tells a client the id it gave itself; empty where there is none to tell."""
    echoed = echoed_id(given) if given else None
    return b"x-client-request-id: %b\r\n" % echoed if echoed else b""
