"""Writing at the end of a turn of the event loop, to many sockets in a row.

What was read in one turn, of many sockets, is written together after it. A peer is then woken once for all that there is for
it instead of once for each piece, and what goes to one socket goes in one call.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)

MAX_HELD_BYTES = 64 * 1024


class Writable(Protocol):
    """A transport, as far as it is written to."""

    def write(self, data: bytes | bytearray) -> None:
        """Put bytes on their way."""

    def is_closing(self) -> bool:
        """Whether it is closed, or being closed."""


class Outbox:
    """Holds what is to be written until the turn ends, or is more than `MAX_HELD_BYTES`: one turn can bring megabytes for a
    peer that doesn't read, and a transport says that it is full only when it is written to.

    Whoever writes to, closes or ends a transport by another way calls `flush` before, so that order is kept.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[Writable, bytes | bytearray] = {}

    def send(self, transport: Writable, data: bytes) -> None:
        """Have *data* written to *transport* when this turn of the event loop ends."""
        waiting = self._waiting
        before = waiting.get(transport)
        if before is not None:
            if not isinstance(before, bytearray):
                before = waiting[transport] = bytearray(before)
            before += data
            if len(before) > MAX_HELD_BYTES:
                self.flush(transport)
        elif len(data) <= MAX_HELD_BYTES:
            if not waiting:
                asyncio.get_running_loop().call_soon(self._flush_all)
            waiting[transport] = data
        elif not transport.is_closing():
            transport.write(data)

    def flush(self, transport: Writable) -> None:
        """Write now what waits for *transport*, if anything does."""
        data = self._waiting.pop(transport, None)
        if data is not None and not transport.is_closing():
            transport.write(data)

    def _flush_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for transport, data in waiting.items():
            try:
                if not transport.is_closing():
                    transport.write(data)
            except Exception:  # one that fails must not cost the others what waits for them
                log.exception("a transport refused what it was given", action="outbox.refused")
