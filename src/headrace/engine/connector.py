"""The connector to a local engine: a direct one while the engine serves, and a clear answer while it doesn't."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.domain.fleet import NodeState
from headrace.engine.supervisor import EngineState
from headrace.ports.connector import (
    Busy,
    Connector,
    Exchange,
    Failure,
    Loading,
    NotSent,
    Sink,
    Traits,
    UpstreamRequest,
)


class EngineConnector(Connector):
    """Passes exchanges on to the connector that `make_direct` makes for the engine's Unix socket.

    While the engine isn't up, an exchange fails with `Loading` and the time it will probably take, or with `NotSent`
    when it won't come up. Never more than `slots` exchanges are with the engine: the next one fails with `Busy`,
    because llama.cpp would queue it where nobody sees it.
    """

    def __init__(
        self,
        *,
        slots: int,
        make_direct: Callable[[str], Connector],
        current: Callable[[], EngineState],
    ) -> None:
        # Seen: this llama.cpp frees a slot some 10 ms after a streamed client left, and computes everything else
        # (unstreamed answers, embeddings) to its end.
        self.traits = Traits(cancels_unstreamed=False, stream_options=True, slots=slots)
        self._slots = slots
        self._make_direct = make_direct
        self._current = current
        self._direct: Connector | None = None
        self._closed = False
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        """Exchanges that the engine works on now."""
        return self._in_flight

    def running(self, socket: str) -> None:
        """The engine serves on this Unix socket."""
        self._direct = self._make_direct(socket)

    async def gone(self) -> None:
        """The engine is no more: open exchanges fail as lost. Idempotent."""
        direct, self._direct = self._direct, None
        if direct is not None:
            await direct.close()

    def start(self, request: UpstreamRequest, sink: Sink) -> Exchange:
        """Pass the exchange on, or refuse it."""
        if self._direct is None:
            return _Refused(sink, self._why_not())
        if self._in_flight >= self._slots:
            return _Refused(sink, Busy(f"all {self._slots} slots of the engine are taken"))
        self._in_flight += 1
        return self._direct.start(request, _Counted(sink, self._ended))

    async def close(self) -> None:
        """Cut what is open; the engine itself is ended by its supervisor. Idempotent."""
        self._closed = True
        await self.gone()

    def _ended(self) -> None:
        self._in_flight -= 1

    def _why_not(self) -> Failure:
        if self._closed:
            return NotSent("the engine is shut down")
        state = self._current()
        detail = f": {state.detail}" if state.detail else ""
        match state.state:
            case NodeState.LOADING:
                return Loading(f"the model is loading{detail}", retry_after_s=state.ready_in_s)
            case NodeState.DOWN:
                return Loading(f"the engine restarts{detail}", retry_after_s=state.ready_in_s)
            case _:
                return NotSent(f"the engine isn't running{detail}")


class _Counted:
    """A Sink that gives the slot back before the asker hears of the end, so that its next exchange finds it free."""

    __slots__ = ("_ended", "_sink", "data", "head")

    def __init__(self, sink: Sink, ended: Callable[[], None]) -> None:
        self._sink = sink
        self._ended = ended
        self.head = sink.head  # the token path: no call of ours in between
        self.data = sink.data

    def end(self) -> None:
        self._ended()
        self._sink.end()

    def fail(self, failure: Failure) -> None:
        self._ended()
        self._sink.fail(failure)


class _Refused(Exchange):
    """An exchange that never began; its sink hears so as soon as `start` has returned."""

    def __init__(self, sink: Sink, failure: Failure) -> None:
        asyncio.get_running_loop().call_soon(sink.fail, failure)

    def pause(self) -> None:
        """Nothing flows."""

    def resume(self) -> None:
        """Nothing flows."""

    def cancel(self) -> None:
        """The failure is on its way already."""
