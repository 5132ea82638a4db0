"""Requests as bytes: golden, and closed against smuggling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.wire.http1_request import RequestEncoder

ENCODER = RequestEncoder(host="gpu:8000", prefix="/base", headers=[(b"Authorization", b"Bearer k")])


@pytest.mark.req("C25")
@pytest.mark.parametrize(
    ("method", "headers", "body_bytes", "golden"),
    [
        pytest.param(
            "POST",
            [(b"content-type", b"application/json"), (b"x-request-id", b"req_1")],
            12,
            b"POST /base/v1/x?y=1 HTTP/1.1\r\nHost: gpu:8000\r\nAuthorization: Bearer k\r\nAccept-Encoding: identity\r\n"
            b"content-length: 12\r\ncontent-type: application/json\r\nx-request-id: req_1\r\n\r\n",
            id="post",
        ),
        pytest.param(
            "POST",
            [],
            0,
            b"POST /base/v1/x?y=1 HTTP/1.1\r\nHost: gpu:8000\r\nAuthorization: Bearer k\r\nAccept-Encoding: identity\r\n"
            b"content-length: 0\r\n\r\n",
            id="empty post",
        ),
        pytest.param(
            "GET",
            [(b"accept", b"*/*")],
            0,
            b"GET /base/v1/x?y=1 HTTP/1.1\r\nHost: gpu:8000\r\nAuthorization: Bearer k\r\nAccept-Encoding: identity\r\n"
            b"accept: */*\r\n\r\n",
            id="get",
        ),
    ],
)
def test_golden(method: str, headers: list[tuple[bytes, bytes]], body_bytes: int, golden: bytes) -> None:
    assert ENCODER.encode(method, "/v1/x?y=1", headers, body_bytes) == golden
    assert ENCODER.encode(method, "/v1/x?y=1", headers, body_bytes) == golden


@pytest.mark.parametrize("method", ["", "get", "GET ", "GET\r\n", "G\0T", "CONNECT", "PÖST"])
def test_refuses_a_method(method: str) -> None:
    with pytest.raises(ValueError, match="method"):
        ENCODER.encode(method, "/", [], 0)


@pytest.mark.parametrize(
    "path", ["", "v1", "/a b", "/a\r\nX: y", "/a\n", "/a\0", "/é", "/a#b", "/\x7f", "http://x/"]
)
def test_refuses_a_path(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        ENCODER.encode("GET", path, [], 0)


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r\nb", b"\0", b"Upper", b"\xff", b"a\n"])
def test_refuses_a_name(name: bytes) -> None:
    with pytest.raises(ValueError, match="token"):
        ENCODER.encode("GET", "/", [(name, b"v")], 0)


@pytest.mark.parametrize("value", [b"a\r\nX: y", b"a\nb", b"a\rb", b"a\0b", b"\r\n", b"a\n\r"])
def test_refuses_a_value(value: bytes) -> None:
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        ENCODER.encode("GET", "/", [(b"x", value)], 0)
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        RequestEncoder(host="h", headers=[(b"x", value)])


@pytest.mark.parametrize(
    "name",
    [
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"accept-encoding",
        b"authorization",
        b"x-key",
    ],
)
def test_refuses_what_the_connector_sets(name: bytes) -> None:
    encoder = RequestEncoder(host="h", headers=[(b"X-Key", b"secret")])
    with pytest.raises(ValueError, match="connector's"):
        encoder.encode("GET", "/", [(name, b"1")], 0)


def test_caches_stay_bounded() -> None:
    encoder = RequestEncoder(host="h")
    for number in range(2000):
        head = encoder.encode("GET", f"/{number}", [(b"x-%d" % number, b"1")], 0)
        assert head.startswith(b"GET /%d HTTP/1.1\r\n" % number)
    assert len(encoder._lines) <= 256
    assert len(encoder._names) <= 256


@given(
    method=st.sampled_from(["GET", "POST"]),
    path=st.text(max_size=20).map("/{}".format),
    headers=st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=12)), max_size=3),
)
def test_what_is_written_is_one_request(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> None:
    try:
        head = ENCODER.encode(method, path, headers, 7)
    except ValueError:
        return
    lines = head.split(b"\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert head.count(b"\r\n\r\n") == 1
    assert len(lines) == len(headers) + 7  # request line, four of ours, and what the last two line ends leave
    assert lines[5:-2] == [name + b": " + value for name, value in headers]
    assert head.count(b"\n") == head.count(b"\r") == len(lines) - 1
