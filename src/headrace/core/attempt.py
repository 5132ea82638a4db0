"""One execution of a request on one backend: the sink at the end of its exchange."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from headrace.core.assembling import Assembler
from headrace.core.chunks import ChunkStream
from headrace.core.metering import usage_member
from headrace.core.whole import meter_whole
from headrace.domain.inference import Usage
from headrace.kernel.errors import InvalidRequest, RequestError, UpstreamFailed, UpstreamRefused
from headrace.ports.connector import Busy, Exchange, Failure, Headers, Lost, NotSent, Sink
from headrace.wire.members import Members
from headrace.wire.openai import InferenceBody, blamed, llama_refusal, read_error
from headrace.wire.sse import EventSplitter, EventTooLarge, data_of, events

MAX_ERROR_BYTES = 64 * 1024
MAX_WHOLE_BYTES = 256 * 1024 * 1024
_JSON = b"application/json"
_EVENT_STREAM = b"text/event-stream"
_REFUSED_STATUSES = frozenset({400, 404, 405, 409, 413, 414, 415, 422})
_OUR_KEY_STATUSES = frozenset({401, 402, 403, 407})


class Told(Protocol):
    """The call that an attempt belongs to."""

    def answering(self, content_type: bytes) -> None:
        """The first of the answer is here; from now on there's no other attempt."""

    def passed(self, chunk: bytes) -> None:
        """Some of the answer, after `answering`."""

    def completed(self, usage: Usage) -> None:
        """All of the answer was passed on, and the exchange has ended."""

    def failed(self, failure: Failure, usage: Usage) -> None:
        """The exchange has ended without a full answer."""

    def rejected(self, error: RequestError, usage: Usage) -> None:
        """The backend refused the request itself; another would too."""


class Asked(Protocol):
    """What was asked, as far as it matters to what a refusal means and what it cost.

    prompt_tokens: how many there are about. members: those of the body. prompt_member: the one that has the text.
    """

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def members(self) -> Members: ...
    @property
    def prompt_member(self) -> str: ...


Question = TypeVar("Question", bound=Asked)


class Attempt(Sink, Generic[Question]):
    """Reads a backend's answer. What the status means, and what makes an answer complete, is decided here, once.

    `exchange` is set right after `Connector.start`, before anything is told. `streamed`: the form that it reads.
    """

    exchange: Exchange
    streamed = False

    def __init__(self, told: Told, body: Question) -> None:
        self._told = told
        self._body = body
        self._status = 0
        self._retry_after_s: float | None = None
        self._collected = bytearray()
        self._verdict: Failure | None = None

    @property
    def usage(self) -> Usage:
        """What this attempt used so far."""
        return Usage(self._body.prompt_tokens if self._status == 200 else 0, 0, estimated=True)

    def head(self, status: int, headers: Headers) -> None:
        """Note the status; an answer of another type than was asked for is a failure."""
        self._status = status
        fields = dict(headers)
        self._retry_after_s = _seconds(fields.get(b"retry-after"))
        content_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if status == 200 and content_type not in self._accepted_types():
            self._give_up(
                f"The backend answered with {content_type.decode('latin-1')[:80] or 'no content type'}."
            )

    def data(self, chunk: bytes) -> None:
        """Pass it on, or collect it where it is an error's body."""
        if self._verdict is not None:
            return
        if self._status == 200:
            self._take(chunk)
        elif len(self._collected) < MAX_ERROR_BYTES:
            self._collected += chunk

    def end(self) -> None:
        """The backend has finished: pass on the rest, or what its refusal means."""
        if self._verdict is not None:
            self._told.failed(self._verdict, self.usage)
        elif self._status == 200:
            self._finish()
        else:
            self._judge()

    def fail(self, failure: Failure) -> None:
        """The exchange broke; our own verdict goes first where there is one."""
        self._told.failed(self._verdict or failure, self.usage)

    def _accepted_types(self) -> tuple[bytes, ...]:
        return (_JSON,)

    @abstractmethod
    def _take(self, chunk: bytes) -> None:
        """Some of the body of a 200."""

    @abstractmethod
    def _finish(self) -> None:
        """The body of a 200 is complete."""

    def _give_up(self, reason: str) -> None:
        """This can't become an answer: stop the backend, and say so when it has stopped."""
        self._verdict = Lost(reason)
        self.exchange.cancel()

    def _judge(self) -> None:
        """What a status other than 200 means."""
        message, code, param = read_error(bytes(self._collected))
        if code == "context_length_exceeded":
            param = self._body.prompt_member
        if self._status == 500 and (mistake := llama_refusal(message)) is not None:
            self._told.rejected(mistake, self.usage)
            return
        reason = f"The backend answered {self._status}" + (f": {message}" if message else ".")
        if self._status == 501:
            self._told.rejected(
                InvalidRequest(message or "The model doesn't support this operation.", code="unsupported"),
                self.usage,
            )
        elif self._status in _REFUSED_STATUSES:
            param = param or blamed(message, self._body.members)
            refusal = UpstreamRefused(message or reason, status=self._status, param=param, code=code)
            self._told.rejected(refusal, self.usage)
        elif self._status == 429:
            self._told.failed(Busy(reason, self._retry_after_s), self.usage)
        elif self._status in _OUR_KEY_STATUSES:
            # The backend's word on *our* key is not for the client; and its text may hold part of that key.
            refused = NotSent(f"The backend refused our credentials ({self._status}).", refused_key=True)
            self._told.failed(refused, self.usage)
        else:
            self._told.failed(Lost(reason), self.usage)


