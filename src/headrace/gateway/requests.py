"""Reading a request's body within its bounds."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from starlette.requests import Request

from headrace.kernel.errors import BodyTooLarge, RequestError, RequestTimeout, UnsupportedMedia
from headrace.kernel.units import format_bytes

_JSON = "application/json"
_CORRELATION_ID = re.compile(rb"[!-~]{1,128}")


class ClientGone(Exception):
    """The client left before its request was complete; there's nobody to answer."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large a body may be, how long it may pause while it arrives, and how long all of it may take."""

    max_bytes: int = 10 * 1024 * 1024
    pause_s: float = 30.0
    total_s: float = 300.0


async def read_json_body(request: Request, limits: BodyLimits) -> bytes:
    """The body of a request that sends JSON.

    Raises:
        UnsupportedMedia: it says that it is something else, or compressed.
        BodyTooLarge: over the limit; the rest was not read.
        RequestTimeout: it didn't arrive in time.
        ClientGone: the client left.
    """
    check_media(request.headers.get("content-type", _JSON), request.headers.get("content-encoding", ""))
    if int(request.headers.get("content-length", "0")) > limits.max_bytes:
        raise too_large(limits)
    try:
        async with asyncio.timeout(limits.total_s):
            return await _receive_all(request, limits)
    except TimeoutError:
        raise RequestTimeout("The body didn't arrive in time.") from None


def check_media(content_type: str, content_encoding: str) -> None:
    """Refuse what isn't plain JSON by its headers.

    Raises:
        UnsupportedMedia: it says that it is something else, or compressed.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media != _JSON and not media.endswith("+json"):
        raise UnsupportedMedia(f"Send the body as {_JSON}, not {media[:80]!r}.")
    if content_encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMedia("Send the body uncompressed (no Content-Encoding).")


def echoed_id(given: bytes) -> bytes | None:
    """What a client's own `x-request-id` is echoed as, in `x-client-request-id`; None where it can't be: up to 128 visible
    ASCII characters can. The `x-request-id` of the answer is always ours, and another for each request.
    """
    return given if _CORRELATION_ID.fullmatch(given) else None


async def _receive_all(request: Request, limits: BodyLimits) -> bytes:
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        async with asyncio.timeout(limits.pause_s):
            message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        if size > limits.max_bytes:
            raise too_large(limits)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def too_large(limits: BodyLimits) -> RequestError:
    """The error for a body over the limit."""
    return BodyTooLarge(f"The body is over the limit of {format_bytes(limits.max_bytes)}.")
