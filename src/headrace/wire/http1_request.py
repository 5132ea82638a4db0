"""HTTP/1.1 requests as bytes, without sockets.

Sources: RFC 9110 and RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from headrace.wire.http1_response import HOP_BY_HOP, Headers

_OURS = HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"authorization", b"expect"}
_MAX_CACHED = 256
_METHOD = re.compile(r"[A-Z]+")
_PATH = re.compile(r'/[!"$-~]*')
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_WITHOUT_LENGTH = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})


class RequestEncoder:
    """Writes the heads of the requests that go to one place.

    host: value of the Host field. prefix: comes before each path; no slash at its end. headers: sent with every request
    (credentials are here); their names may be in any case.

    Raises:
        ValueError: *host*, *prefix* or *headers* can't be written as HTTP.
    """

    __slots__ = ("_constant", "_lines", "_names", "_prefix", "_reserved")

    def __init__(self, *, host: str, prefix: str = "", headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        if prefix and not _PATH.fullmatch(prefix):
            raise ValueError("a path prefix begins with a slash and has only visible ASCII characters")
        self._prefix = prefix
        self._lines: dict[tuple[str, str], bytes] = {}
        self._names: set[bytes] = set()
        self._reserved = _OURS | {name.lower() for name, _ in headers}
        constant = [(b"Host", host.encode("ascii")), *headers, (b"Accept-Encoding", b"identity")]
        for name, _ in constant:
            if not _NAME.fullmatch(name.lower()):
                raise ValueError("a header name is not a token")
        self._constant = _block(constant)

    def encode(self, method: str, path: str, headers: Headers, body_bytes: int) -> bytes:
        """The request line and all fields; the body of *body_bytes* bytes follows it.

        Raises:
            ValueError: the caller's fault, since a request that is written wrongly could be read as two: the method, the
                path or a field holds what HTTP forbids (CR, LF and NUL above all), or a field is one that this side sets.
        """
        line = self._lines.get((method, path)) or self._line(method, path)
        known = self._names
        for name, _ in headers:
            if name not in known:
                self._admit(name)
        block = _block(headers) if headers else b""
        if body_bytes or method not in _WITHOUT_LENGTH:
            return b"%b%bcontent-length: %d\r\n%b\r\n" % (line, self._constant, body_bytes, block)
        return b"%b%b%b\r\n" % (line, self._constant, block)

    def _line(self, method: str, path: str) -> bytes:
        if not _METHOD.fullmatch(method) or method == "CONNECT":
            raise ValueError("the method is not one that a request to a backend can have")
        if not _PATH.fullmatch(path):
            raise ValueError(
                "the path must begin with a slash and have only visible ASCII characters, and no '#'"
            )
        line = f"{method} {self._prefix}{path} HTTP/1.1\r\n".encode("ascii")
        if len(self._lines) >= _MAX_CACHED:
            self._lines.clear()
        self._lines[method, path] = line
        return line

    def _admit(self, name: bytes) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError("a header name must be a token in lower case")
        if name in self._reserved:
            raise ValueError(f"the header {name.decode()!r} is the connector's to set")
        if len(self._names) >= _MAX_CACHED:
            self._names.clear()
        self._names.add(name)


def _block(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    block = b"".join([b"%b: %b\r\n" % field for field in headers])
    if block.count(b"\n") != len(headers) or block.count(b"\r") != len(headers) or b"\0" in block:
        raise ValueError("a header value must not contain CR, LF or NUL")
    return block
