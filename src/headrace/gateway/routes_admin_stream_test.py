"""`/admin/stream-test`: a stream like an answer's, with its times in it, to see what becomes of streams on the way to a client.

No model has a part in it, so whatever is late was held back by what stands in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from headrace.domain.access import Principal
from headrace.gateway.administration import query

EVENTS = 12
"""Each third is a comment, such as keeps a client waiting while an answer isn't there yet."""
INTERVAL_S = 0.1
_BLOCK_BYTES = 160
_DONE = b"data: [DONE]\n\n"
_HEADERS = {  # an answer's own, for proxies go by them
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


class StreamTestRoute:
    """Lets administrators see whether streams come through. One takes little more than a second, and few bytes."""

    def __init__(self, events: int = EVENTS, interval_s: float = INTERVAL_S) -> None:
        self._events = events
        self._interval_s = interval_s

    async def stream(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/stream-test: events `{"n", "at_s", "request_id"}` and comments `: n at_s`, numbered together from 0,
        one each interval; `at_s`: seconds since the first, when it was sent. Ends with `data: [DONE]`."""
        query(request)
        ident = request.scope["state"]["request_id"]
        headers = dict(_HEADERS)
        if request.scope["http_version"] == "1.0":
            # To such a client an answer's end is the connection's, and a proxy collects what has no chunks; the same becomes
            # of what has a length.
            headers["content-length"] = str(self._events * _BLOCK_BYTES + len(_DONE))
        return StreamingResponse(self._blocks(ident), media_type="text/event-stream", headers=headers)

    async def _blocks(self, ident: str) -> AsyncIterator[bytes]:
        began = time.monotonic()
        for number in range(self._events):
            if number:
                await asyncio.sleep(self._interval_s)
            at_s = round(time.monotonic() - began, 6)
            if number % 3 == 2:
                block = b": %d %.6f" % (number, at_s)
            else:
                event = {"n": number, "at_s": at_s, "request_id": ident}
                block = b"data: %b" % msgspec.json.encode(event)
            yield block.ljust(_BLOCK_BYTES - 2) + b"\n\n"
        yield _DONE
