"""Heads that were read and found right, to know the next one that is alike without reading it.

A peer that keeps its connection sends the same head again and again, but for the digits of its content-length. What stands
before and after those digits is therefore enough to know what a head says.
"""

from __future__ import annotations

import re

MAX_TEMPLATE_BYTES = 4096
"""Longer heads aren't remembered: there is one for each connection."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n", re.IGNORECASE)
_END = b"\r\n\r\n"


class HeadTemplate:
    """One HTTP/1.1 head with a content-length, but for its digits."""

    __slots__ = ("_end", "_start")

    def __init__(self, start: bytes, end: bytes) -> None:
        self._start = start
        self._end = end

    @classmethod
    def of(cls, data: bytes) -> HeadTemplate | None:
        """The template of the valid head that *data* begins with; None where it can't serve as one."""
        block = data[: data.find(_END) + 4]
        if len(block) > MAX_TEMPLATE_BYTES or block.lower().count(b"content-length") != 1:
            return None
        length = _LENGTH.search(block)
        return cls(block[: length.start(1)], block[length.end(1) :]) if length else None

    def match(self, data: bytes) -> tuple[int, int] | None:
        """Whether *data* begins with a head like this one: its content-length, and where the body begins; or None."""
        if not data.startswith(self._start):
            return None
        start = len(self._start)
        end = data.find(self._end, start, start + 15 + len(self._end))
        digits = data[start:end]
        return (int(digits), end + len(self._end)) if end > start and digits.isdigit() else None
