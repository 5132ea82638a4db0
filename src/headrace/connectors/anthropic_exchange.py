"""One exchange with a backend that speaks Anthropic's Messages API, as one in OpenAI's form."""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from headrace.connectors.anthropic_outlet import Outlet
from headrace.connectors.refusals import retry_after
from headrace.kernel.errors import InvalidRequest
from headrace.ports.connector import Busy, Exchange, Failure, Headers, Lost, NotSent, Sink
from headrace.wire.anthropic import Malformed, completion
from headrace.wire.anthropic_errors import ApiError, Meaning, meaning, read_api_error, refused_envelope
from headrace.wire.anthropic_request import Asked
from headrace.wire.anthropic_stream import MessageStream
from headrace.wire.openai import MAX_MESSAGE_CHARS, error_envelope
from headrace.wire.sse import EventSplitter, EventTooLarge

MAX_ERROR_BYTES = 64 * 1024
MAX_WHOLE_BYTES = 32 * 1024 * 1024
_JSON = b"application/json"
_EVENT_STREAM = b"text/event-stream"
_NOT_PASSED_ON = frozenset({b"content-length", b"content-type"})


class RefusedExchange(Exchange):
    """A request that the backend isn't asked, because it couldn't do what is wanted: answered with *status*, soon."""

    def __init__(self, outlet: Outlet, status: int, error: InvalidRequest) -> None:
        self._outlet = outlet
        self._status = status
        self._error = error
        self._cancelled = False
        asyncio.get_running_loop().call_soon(self._tell)

    def pause(self) -> None:
        """See the port."""
        self._outlet.pause()

    def resume(self) -> None:
        """See the port."""
        self._outlet.resume()

    def cancel(self) -> None:
        """See the port."""
        if self._outlet.over or self._cancelled:
            return
        self._cancelled = True
        if self._outlet.ended:
            self._outlet.drop()
            asyncio.get_running_loop().call_soon(self._outlet.fail, NotSent("cancelled"))

    def _tell(self) -> None:
        if self._cancelled:
            self._outlet.fail(NotSent("cancelled before it was sent"))
            return
        error = self._error
        _refuse(
            self._outlet,
            self._status,
            error_envelope(error.message, type_="invalid_request_error", param=error.param, code=error.code),
        )


class MessagesExchange(Exchange, Sink):
    """The handle of one exchange, and the sink of the one beneath it, which translates the answer.

    `below`: that exchange; set right after it was started.
    """

    below: Exchange

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._cancelled = False
        self._status = 0
        self._retry_after_s: float | None = None
        self._verdict: Failure | None = None
        self._error = bytearray()

    # -- what the one who asked wants ------------------------------------------------------------------------------------

    def pause(self) -> None:
        """See the port."""
        if not self._cancelled:
            self._outlet.pause()
            self.below.pause()

    def resume(self) -> None:
        """See the port. What was held comes before what is read anew."""
        if not self._cancelled:
            self._outlet.resume()
            self.below.resume()

    def cancel(self) -> None:
        """See the port."""
        if self._cancelled or self._outlet.over:
            return
        self._cancelled = True
        complete = self._outlet.ended
        self._outlet.drop()
        if complete:
            asyncio.get_running_loop().call_soon(
                self._outlet.fail, Lost("cancelled, and the backend has ended")
            )
        else:
            self.below.cancel()

    # -- what the backend answers ----------------------------------------------------------------------------------------

    def head(self, status: int, headers: Headers) -> None:
        """Pass it on, where it isn't an error's: of those it isn't known yet what they mean."""
        self._status = status
        fields = dict(headers)
        self._retry_after_s = retry_after(headers)
        if status != 200:
            return
        content_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if content_type != self._content_type():
            self._give_up(
                Lost(f"The backend answered with {content_type.decode('latin-1')[:80] or 'no content type'}.")
            )
            return
        kept = [field for field in headers if field[0] not in _NOT_PASSED_ON]
        self._outlet.head(200, [(b"content-type", self._content_type()), *kept])

    def data(self, chunk: bytes) -> None:
        """Translate it, or collect it."""
        if self._verdict is not None:
            return
        if self._status == 200:
            self._take(chunk)
        elif len(self._error) < MAX_ERROR_BYTES:
            self._error += chunk

    def end(self) -> None:
        """The body is complete, or so the backend says."""
        if self._cancelled:
            self._outlet.fail(Lost("cancelled, and the backend has ended"))
        elif self._verdict is not None:
            self._outlet.fail(self._verdict)
        elif self._status == 200:
            self._finish()
        else:
            self._judge()

    def fail(self, failure: Failure) -> None:
        """It broke; or it was cut, by us, for a reason of ours."""
        self._outlet.fail(self._verdict or failure)

    @abstractmethod
    def _content_type(self) -> bytes:
        """Of the answer that was asked for; it is the same there and here."""

    @abstractmethod
    def _take(self, chunk: bytes) -> None:
        """Some of the body of a 200."""

    @abstractmethod
    def _finish(self) -> None:
        """The body of a 200 is complete."""

    def _give_up(self, failure: Failure) -> None:
        """This can't become an answer: stop the backend, and say so when it has stopped."""
        self._verdict = failure
        self.below.cancel()

    def _judge(self) -> None:
        """What an error instead of an answer means."""
        error = read_api_error(bytes(self._error))
        what = meaning(self._status, error)
        if what is Meaning.REFUSED:
            _refuse(self._outlet, self._status, refused_envelope(error))
        elif what is Meaning.KEY:
            # Its text is about our key; and whoever judges the status says all that others may know.
            status = self._status if self._status in (401, 403, 407) else 401
            _refuse(self._outlet, status, error_envelope("", type_="authentication_error"))
        else:
            self._outlet.fail(
                failure_of(what, error, f"The backend answered {self._status}", self._retry_after_s)
            )


