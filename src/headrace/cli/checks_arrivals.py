"""How a stream arrived: when which bytes came, and whether something on the way held them back. Judging needs no socket."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import msgspec

from headrace.ports.connector import Connector, Failure, Headers, Sink, UpstreamRequest

MOST_BYTES = 256 * 1024
_SAME_BURST_S = 0.001
_FEWEST_EVENTS = 8
_EVENTS_A_BURST = 4
_LATE_S = 0.15
_COMMENT = re.compile(r":\s*(\d{1,4}) (\d{1,4}\.\d{1,9})\s*")


class Arrivals(Sink):
    """Keeps the answer's bytes with their times (seconds since the request), up to `MOST_BYTES`."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: list[tuple[float, bytes]] = []
        self.failure: Failure | None = None
        self.over = asyncio.get_running_loop().create_future()
        self._began = time.monotonic()
        self._size = 0

    def head(self, status: int, headers: Headers) -> None:
        """Note what stands above the stream; of fields of one name, the last."""
        self.status = status
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}

    def data(self, chunk: bytes) -> None:
        """Note when it came."""
        self._size += len(chunk)
        if self._size <= MOST_BYTES:
            self.pieces.append((time.monotonic() - self._began, chunk))

    def end(self) -> None:
        """It is complete."""
        self._finish()

    def fail(self, failure: Failure) -> None:
        """It broke off."""
        self.failure = failure
        self._finish()

    def _finish(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    @property
    def body(self) -> bytes:
        """All of it, as it came."""
        return b"".join(piece for _, piece in self.pieces)

    @property
    def blocks(self) -> list[tuple[float, str]]:
        """The events and comments with the time at which each was complete; compression is undone."""
        return blocks(self.pieces, compressed=self.headers.get("content-encoding", "").lower())


async def watch(connector: Connector, request: UpstreamRequest, limit_s: float) -> Arrivals:
    """Run one exchange, *limit_s* seconds at most, and see how its answer arrives. Never raises for the peer."""
    arrivals = Arrivals()
    exchange = connector.start(request, arrivals)
    try:
        async with asyncio.timeout(limit_s):
            await arrivals.over
    except TimeoutError:
        pass  # what came until now is what there is to judge
    finally:
        exchange.cancel()
    return arrivals


def blocks(pieces: Sequence[tuple[float, bytes]], *, compressed: str = "") -> list[tuple[float, str]]:
    """What stands between the blank lines of an event stream. Compression that isn't gzip gives nothing."""
    if compressed not in ("", "identity", "gzip"):
        return []
    unpack = zlib.decompressobj(31) if compressed == "gzip" else None
    found: list[tuple[float, str]] = []
    rest = b""
    for at_s, piece in pieces:
        try:
            rest += unpack.decompress(piece, MOST_BYTES) if unpack else piece
        except zlib.error:
            return found
        *whole, rest = rest.replace(b"\r\n", b"\n").split(b"\n\n")
        found += [(at_s, text) for block in whole if (text := block.decode("utf-8", "replace").strip("\n"))]
    return found


@dataclass(frozen=True)
class Pace:
    """How the events of an answer came. held: in so few bursts that something must have collected them; None: too few events
    to tell. first_s, whole_s: from the request to the first event, and to the last."""

    events: int
    bursts: int
    first_s: float
    whole_s: float

    @property
    def held(self) -> bool | None:
        """See above."""
        if self.events < _FEWEST_EVENTS:
            return None
        return self.bursts <= self.events // _EVENTS_A_BURST


def pace(found: Sequence[tuple[float, str]]) -> Pace:
    """Of an answer whose own times aren't known: a model gives one token after the other, so they don't come together."""
    times = [at_s for at_s, text in found if text.startswith("data:") and "[DONE]" not in text]
    if not times:
        return Pace(0, 0, 0.0, 0.0)
    bursts = 1 + sum(later - earlier > _SAME_BURST_S for earlier, later in pairwise(times))
    return Pace(len(times), bursts, times[0], times[-1])


@dataclass(frozen=True)
class Passage:
    """What became of our own test stream on its way. held: most of it came late. late_s: by how much, in the median.
    one_piece: all of it at once. request_id: what stands in it; comments: whether those came through, too."""

    events: int
    held: bool
    one_piece: bool
    late_s: float
    comments: bool
    request_id: str = field(default="")


def passage(found: Sequence[tuple[float, str]]) -> Passage:
    """Judge the blocks of `/admin/stream-test` by the times that stand in them."""
    stamped: list[tuple[float, float]] = []
    ident, comments = "", False
    for at_s, text in found:
        sent_s, name = _sent(text)
        if sent_s is None:
            continue
        stamped.append((at_s, sent_s))
        ident = ident or name
        comments = comments or text.startswith(":")
    if not stamped:
        return Passage(0, held=False, one_piece=False, late_s=0.0, comments=False)
    quickest = min(at_s - sent_s for at_s, sent_s in stamped)
    late_s = median(at_s - sent_s - quickest for at_s, sent_s in stamped)
    took_s = stamped[-1][0] - stamped[0][0]
    lasted_s = max(sent_s for _, sent_s in stamped)
    return Passage(
        len(stamped), held=late_s > _LATE_S, one_piece=took_s < lasted_s / 5, late_s=late_s,
        comments=comments, request_id=ident,
    )  # fmt: skip


class _Event(msgspec.Struct):
    at_s: float
    request_id: str = ""


def _sent(text: str) -> tuple[float | None, str]:
    """When a block of the test stream was sent, and the request's id in it."""
    if comment := _COMMENT.fullmatch(text):
        return float(comment[2]), ""
    try:
        event = msgspec.json.decode(text.removeprefix("data:"), type=_Event)
    except (msgspec.DecodeError, RecursionError):
        return None, ""
    return event.at_s, event.request_id