class StreamAttempt(Attempt[InferenceBody]):
    """A streamed answer for a client that asked for a stream."""

    streamed = True
    passes_on = True

    def __init__(self, told: Told, body: InferenceBody) -> None:
        super().__init__(told, body)
        self._splitter = EventSplitter()
        self._chunks = ChunkStream(
            body.operation,
            body.model,
            created=int(time.time()),
            ask_usage=body.include_usage or not self.passes_on,
            prompt_tokens=body.prompt_tokens,
            choices=body.choices,
        )
        self._chunks.bare_logprobs = body.bare_logprobs
        self._answering = False

    @property
    def usage(self) -> Usage:
        """What the backend reported, or was counted."""
        return self._chunks.usage if self._status == 200 else super().usage

    def fail(self, failure: Failure) -> None:
        """The exchange broke; but behind `[DONE]` nothing is missing, and an error there would be one too many."""
        if self._chunks.done and self._verdict is None:
            self._complete()
        else:
            super().fail(failure)

    def _accepted_types(self) -> tuple[bytes, ...]:
        return (_EVENT_STREAM,)

    def _take(self, chunk: bytes) -> None:
        if self._chunks.done:
            return
        try:
            block = self._splitter.feed(chunk)
            if block and (block := self._chunks.feed(block)):
                self._pass(block)
        except EventTooLarge:
            self._give_up("The backend sent an event that is too large.")
        except UpstreamFailed as error:
            self._give_up(error.message)

    def _finish(self) -> None:
        """The stream has ended: pass on what closes it. A chunk that can't be closed is a failure."""
        try:
            rest = self._chunks.feed(self._splitter.finish()) + self._chunks.finish()
            if rest:
                self._pass(rest)
        except UpstreamFailed as error:
            self._verdict = Lost(error.message)
        if self._verdict is not None:
            self._told.failed(self._verdict, self.usage)
        else:
            self._complete()

    def _pass(self, block: bytes) -> None:
        if not self._answering:
            self._answering = True
            self._told.answering(_EVENT_STREAM)
        self._told.passed(block)

    def _complete(self) -> None:
        self._told.completed(self.usage)


class CollectedAttempt(Attempt[Question]):
    """An answer that is passed on once it is whole."""

    def _take(self, chunk: bytes) -> None:
        self._collected += chunk
        if len(self._collected) > MAX_WHOLE_BYTES:
            self._give_up("The backend's answer is too large.")

    def _finish(self) -> None:
        try:
            answer, usage = self._read(bytes(self._collected))
        except InvalidRequest as error:
            self._told.rejected(error, self.usage)
            return
        except UpstreamFailed as error:
            self._told.failed(Lost(error.message), self.usage)
            return
        self._told.answering(_JSON)
        self._told.passed(answer)
        self._told.completed(usage)

    @abstractmethod
    def _read(self, answer: bytes) -> tuple[bytes, Usage]:
        """What is passed on of *answer*, and what it cost.

        Raises:
            UpstreamFailed: it isn't an answer.
            InvalidRequest: it shows that the request can't be answered.
        """


class WholeAttempt(CollectedAttempt[InferenceBody]):
    """A whole answer as the backend gives it, made strict."""

    def _read(self, answer: bytes) -> tuple[bytes, Usage]:
        return meter_whole(answer, self._body)


class AssembledAttempt(StreamAttempt):
    """A whole answer put together from a stream, for a backend that only stops a streamed request."""

    passes_on = False

    def __init__(self, told: Told, body: InferenceBody) -> None:
        super().__init__(told, body)
        self._assembler = Assembler()
        self._size = 0

    def _pass(self, block: bytes) -> None:
        self._size += len(block)
        if self._size > MAX_WHOLE_BYTES:
            raise UpstreamFailed("The backend's answer is too large.")
        for event in events(block):
            data = data_of(event)
            if data is not None and data != b"[DONE]":
                self._add(data)

    def _add(self, data: bytes) -> None:
        try:
            self._assembler.add(_decode(data))
        except (msgspec.DecodeError, RecursionError, AttributeError, TypeError):
            raise UpstreamFailed("The backend sent a chunk of an unknown shape.") from None

    def _complete(self) -> None:
        answer = self._assembler.whole()
        answer["usage"] = answer.get("usage") or usage_member(self.usage)
        self._told.answering(_JSON)
        self._told.passed(msgspec.json.encode(answer))
        self._told.completed(self.usage)


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def _seconds(value: bytes | None) -> float | None:
    return float(value) if value is not None and value.isdigit() and len(value) < 9 else None
