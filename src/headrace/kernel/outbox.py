"""Writing at the end of a turn of the event loop, to many sockets in a row.

What was read in one turn, of many sockets, is written together after it. A peer is then woken once for all that there is for
it instead of once for each piece, and what goes to one socket goes in one call.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Writable(Protocol):
    """A transport, as far as it is written to."""

    def write(self, data: bytes | bytearray) -> None:
        """Put bytes on their way."""

    def is_closing(self) -> bool:
        """Whether it is closed, or being closed."""


class Outbox:
    """Holds what is to be written until the turn ends. It holds no more than was handed to it in one turn.

    Whoever writes to, closes or ends a transport by another way calls `flush` before, so that order is kept.
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[Writable, bytes | bytearray] = {}

    def send(self, transport: Writable, data: bytes) -> None:
        """Have *data* written to *transport* when this turn of the event loop ends."""
        waiting = self._waiting
        before = waiting.get(transport)
        if before is None:
            if not waiting:
                asyncio.get_running_loop().call_soon(self._flush_all)
            waiting[transport] = data
        elif isinstance(before, bytearray):
            before += data
        else:
            waiting[transport] = bytearray(before) + data

    def flush(self, transport: Writable) -> None:
        """Write now what waits for *transport*, if anything does."""
        data = self._waiting.pop(transport, None)
        if data is not None:
            transport.write(data)

    def _flush_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for transport, data in waiting.items():
            if not transport.is_closing():
                transport.write(data)
