"""The port to a backend: an HTTP-shaped exchange, pushed.

Method, path, headers and a body go one way; a head, chunks of bytes and an end (or a failure) come back. The port pushes,
as asyncio's transports do, because a coroutine per chunk is what makes Python gateways slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import msgspec

from headrace.domain.inference import Api, Operation, Timeouts

Headers = list[tuple[bytes, bytes]]
"""Names are lower case."""

MAX_AFTER_PAUSE = 64 * 1024
"""Bytes that may still come after `Exchange.pause`: what was already read."""


class UpstreamRequest(msgspec.Struct, frozen=True):
    """One request to a backend. `path` is below the backend's base URL and begins with a slash; `headers` have no
    hop-by-hop ones, no `host`, no `content-length` and no credentials: those are the connector's.

    timeouts: None leaves them to the connector.
    stoppable: False where the backend runs it to the end whether or not we listen, so that after a cancel its answer is
    read and dropped, with the time-outs still on, and the last call comes when it has ended.
    """

    method: str
    path: str
    headers: Headers = []
    body: bytes = b""
    timeouts: Timeouts | None = None
    stoppable: bool = True


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an exchange came to no end. `reason` is one sentence, free of secrets, prompts and answers."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotSent(Failure):
    """Nothing left us: trying elsewhere is free. `refused_key`: the backend was asked, and turned our own credentials away
    before it began."""

    refused_key: bool = False


@dataclass(frozen=True, slots=True)
class Busy(Failure):
    """The backend refused before it started: trying elsewhere, or here later, is free."""

    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Loading(Busy):
    """It will be ready, in about `retry_after_s` if that is known."""


@dataclass(frozen=True, slots=True)
class Lost(Failure):
    """The request left us and no full answer came: it may have been executed, or still be. `timed_out`: it was us who
    gave up waiting."""

    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Broken(Failure):
    """The answer broke off after some of it was passed on. Only core says so."""

    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Traits:
    """What a backend can do, as its connector declares it.

    cancels_unstreamed: a cancelled request stops the work even when its answer isn't streamed.
    stream_options: it takes `stream_options.include_usage`.
    streamed: operations that it can stream.
    slots: how many requests it works on at once; None where that isn't known.
    api: the family of operations that it is asked.
    """

    cancels_unstreamed: bool = False
    stream_options: bool = True
    streamed: frozenset[Operation] = frozenset({Operation.CHAT, Operation.COMPLETION})
    slots: int | None = None
    api: Api = Api.OPENAI


class Sink(Protocol):
    """The one who is told of an exchange.

    `head` at most once, then `data` any number of times, and last exactly one of `end` and `fail`; nothing afterwards.
    `fail` may come without a head. No call comes before `Connector.start` returned, nor inside `pause`, `resume` or
    `cancel` of the exchange. A sink doesn't raise.
    """

    def head(self, status: int, headers: Headers) -> None:
        """The final status (never 1xx) and the end-to-end headers; hop-by-hop ones are gone."""

    def data(self, chunk: bytes) -> None:
        """Some bytes of the body, never empty, transfer coding removed."""

    def end(self) -> None:
        """The body is complete, by its own framing."""

    def fail(self, failure: Failure) -> None:
        """There will be no more; what came so far is not complete."""


class Exchange(Protocol):
    """The handle of the one who asked."""

    def pause(self) -> None:
        """Stop the flow: at most `MAX_AFTER_PAUSE` bytes that were already read still come. Idempotent."""

    def resume(self) -> None:
        """Let it flow again. Idempotent."""

    def cancel(self) -> None:
        """Give up. The backend sees it within 250 ms; the one last call of the sink (`fail` as a rule, `end` if it
        crossed) comes when the backend has stopped, and nothing else does. Idempotent, harmless after the end.
        Where the traits say that the backend can't stop, the rest of its answer is read and dropped first.
        """


class Connector(Protocol):
    """A way to one backend: a direct endpoint, a local engine, a relayed node, a fake."""

    traits: Traits

    def start(self, request: UpstreamRequest, sink: Sink) -> Exchange:
        """Begin one exchange. Returns at once; whatever is the peer's fault reaches the sink, nothing is raised."""

    async def close(self) -> None:
        """Cut what is open and free every socket; each open exchange's sink hears `fail`. Idempotent."""
