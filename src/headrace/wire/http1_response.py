"""HTTP/1.1 responses, read as they come, without sockets.

Sources: RFC 9110 and RFC 9112. The status line, the fields and the chunked coding are read by llhttp (through httptools)
in its strict mode. llhttp knows neither that a response answers HEAD nor that the input has ended, takes other protocols'
status lines, and puts trailers among the headers: all that is decided here. The peer isn't trusted: what is ambiguous
about where a message ends is an error, since a guess would let one answer be taken for another.
"""

from __future__ import annotations

from typing import Final, Protocol

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser

from headrace.wire.http1_template import HeadTemplate

Headers = list[tuple[bytes, bytes]]

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 128
MAX_INTERIM = 16
"""1xx responses before the final one."""

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection transfer-encoding te trailer upgrade proxy-authenticate "
    b"proxy-authorization".split()
)

_MAX_OVERHEAD_BYTES = 2 * MAX_HEAD_BYTES
_HEAD_END = b"\r\n\r\n"


class ResponseError(Exception):
    """What came isn't a response we accept, and nothing after it can be believed. The message names the fault, and quotes
    nothing that the peer sent."""


class Receiver(Protocol):
    """Who is told what a response says."""

    def head(self, status: int, headers: Headers) -> None:
        """The final status and the end-to-end fields, names in lower case."""

    def data(self, chunk: bytes) -> None:
        """Some bytes of the body, never empty."""


# where a reader stands: plain numbers, since looking up a member of an Enum costs more than reading a chunk
_CHUNKED: Final = 0
_LENGTH: Final = 1
_UNTIL_CLOSE: Final = 2
_HEAD: Final = 3
_COMPLETE: Final = 4


class KnownHead:
    """A final head that was read and found right: what it says, all but its content-length."""

    __slots__ = ("headers", "keep_alive", "persistent", "status", "template")

    def __init__(self, template: HeadTemplate, status: int, reader: ResponseReader) -> None:
        self.template = template
        self.status = status
        self.headers = [field for field in reader.headers if field[0] != b"content-length"]
        self.keep_alive = reader.keep_alive
        self.persistent = reader.persistent