class StreamExchange(MessagesExchange):
    """An answer that is streamed."""

    def __init__(self, outlet: Outlet, asked: Asked, created: int) -> None:
        super().__init__(outlet)
        self._splitter = EventSplitter()
        self._stream = MessageStream(model=asked.model, created=created, include_usage=asked.include_usage)

    def fail(self, failure: Failure) -> None:
        """See above; but behind the end nothing is missing."""
        if self._stream.done and not self._cancelled:
            self._outlet.end()
        else:
            super().fail(failure)

    def _content_type(self) -> bytes:
        return _EVENT_STREAM

    def _take(self, chunk: bytes) -> None:
        if self._stream.done:
            return
        try:
            block = self._splitter.feed(chunk)
        except EventTooLarge:
            self._give_up(Lost("The backend sent an event that is too large."))
            return
        if block:
            self._pass_on(self._stream.feed(block))

    def _finish(self) -> None:
        if not self._stream.done:
            self._pass_on(self._stream.feed(self._splitter.finish()) + self._stream.finish())
        if self._verdict is not None:
            self._outlet.fail(self._verdict)
        else:
            self._outlet.end()

    def _pass_on(self, chunks: bytes) -> None:
        if chunks:
            self._outlet.data(chunks)
        broken = self._stream.broken
        if broken is None or self._cancelled:
            return
        if isinstance(broken, Malformed):
            self._give_up(Lost(str(broken)))
            return
        what = meaning(200, broken)
        if self._stream.begun and what is not Meaning.FAILED:
            what = Meaning.FAILED  # whatever its reason: something was done, so that trying again isn't free
        self._give_up(failure_of(what, broken, "The backend broke off", self._retry_after_s))


class WholeExchange(MessagesExchange):
    """An answer that comes whole."""

    def __init__(self, outlet: Outlet, asked: Asked, created: int) -> None:
        super().__init__(outlet)
        self._model = asked.model
        self._created = created
        self._body = bytearray()

    def _content_type(self) -> bytes:
        return _JSON

    def _take(self, chunk: bytes) -> None:
        self._body += chunk
        if len(self._body) > MAX_WHOLE_BYTES:
            self._body.clear()
            self._give_up(Lost("The backend's answer is too large."))

    def _finish(self) -> None:
        try:
            answer = completion(bytes(self._body), model=self._model, created=self._created)
        except Malformed as error:
            self._outlet.fail(Lost(str(error)))
            return
        self._outlet.data(answer)
        self._outlet.end()


def failure_of(what: Meaning, error: ApiError, when: str, retry_after_s: float | None) -> Failure:
    """An error as a failure of the exchange. What it says of our account and its limits is not for clients."""
    if what is Meaning.BUSY:
        return Busy("The backend is overloaded, or its limit for us is reached.", retry_after_s)
    if what is Meaning.ACCOUNT:
        return NotSent(
            "The backend doesn't work for our account: it is out of credit, or its limit is reached."
        )
    if what is Meaning.KEY:
        return NotSent("The backend refused our credentials.", refused_key=True)
    return Lost(f"{when}: {error.message[:MAX_MESSAGE_CHARS]}" if error.message else f"{when}.")


def _refuse(outlet: Outlet, status: int, envelope: bytes) -> None:
    outlet.head(status, [(b"content-type", _JSON)])
    outlet.data(envelope)
    outlet.end()
