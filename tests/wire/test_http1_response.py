"""Responses read from bytes: every framing, any cuts, no trust."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.wire.http1_response import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_INTERIM,
    Headers,
    ResponseError,
    ResponseReader,
)

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n"


@dataclass
class Told:
    """What a receiver heard."""

    status: int | None = None
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    data_calls: int = 0

    def head(self, status: int, headers: Headers) -> None:
        assert self.status is None
        self.status, self.headers = status, headers

    def data(self, chunk: bytes) -> None:
        assert self.status is not None
        assert chunk
        self.body += chunk
        self.data_calls += 1


@dataclass(frozen=True)
class Reading:
    """How a response was understood."""

    status: int | None
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    complete: bool
    reusable: bool
    malformed: bool


def read(*pieces: bytes, answers_head: bool = False, eof: bool = False) -> Reading:
    """Feed the pieces as a connection would."""
    told = Told()
    reader = ResponseReader(told, answers_head=answers_head)
    malformed = False
    for piece in pieces:
        try:
            if piece and reader.feed(piece) != reader.complete:
                raise AssertionError("feed and complete disagree")
        except ResponseError:
            malformed = True
            break
    if eof and not malformed:
        reader.end_of_input()
    return Reading(told.status, tuple(told.headers), told.body, reader.complete, reader.reusable, malformed)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """The same bytes in pieces."""
    edges = [0, *sorted({edge % (len(data) + 1) for edge in at}), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


VALID = {
    "content-length": (OK + b"Content-Type: a/b\r\nContent-Length: 11\r\n\r\nhello world", False, b"hello world", True),
    "empty": (OK + b"Content-Length: 0\r\n\r\n", False, b"", True),
    "chunked": (CHUNKED + b"\r\n5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n", False, b"hello world", True),
    "chunked lines": (CHUNKED + b"\r\n8\r\na\r\n\r\n\r\nb\r\n0\r\n\r\n", False, b"a\r\n\r\n\r\nb", True),
    "trailers": (CHUNKED + b"\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\nX: y\r\n\r\n", False, b"hi", True),
    "until close": (OK + b"Content-Type: a/b\r\n\r\nhello", False, b"hello", False),
    "http/1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", False, b"hello", False),
    "http/1.0 length": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", False, b"hi", False),
    "http/1.0 kept": (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi", False, b"hi", True),
    "close": (OK + b"Connection: Close\r\nContent-Length: 2\r\n\r\nhi", False, b"hi", False),
    "close chunked": (CHUNKED + b"Connection: close\r\n\r\n2\r\nhi\r\n0\r\n\r\n", False, b"hi", False),
    "head": (OK + b"Content-Length: 500\r\n\r\n", True, b"", True),
    "head chunked": (CHUNKED + b"\r\n", True, b"", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", False, b"", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", False, b"", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", False, b"hi", True),
    "interim": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\nConnection: close\r\n\r\n" + CHUNKED
        + b"\r\n2\r\nhi\r\n0\r\n\r\n", False, b"hi", True,
    ),
}  # fmt: skip


@pytest.mark.req("D39")
@pytest.mark.parametrize("name", VALID)
def test_each_framing(name: str) -> None:
    response, answers_head, body, reusable = VALID[name]
    reading = read(response, answers_head=answers_head, eof=True)
    assert not reading.malformed
    assert reading.complete
    assert (reading.body, reading.reusable) == (body, reusable)
    assert {key for key, _ in reading.headers} <= {b"content-type", b"content-length"}


@pytest.mark.req("B16")
@pytest.mark.parametrize("name", VALID)
@given(at=st.lists(st.integers(0, 300), max_size=12))
@settings(max_examples=60)
def test_cuts_change_nothing(name: str, at: list[int]) -> None:
    response, answers_head, _, _ = VALID[name]
    whole = read(response, answers_head=answers_head, eof=True)
    assert read(*cut(response, at), answers_head=answers_head, eof=True) == whole


@pytest.mark.parametrize("name", VALID)
def test_byte_by_byte(name: str) -> None:
    response, answers_head, _, _ = VALID[name]
    pieces = [bytes([byte]) for byte in response]
    assert read(*pieces, answers_head=answers_head, eof=True) == read(
        response, answers_head=answers_head, eof=True
    )


@pytest.mark.parametrize("name", VALID)
def test_early_close_is_never_complete(name: str) -> None:
    response, answers_head, _, _ = VALID[name]
    until_close = name in ("until close", "http/1.0")
    for length in range(len(response)):
        reading = read(response[:length], answers_head=answers_head, eof=True)
        assert not reading.malformed
        assert reading.complete == (until_close and reading.status is not None)
        assert not reading.reusable


@pytest.mark.req("B16")
def test_each_piece_is_passed_on_at_once() -> None:
    told = Told()
    reader = ResponseReader(told)
    reader.feed(CHUNKED + b"\r\n")
    assert told.status == 200
    for number in range(1, 10):
        reader.feed(b"3\r\nabc\r\n")
        assert told.data_calls == number
    reader.feed(b"ffff\r\npart")
    assert told.body.endswith(b"part")


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    at=st.lists(st.integers(0, 400), max_size=10),
)
@example(chunks=[b"\r\n\r\n"], at=[])
def test_any_chunked_body(chunks: list[bytes], at: list[int]) -> None:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    reading = read(*cut(CHUNKED + b"\r\n" + coded + b"0\r\n\r\n", at))
    assert (reading.body, reading.complete, reading.reusable) == (b"".join(chunks), True, True)


MALFORMED = {
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
    "the same length twice": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "a list of lengths": OK + b"Content-Length: 2, 2\r\n\r\nhi",
    "signed length": OK + b"Content-Length: +2\r\n\r\nhi",
    "hex length": OK + b"Content-Length: 0x2\r\n\r\nhi",
    "empty length": OK + b"Content-Length: \r\n\r\nhi",
    "huge length": OK + b"Content-Length: 99999999999999999999\r\n\r\nhi",
    "length and chunked": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": CHUNKED + b"Content-Length: 2\r\n\r\n0\r\n\r\n",
    "gzip": OK + b"Transfer-Encoding: gzip\r\n\r\nhi",
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, gzip": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "almost chunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked http/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "NUL in a value": OK + b"A: b\0c\r\n\r\n",
    "NUL in the reason": b"HTTP/1.1 200 O\0K\r\n\r\n",
    "bare CR": OK + b"A: b\rB: c\r\n\r\n",
    "bare LF": OK + b"A: b\nB: c\r\n\r\n",
    "LF only": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n\r\n\r\n",
    "folded": OK + b"A: b\r\n c\r\n\r\n",
    "space before the colon": OK + b"Content-Length : 2\r\n\r\nhi",
    "no colon": OK + b"nonsense\r\n\r\n",
    "no name": OK + b": x\r\n\r\n",
    "leading space": OK + b" A: x\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "bare 101": b"HTTP/1.1 101 Switching\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\n\r\n",
    "ICY": b"ICY 200 OK\r\n\r\n",
    "lower case": b"http/1.1 200 OK\r\n\r\n",
    "leading line": b"\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    "leading head end": b"\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    "status 2000": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status 20": b"HTTP/1.1 20 OK\r\n\r\n",
    "status 000": b"HTTP/1.1 000 OK\r\n\r\n",
    "status 600": b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
    "status x": b"HTTP/1.1 2x0 OK\r\n\r\n",
    "a banner": b"SSH-2.0-OpenSSH_9.2\r\n",
    "html": b"<html>",
    "chunk size x": CHUNKED + b"\r\nx\r\n",
    "chunk size 0x2": CHUNKED + b"\r\n0x2\r\nhi\r\n",
    "chunk size -1": CHUNKED + b"\r\n-1\r\nhi\r\n",
    "chunk size 1_0": CHUNKED + b"\r\n1_0\r\nhi\r\n",
    "chunk size too big": CHUNKED + b"\r\nfffffffffffffffff\r\nhi",
    "chunk size with space": CHUNKED + b"\r\n2 \r\nhi\r\n",
    "chunk line ended by LF": CHUNKED + b"\r\n2\nhi\r\n",
    "chunk longer than said": CHUNKED + b"\r\n2\r\nhi!\r\n",
    "extension with LF": CHUNKED + b"\r\n2;a\nb\r\nhi\r\n",
    "bad trailer": CHUNKED + b"\r\n0\r\nA b\r\n\r\n",
    "length in the trailers": CHUNKED + b"\r\n0\r\nContent-Length: 9\r\n\r\n",
    "many fields": OK + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n",
    "many trailers": CHUNKED + b"\r\n0\r\n" + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n",
    "long head": OK + b"A: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "many interims": b"HTTP/1.1 100 C\r\n\r\n" * (MAX_INTERIM + 1) + OK + b"Content-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str) -> None:
    assert read(MALFORMED[name]).malformed
    assert not read(MALFORMED[name]).complete
    for step in (1, 7):
        response = MALFORMED[name]
        assert read(*[response[i : i + step] for i in range(0, len(response), step)]).malformed


def test_the_limits_themselves_are_allowed() -> None:
    fields = OK + b"Content-Length: 0\r\n" + b"A: b\r\n" * (MAX_FIELDS - 1) + b"\r\n"
    assert len(read(fields).headers) == MAX_FIELDS
    start = OK + b"Content-Length: 0\r\nA: "
    longest = start + b"b" * (MAX_HEAD_BYTES - len(start) - 4) + b"\r\n\r\n"
    assert read(longest).complete
    assert read(*cut(longest, [5, 60_000])).complete
    assert read(b"HTTP/1.1 100 C\r\n\r\n" * MAX_INTERIM + fields).complete


@pytest.mark.parametrize(
    "surplus",
    [
        b"x",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        OK + b"Content-Length: 2\r\n\r\nno",
        CHUNKED + b"\r\n2\r\nno\r\n",
    ],
)
@pytest.mark.parametrize("name", [name for name in VALID if name not in ("until close", "http/1.0")])
def test_what_follows_the_end_bars_reuse_and_changes_nothing(name: str, surplus: bytes) -> None:
    response, answers_head, body, _ = VALID[name]
    for pieces in ([response + surplus], [response, surplus]):
        reading = read(*pieces, answers_head=answers_head)
        assert (reading.complete, reading.malformed, reading.reusable) == (True, False, False)
        assert reading.body == body


def test_fields_named_by_connection_go() -> None:
    head = (
        OK
        + b"Connection: close, X-Hop ,content-length\r\nX-Hop: 1\r\nX-End: 2  \r\nContent-Length: 2\r\nTE: x\r\n\r\nhi"
    )
    reading = read(head)
    assert (reading.headers, reading.body, reading.complete) == (((b"x-end", b"2"),), b"hi", True)


def test_a_receivers_error_comes_out() -> None:
    class Broken(Told):
        def data(self, chunk: bytes) -> None:
            raise KeyError("mine")

    for response in (CHUNKED + b"\r\n2\r\nhi\r\n", OK + b"Content-Length: 2\r\n\r\nhi"):
        with pytest.raises(KeyError, match="mine"):
            ResponseReader(Broken()).feed(response)


def test_the_receiver_can_be_replaced_in_the_middle() -> None:
    second = Told(status=200)

    class First(Told):
        def data(self, chunk: bytes) -> None:
            super().data(chunk)
            reader.receiver = second
            reader.release()

    first = First()
    reader = ResponseReader(first)
    assert reader.feed(CHUNKED + b"\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
    assert (first.body, second.body) == (b"a", b"b")


def test_keep_alive_is_handed_out() -> None:
    reader = ResponseReader(Told())
    reader.feed(OK + b"Keep-Alive: timeout=5, max=100\r\nContent-Length: 0\r\n\r\n")
    assert reader.keep_alive == b"timeout=5, max=100"


def feed_often(reader: ResponseReader, piece: bytes) -> None:
    """As an endless peer would."""
    for _ in range(1000):
        reader.feed(piece)


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param((CHUNKED + b"\r\n0\r\nX: ", b"a" * 4096), id="trailer value"),
        pytest.param((CHUNKED + b"\r\n0\r\n", b"a" * 4096), id="trailer name"),
        pytest.param((CHUNKED + b"\r\n2;", b"a" * 4096), id="chunk extension"),
        pytest.param((OK, b"a" * 4096), id="field name"),
        pytest.param((b"HTTP/1.1 200 ", b"a" * 4096), id="reason"),
    ],
)
def test_endless_overhead_ends_and_takes_little_memory(endless: tuple[bytes, bytes]) -> None:
    first, again = endless
    reader = ResponseReader(Told())
    tracemalloc.start()
    try:
        reader.feed(first)
        with pytest.raises(ResponseError, match=r"too long|over 64 KiB"):
            feed_often(reader, again)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def hostile() -> st.SearchStrategy[bytes]:
    """Valid responses with bytes changed, cut out, put in, and plain garbage."""
    pool = [response for response, *_ in VALID.values()] + [r for r in MALFORMED.values() if len(r) < 2000]

    def spoil(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
        for position, length, piece in changes:
            start = position % (len(data) + 1)
            data = data[:start] + piece + data[start + length :]
        return data

    pieces = st.one_of(
        st.binary(max_size=6),
        st.sampled_from([b"\r\n", b"\r\n\r\n", b"\0", b"0", b"chunked", b"close", b": ", b"-"]),
    )
    changes = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), pieces), min_size=1, max_size=4)
    return st.one_of(st.binary(max_size=300), st.builds(spoil, st.sampled_from(pool), changes))


@given(data=hostile(), at=st.lists(st.integers(0, 400), max_size=6), answers_head=st.booleans())
@settings(max_examples=400)
def test_nothing_but_response_errors(data: bytes, at: list[int], answers_head: bool) -> None:
    whole = read(data, answers_head=answers_head, eof=True)
    parts = read(*cut(data, at), answers_head=answers_head, eof=True)
    assert len(whole.body) <= len(data)
    assert (parts.status, parts.headers, parts.body) == (whole.status, whole.headers, whole.body)
    assert (parts.complete, parts.malformed) == (whole.complete, whole.malformed)