class ResponseReader:
    """Reads one response, cut into pieces anywhere, and tells the receiver.

    The receiver hears the same whatever the cuts; it may be replaced at any time (`receiver`). Bytes that come behind the
    end are counted as `surplus`, and not read. Interim (1xx) responses are skipped, trailers dropped.

    answers_head: the request was HEAD, so there is no body whatever the fields say.
    known: the head of the response before on the same connection, if there is one to know again; and then of this one.
    persistent: the peer means to keep the connection open.
    headed: the final head was told.
    keep_alive: value of the Keep-Alive field, empty without one.
    surplus: something follows the end of the response.
    """

    __slots__ = (
        "_answers_head", "_chunked", "_framing", "_interim", "_length", "_named", "_overhead", "_parser", "_partial",
        "_remaining", "_trailer_fields", "headed", "headers", "keep_alive", "known", "persistent", "receiver", "surplus",
    )  # fmt: skip

    def __init__(
        self, receiver: Receiver, *, answers_head: bool = False, known: KnownHead | None = None
    ) -> None:
        self.receiver = receiver
        self.known = known
        self._answers_head = answers_head
        self._framing = _HEAD
        self._partial: bytearray | None = None
        self._parser: HttpResponseParser | None = None
        self._interim = 0
        self.persistent = False
        self._chunked = False
        self._overhead = 0
        self._trailer_fields = 0
        self.headed = False
        self.surplus = False
        self.keep_alive = b""

    @property
    def complete(self) -> bool:
        """Whether the response has ended by its own framing."""
        return self._framing == _COMPLETE

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks; known with the head."""
        return self._chunked

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request: the response is complete, the peer keeps the connection open,
        and nothing follows."""
        return self.persistent and not self.surplus and self._framing == _COMPLETE

    def feed(self, data: bytes) -> bool:
        """Take what was read, never empty; True once the response is complete.

        Raises:
            ResponseError: this can't be (the rest of) a response. What was told so far stands; feed no more.
            Exception: whatever the receiver raised; feed no more.
        """
        framing = self._framing
        if framing == _CHUNKED:
            self._overhead += len(data)
            self._parse(self._parser, data)
            if self._framing == _CHUNKED and self._overhead <= _MAX_OVERHEAD_BYTES:
                return False
            return self._end_chunked(data)
        if framing == _LENGTH:
            return self._feed_length(data)
        if framing == _UNTIL_CLOSE:
            self.receiver.data(data)
            return False
        if framing == _HEAD:
            return self._feed_head(data)
        self.surplus = True
        return True

    def end_of_input(self) -> bool:
        """The peer will send no more, and said so orderly. True when that makes the response complete."""
        if self._framing == _UNTIL_CLOSE:
            self._framing = _COMPLETE
        return self.complete

    def release(self) -> None:
        """Let go of the parser, which refers back to this reader: spares the collector a cycle. Feed no more."""
        self._parser = None

    # -- the head ------------------------------------------------------------------------------------------------------

    def _feed_head(self, data: bytes) -> bool:
        start = 0
        partial = self._partial
        if partial is None:
            if (
                self.known is not None
                and not self._answers_head
                and (match := self.known.template.match(data))
            ):
                return self._feed_known(self.known, *match, data)
        else:
            start = max(0, len(partial) - 3)
            partial += data
        while True:
            end = (data if partial is None else partial).find(_HEAD_END, start)
            if end < 0 or end > MAX_HEAD_BYTES - 4:
                return self._keep_partial(bytearray(data) if partial is None else partial)
            if partial is not None:
                data, partial, self._partial = bytes(partial), None, None
            end += 4
            final = self._read_head(data[:end])
            data, start = data[end:], 0
            if final:
                return self._begin_body(data)

    def _feed_known(self, known: KnownHead, length: int, end: int, data: bytes) -> bool:
        """The head is like one that was read before, and the body begins at *end*."""
        self.headed = True
        self._chunked = False
        self.persistent = known.persistent
        self.keep_alive = known.keep_alive
        self._framing, self._remaining = _LENGTH, length
        self.receiver.head(known.status, [*known.headers, (b"content-length", b"%d" % length)])
        return self._begin_body(data[end:])

    def _keep_partial(self, partial: bytearray) -> bool:
        if len(partial) >= MAX_HEAD_BYTES:
            raise ResponseError("the response's head is over 64 KiB")
        if not partial.startswith(b"HTTP/1."[: len(partial)]):
            raise ResponseError("the peer doesn't speak HTTP/1")
        self._partial = partial
        return False

    def _read_head(self, block: bytes) -> bool:
        """Read one whole head; False for an interim one."""
        if not block.startswith(b"HTTP/1.") or b"\0" in block:
            raise ResponseError("the peer doesn't speak HTTP/1")
        if block.count(b"\n") > MAX_FIELDS + 2:
            raise ResponseError("the response has more than 128 fields")
        self.headers: Headers = []
        self._named: bytes = b""
        self._length = -1
        self._chunked = False
        parser = self._parser = HttpResponseParser(self)
        self._parse(parser, block)
        status: int = parser.get_status_code()
        if not self.headed:
            raise ResponseError("the response's head is malformed")
        if status < 200:
            self._skip_interim(status)
            return False
        if status > 599:
            raise ResponseError("the response's status is not one of HTTP's")
        self._choose_framing(status, old=block[7:8] == b"0")
        self.known = self._remember(status, block)
        self.receiver.head(status, self.headers)
        return True

    def _remember(self, status: int, block: bytes) -> KnownHead | None:
        if self._chunked or self._answers_head or status in (204, 304) or not self.persistent:
            return None
        template = HeadTemplate.of(block)
        return KnownHead(template, status, self) if template else None

    def _skip_interim(self, status: int) -> None:
        self.headed = False
        self._interim += 1
        if status < 100 or status == 101 or self._interim > MAX_INTERIM:
            raise ResponseError("the peer switches protocols, or only ever sends interim responses")

    def _choose_framing(self, status: int, *, old: bool) -> None:
        options = {option.strip() for option in self._named.lower().split(b",")} if self._named else set()
        if options:
            self.headers = [field for field in self.headers if field[0] not in options]
        self.persistent = (
            b"keep-alive" in options and b"close" not in options if old else b"close" not in options
        )
        if old and self._chunked:
            raise ResponseError("an HTTP/1.0 response can't be chunked")
        if self._answers_head or status in (204, 304):
            self._framing, self._remaining = _LENGTH, 0
        elif self._chunked:
            self._framing = _CHUNKED
            return
        elif self._length >= 0:
            self._framing, self._remaining = _LENGTH, self._length
        else:
            self._framing, self.persistent = _UNTIL_CLOSE, False
        self._parser = None

    def _begin_body(self, data: bytes) -> bool:
        if self._framing == _LENGTH and not self._remaining:
            self._framing = _COMPLETE
            self.surplus = bool(data)
            return True
        return self.feed(data) if data else False

    # -- the body ------------------------------------------------------------------------------------------------------

    def _feed_length(self, data: bytes) -> bool:
        remaining = self._remaining = self._remaining - len(data)
        if remaining > 0:
            self.receiver.data(data)
            return False
        self._framing = _COMPLETE
        if remaining:
            self.surplus = True
            data = data[:remaining]
        self.receiver.data(data)
        return True

    def _end_chunked(self, data: bytes) -> bool:
        if self._framing != _COMPLETE:
            # llhttp bounds neither trailers nor chunk extensions, and httptools keeps the value it is in
            raise ResponseError("the response's trailers or chunk extensions are too long")
        # llhttp skips line ends before the next status line without a word
        clean = (
            data[-5] not in b"\r\n" and data.endswith(_HEAD_END)
            if len(data) > 4
            else _HEAD_END.endswith(data)
        )
        self.surplus = self.surplus or not clean
        self._parser = None
        return True

    def _parse(self, parser: HttpResponseParser | None, data: bytes) -> None:
        try:
            parser.feed_data(data)  # type: ignore[union-attr] # None only after `release`
        except (HttpParserError, HttpParserUpgrade) as error:
            if self._framing == _COMPLETE:
                self.surplus = True
                return
            cause = error.__context__ if isinstance(error, HttpParserCallbackError) else None
            raise (cause or ResponseError(f"the response is malformed: {error}")) from None

    # -- what the parser tells -----------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field of the head, or of the trailers."""
        if self.headed:
            self._trailer_fields += 1
            if self._trailer_fields > MAX_FIELDS:
                raise ResponseError("the response has more than 128 trailers")
            return
        name = name.lower()
        value = value.rstrip(b" \t")
        if name in HOP_BY_HOP:
            self._on_hop_by_hop(name, value)
            return
        if name == b"content-length":
            self._length = int(value)
        self.headers.append((name, value))

    def _on_hop_by_hop(self, name: bytes, value: bytes) -> None:
        if name == b"connection":
            self._named += b"," + value
        elif name == b"keep-alive":
            self.keep_alive = value
        elif name == b"transfer-encoding":
            if self._chunked or value.lower() != b"chunked":
                raise ResponseError("the response has a transfer coding other than chunked")
            self._chunked = True

    def on_headers_complete(self) -> None:
        """The empty line was read."""
        self.headed = True

    def on_message_begin(self) -> None:
        """A status line begins; behind a complete response that is surplus."""
        if self._framing == _COMPLETE:
            raise ResponseError("something follows the response")

    def on_body(self, chunk: bytes) -> None:
        """Some bytes of a chunk."""
        self._overhead = 0
        self.receiver.data(chunk)

    def on_message_complete(self) -> None:
        """The message has ended, as llhttp sees it: true of chunked ones only, since the others never show it their body."""
        if self._framing == _CHUNKED:
            self._framing = _COMPLETE
