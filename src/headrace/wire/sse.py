"""Server-sent events: cutting a byte stream at event ends, and reading what an event says.

Source: the HTML standard, "Server-sent events" (event stream interpretation).
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_EVENT_BYTES = 1024 * 1024
DONE = b"data: [DONE]\n\n"


class EventTooLarge(Exception):
    """An event didn't end within `MAX_EVENT_BYTES`."""


class EventSplitter:
    """Cuts a byte stream at the ends of events.

    `feed` hands out whole events only, with LF line ends, so that nothing behind it meets half an event. What a clean
    backend sends (whole events, LF) passes as it is.
    """

    __slots__ = ("_fresh", "_rest", "_skip_lf")

    def __init__(self) -> None:
        self._rest = b""
        self._fresh = True
        self._skip_lf = False

    def feed(self, chunk: bytes) -> bytes:
        """The events completed by *chunk*, as one block that ends with a blank line; empty when there are none.

        Raises:
            EventTooLarge: an event is over the limit; the stream can't be read further.
        """
        if self._fresh:
            chunk = self._without_bom(chunk)
        if self._skip_lf or b"\r" in chunk:
            chunk = self._with_lf(chunk)
        if not self._rest and chunk.endswith(b"\n\n"):
            return chunk
        data = self._rest + chunk
        cut = data.rfind(b"\n\n") + 2
        if cut < 2:
            cut = 0
        self._rest = data[cut:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventTooLarge
        return data[:cut]

    def finish(self) -> bytes:
        """What is left when the stream ended, closed with a blank line: a last event whose end was forgotten."""
        rest, self._rest = self._rest.strip(b"\n"), b""
        return rest + b"\n\n" if rest else b""

    def _without_bom(self, chunk: bytes) -> bytes:
        self._fresh = False
        return chunk.removeprefix(b"\xef\xbb\xbf")

    def _with_lf(self, chunk: bytes) -> bytes:
        """CRLF and CR become LF, also when a CRLF is split between two chunks."""
        if self._skip_lf:
            chunk = chunk.removeprefix(b"\n")
        self._skip_lf = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def events(block: bytes) -> Iterator[bytes]:
    """The events of a *block* that `EventSplitter.feed` gave, each with its blank line."""
    start = 0
    while start < len(block):
        end = block.index(b"\n\n", start) + 2
        yield block[start:end]
        start = end


def data_of(event: bytes) -> bytes | None:
    """The data of one event: its `data` lines joined by LF. None where it has none (a comment, say)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def data_event(data: bytes) -> bytes:
    """An event that carries *data*, which has no line breaks."""
    return b"data: %b\n\n" % data
