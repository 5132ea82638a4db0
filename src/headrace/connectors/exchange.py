"""The handle of one exchange with a backend over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog

from headrace.domain.inference import Timeouts
from headrace.ports.connector import Exchange, Failure, Lost, Sink, UpstreamRequest

log = structlog.get_logger(__name__)


class Carrier(Protocol):
    """The connection that carries an exchange."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Read again; what was held back comes first, soon."""

    def hand_over(self, sink: Sink) -> None:
        """What comes from now on is *sink*'s."""

    def leave(self, *, drain: bool) -> None:
        """The exchange was cancelled: cut the connection, or read its answer to the end for nobody."""


class DirectExchange(Exchange):
    """The handle of one exchange; holds what it needs until the sink has heard its last call."""

    __slots__ = ("abandon", "cancelled", "connection", "paused", "request", "sink", "timeouts")

    def __init__(self, request: UpstreamRequest, sink: Sink, timeouts: Timeouts) -> None:
        self.request = request
        self.timeouts = timeouts
        self.paused = False
        self.connection: Carrier | None = None
        self.abandon: Callable[[], object] | None = None
        """Stops the attempt to connect, while there is one."""
        self.sink: Sink | None = sink
        self.cancelled = False

    def pause(self) -> None:
        """See the port."""
        if self.paused or self.cancelled:
            return
        self.paused = True
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        """See the port."""
        if not self.paused:
            return
        self.paused = False
        if self.connection is not None:
            self.connection.resume()

    def cancel(self) -> None:
        """See the port."""
        if self.cancelled or self.sink is None:
            return
        self.cancelled = True
        if self.connection is not None:
            self.resume()
            self.connection.leave(drain=not self.request.stoppable)
        elif self.abandon is not None:
            self.abandon()

    def hand_over(self, sink: Sink) -> None:
        """Let *sink* hear the rest, in the place of the one that asks for it from inside its own call; nothing after the
        last call."""
        if self.sink is not None:
            self.sink = sink
            if self.connection is not None:
                self.connection.hand_over(sink)

    @property
    def over(self) -> bool:
        """Whether the sink has heard its last call."""
        return self.sink is None

    def end(self) -> None:
        """Tell the sink that the answer is complete; when it was cancelled, that it has stopped."""
        if self.cancelled:
            self.fail(Lost("cancelled, and the backend has ended"))
            return
        sink, self.sink, self.connection = self.sink, None, None
        if sink is not None:
            try:
                sink.end()
            except Exception:  # a bug of ours; it must not break the connection's other requests
                log.exception("a sink raised", action="sink.raised")

    def fail(self, failure: Failure) -> None:
        """Tell the sink that there is no more; nothing when it has heard its last call."""
        sink, self.sink, self.connection = self.sink, None, None
        if sink is not None:
            try:
                sink.fail(failure)
            except Exception:  # as above
                log.exception("a sink raised", action="sink.raised")
