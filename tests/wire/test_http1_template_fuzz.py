"""A head that is known again is the one that was read before, but for the digits of its content-length; nothing else passes."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.wire.http1_template import MAX_TEMPLATE_BYTES, HeadTemplate

FIELDS = [
    b"host: x",
    b"x: content-lengt",
    b"Connection: keep-alive",
    b"accept:*/*",
    b"transfer-encoding: chunked",
]
lengths = st.sampled_from([b"content-length: ", b"Content-Length:", b"CONTENT-LENGTH:\t "])
fields = st.lists(st.sampled_from(FIELDS), max_size=3)
numbers = st.sampled_from([b"0", b"5", b"12", b"007", b"9" * 15]) | st.integers(0, 99999).map(b"%d".__mod__)
odd_numbers = st.sampled_from(
    [b"", b" 5", b"5 ", b"+5", b"-5", b"5,5", b"5;", b"0x5", b"9" * 16, b"\xb2", b"5\r\nx: y", b"5\n", b"5\0"]
)


def head(before: list[bytes], name: bytes, number: bytes, after: list[bytes]) -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", *before, name + number, *after, b"", b""])


@given(fields, lengths, fields, numbers, numbers | odd_numbers, st.binary(max_size=30), st.data())
def test_what_matches_differs_in_digits_alone(
    before: list[bytes],
    name: bytes,
    after: list[bytes],
    first: bytes,
    second: bytes,
    body: bytes,
    data: st.DataObject,
) -> None:
    template = HeadTemplate.of(head(before, name, first, after) + body)
    assert template is not None
    came = head(before, name, second, after) + body
    if data.draw(st.booleans()):  # something else is different, too
        at = data.draw(st.integers(0, len(came)))
        came = came[:at] + data.draw(st.binary(max_size=3)) + came[at + data.draw(st.integers(0, 2)) :]
    match = template.match(came)
    if match is None:
        assert came != head(before, name, first, after) + body
        return
    length, start = match
    block = came[:start]
    digits = block[len(head(before, name, b"", [])) - 4 :][: len(block) - len(head(before, name, b"", after))]
    assert digits.isdigit()
    assert len(digits) <= 15
    assert int(digits) == length
    assert block == head(before, name, digits, after)


@given(fields, lengths, fields, numbers, numbers, st.binary(max_size=30))
@example([], b"content-length: ", [], b"5", b"6", b"\r\n\r\n")
def test_only_the_number_is_free_to_change(
    before: list[bytes], name: bytes, after: list[bytes], first: bytes, second: bytes, body: bytes
) -> None:
    template = HeadTemplate.of(head(before, name, first, after))
    assert template is not None
    block = head(before, name, second, after)
    assert template.match(block + body) == (int(second), len(block))


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nx-content-length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nx: content-length\r\ncontent-length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: \r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 9999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nx: " + b"a" * MAX_TEMPLATE_BYTES + b"\r\ncontent-length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\n",
    ],
)
def test_what_serves_as_no_template(block: bytes) -> None:
    assert HeadTemplate.of(block) is None
