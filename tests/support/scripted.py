"""A connector that does what the test says, one call at a time: for core, where the order of calls is what matters."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.ports.connector import Connector, Exchange, Failure, Sink, Traits, UpstreamRequest


@dataclass
class ScriptedExchange(Exchange):
    """One exchange, played by hand: `head`, `data`, `end`, `fail` of its sink are the test's to call."""

    request: UpstreamRequest
    sink: Sink
    paused: bool = False
    cancelled: bool = False

    def pause(self) -> None:
        """Remember it."""
        self.paused = True

    def resume(self) -> None:
        """Remember it."""
        self.paused = False

    def cancel(self) -> None:
        """Remember it."""
        self.cancelled = True

    def answer(self, *chunks: bytes, content_type: bytes = b"text/event-stream", status: int = 200) -> None:
        """A head and some data."""
        self.sink.head(status, [(b"content-type", content_type)])
        for chunk in chunks:
            self.sink.data(chunk)


@dataclass
class ScriptedConnector(Connector):
    """Keeps its exchanges for the test to play."""

    traits: Traits = field(default_factory=Traits)
    exchanges: list[ScriptedExchange] = field(default_factory=list)

    def start(self, request: UpstreamRequest, sink: Sink) -> Exchange:
        """Note the exchange."""
        self.exchanges.append(ScriptedExchange(request, sink))
        return self.exchanges[-1]

    async def close(self) -> None:
        """Nothing to free."""

    @property
    def last(self) -> ScriptedExchange:
        """The newest exchange."""
        return self.exchanges[-1]

    def fail_all(self, failure: Failure) -> None:
        """Every exchange fails."""
        for exchange in self.exchanges:
            exchange.sink.fail(failure)
