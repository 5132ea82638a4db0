"""The last lines of an engine's log, bounded, and free of what clients sent."""

from __future__ import annotations

import re
from collections import deque

_CLIENT_CONTENT = re.compile(r"(got exception|parse error|prompt|content)\b.*", re.IGNORECASE)
"""llama.cpp quotes the request in warnings of this kind (seen: a body that doesn't parse, a refused JSON schema)."""

_ERROR = re.compile(r"^[\d.]+ E (?:\S+ +)?\S+: (?P<text>.+)$")  # time, level, perhaps a module, function


class LogRing:
    """Keeps the last lines of a byte stream: at most `max_lines`, each cut at `max_line_bytes`."""

    def __init__(self, max_lines: int = 200, max_line_bytes: int = 500) -> None:
        self._lines: deque[str] = deque(maxlen=max_lines)
        self._max_line_bytes = max_line_bytes
        self._rest = b""
        self._cut = False  # the line that is coming was already kept as far as it may be

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream; lines may be cut anywhere."""
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._end_line(line)
        if not self._cut:
            self._rest = (self._rest + rest)[: self._max_line_bytes]
            self._cut = len(self._rest) == self._max_line_bytes

    def tail(self, most: int = 20) -> tuple[str, ...]:
        """The last lines, oldest first, at most *most*."""
        return tuple(self._lines)[-most:]

    def first_error(self) -> str:
        """What went wrong first, in llama.cpp's own words, or an empty text if no line tells of an error."""
        for line in self._lines:
            if match := _ERROR.match(line):
                return match["text"]
        return ""

    def _end_line(self, line: bytes) -> None:
        if not self._cut:
            self._rest = (self._rest + line)[: self._max_line_bytes]
        text = self._rest.decode("utf-8", "replace").rstrip()
        self._rest, self._cut = b"", False
        if text:
            self._lines.append(_CLIENT_CONTENT.sub(r"\1 …", text))
