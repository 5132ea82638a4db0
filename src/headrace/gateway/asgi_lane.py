"""Where uvicorn's response cycle meets our connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httptools

from headrace.kernel.errors import InvalidRequest


class AnswerTransport:
    """The transport as uvicorn's response cycle sees it; it closes when we find that right."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, hang_up: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = hang_up


def check_target(target: bytes) -> None:
    """Refuse what can't be a path here: uvicorn would raise in the middle of its work.

    Raises:
        InvalidRequest: not an absolute path or URL of ASCII characters.
    """
    try:
        path = httptools.parse_url(target).path
    except httptools.HttpParserInvalidURLError:
        path = None
    if not path or not path.isascii():
        raise InvalidRequest("The request target is not a valid path.", code="invalid_http")
