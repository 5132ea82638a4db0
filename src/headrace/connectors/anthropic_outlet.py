"""The way from a translation to its sink: it holds back what comes while the sink has paused.

What is read from a backend is at most so long after a pause; its translation can be longer, and comes after the backend has
ended, too. So the port's promises about a pause are kept here once more.
"""

from __future__ import annotations

import asyncio

from headrace.ports.connector import MAX_AFTER_PAUSE, Failure, Headers, Sink


class Outlet:
    """Tells a sink, in order, and its last call once.

    holding: whoever closes the connector finds here those that hold an answer whose exchange with the backend is over. What is
    held is bounded: the translation of what the backend still sends after a pause, or of a whole answer.
    """

    __slots__ = ("_ended", "_held", "_holding", "_paused", "_sink")

    def __init__(self, sink: Sink, holding: set[Outlet]) -> None:
        self._sink: Sink | None = sink
        self._holding = holding
        self._held = b""
        self._paused = False
        self._ended = False

    @property
    def over(self) -> bool:
        """Whether the sink has heard its last call."""
        return self._sink is None

    @property
    def ended(self) -> bool:
        """Whether the answer is complete, though the sink may not have heard all of it."""
        return self._ended

    def head(self, status: int, headers: Headers) -> None:
        """Pass it on."""
        if self._sink is not None:
            self._sink.head(status, headers)

    def data(self, chunk: bytes) -> None:
        """Pass it on, or hold it."""
        self._held = self._held + chunk if self._held else chunk
        self._pass_on()

    def end(self) -> None:
        """The answer is complete: the sink hears so behind what is held."""
        self._ended = True
        self._pass_on()
        if self._sink is not None:
            self._holding.add(self)

    def fail(self, failure: Failure) -> None:
        """There is no more; what is held is dropped."""
        self._held = b""
        self._holding.discard(self)
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.fail(failure)

    def pause(self) -> None:
        """Hold what comes."""
        self._paused = True

    def resume(self) -> None:
        """Pass on, soon, what is held."""
        self._paused = False
        if self._held or self._ended:
            asyncio.get_running_loop().call_soon(self._pass_on)

    def drop(self) -> None:
        """Forget what is held, and that it was complete: only `fail` is still to come."""
        self._held = b""
        self._ended = False

    def _pass_on(self) -> None:
        """In pieces, so that a pause takes effect after one of them."""
        while self._sink is not None and self._held and not self._paused:
            piece, self._held = self._held[:MAX_AFTER_PAUSE], self._held[MAX_AFTER_PAUSE:]
            self._sink.data(piece)
        if self._ended and not self._held and not self._paused and self._sink is not None:
            self._holding.discard(self)
            sink, self._sink = self._sink, None
            sink.end()
