"""A backend that answers HTTP: connections to it are kept, and used again.

Nothing queues here: beyond `Limits.connections` a request is refused with `Busy` at once. What failed before the request
left us is `NotSent`. Afterwards it is `Lost`, even when a kept connection was closed by the peer without a word: from here,
a peer that never read the request looks like one that died of it. So that this stays rare, connections that have been idle
for long aren't used again, and what the peer's Keep-Alive field says is heeded with a margin.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from headrace.connectors.connection import Connection, Owner
from headrace.connectors.endpoint import Endpoint
from headrace.connectors.exchange import DirectExchange
from headrace.domain.inference import Timeouts
from headrace.kernel.aio import Tasks
from headrace.kernel.clock import Clock, Timer
from headrace.kernel.errors import ConfigError
from headrace.kernel.outbox import Outbox
from headrace.ports.connector import (
    Busy,
    Connector,
    Failure,
    Lost,
    NotSent,
    Sink,
    Traits,
    UpstreamRequest,
)
from headrace.wire.http1_request import RequestEncoder

_KEEP_ALIVE_PARAMETER = re.compile(rb"(?:^|[,;\s])(timeout|max)\s*=\s*(\d{1,9})(?=$|[,;\s])", re.IGNORECASE)
_MARGIN_S = 1.0
_SHORTEST_WATCH_S = 0.001


@dataclass(frozen=True, slots=True)
class Limits:
    """connections: open at once, those being opened included. idle: kept unused. keep_alive_s: how long at most.

    settle_s: how long a connection rests after a streamed answer before it is used again. Some peers, llama.cpp's server
    among them, promise to keep it and close it right then all the same; a request sent into that moment is lost.
    """

    connections: int = 1024
    idle: int = 256
    keep_alive_s: float = 30.0
    settle_s: float = 0.05


class DirectConnector(Connector, Owner):
    """A `Connector` to one HTTP/1.1 endpoint.

    headers: sent with every request; credentials go here. timeouts: for requests that bring none. The time-out for the
    first byte holds until the head of the answer is complete. Needs no event loop before the first `start`; all calls must
    come from one.

    Raises:
        ConfigError: *headers* can't be sent; the message doesn't repeat them.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        clock: Clock,
        headers: Sequence[tuple[bytes, bytes]] = (),
        limits: Limits = Limits(),
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        traits: Traits = Traits(),  # noqa: B008 - frozen
    ) -> None:
        self.traits = traits
        self.requests_started = 0
        self.monotonic = clock.monotonic
        self.outbox = Outbox()
        self._endpoint = endpoint
        self._clock = clock
        self._limits = limits
        self._timeouts = timeouts
        try:
            self._encoder = RequestEncoder(host=endpoint.authority, prefix=endpoint.prefix, headers=headers)
        except ValueError as error:
            raise ConfigError(f"Requests to {endpoint.name} can't be written: {error}.") from error
        self._tasks = Tasks()
        self._opening: dict[asyncio.Task[object], DirectExchange] = {}
        self._live: set[Connection] = set()
        self._idle: dict[Connection, None] = {}
        self._settling: dict[Connection, float] = {}  # in the order of their times
        self._leaving: set[Connection] = set()
        self._all_gone = asyncio.Event()
        self._keep_alive = (b"", math.inf, math.inf)
        self._watch: Timer | None = None
        self._watch_at = math.inf
        self._closed = False

    @property
    def open_connections(self) -> int:
        """Connections that carry a request or could."""
        return len(self._live)

    @property
    def idle_connections(self) -> int:
        """Those of them that wait for a request."""
        return len(self._idle) + len(self._settling)

    def start(self, request: UpstreamRequest, sink: Sink) -> DirectExchange:
        """See the port.

        Raises:
            ValueError: the request can't be written as HTTP, which is the caller's fault: nothing was sent, and the sink
                won't be called.
        """
        head = self._encoder.encode(request.method, request.path, request.headers, len(request.body))
        self.requests_started += 1
        exchange = DirectExchange(request, sink, request.timeouts or self._timeouts)
        idle = self._idle
        if self._settling:
            self._take_settled()
        while idle:
            connection, _ = idle.popitem()
            if connection.fresh(self.monotonic()):
                connection.begin(exchange, head)
                return exchange
            connection.retire()
        self._open(exchange, head)
        return exchange

    async def close(self) -> None:
        """See the port. Afterwards `start` fails with `NotSent`."""
        self._closed = True
        for connection in tuple(self._live):
            connection.cut(Lost("the connector was closed"))
        for exchange in tuple(self._opening.values()):
            exchange.fail(NotSent("the connector was closed"))
        await self._tasks.close()
        if self._watch is not None:
            self._watch.cancel()
            self._watch, self._watch_at = None, math.inf
        while self._leaving:
            self._all_gone.clear()
            await self._all_gone.wait()

    # -- opening -------------------------------------------------------------------------------------------------------

    def _open(self, exchange: DirectExchange, head: bytes) -> None:
        failure: Failure | None = None
        if self._settling and len(self._live) + len(self._opening) >= self._limits.connections:
            next(iter(self._settling)).retire()  # one that only rests keeps nobody out
        if self._closed:
            failure = NotSent("the connector is closed")
        elif len(self._live) + len(self._opening) >= self._limits.connections:
            failure = Busy(f"all {self._limits.connections} connections to {self._endpoint.name} are in use")
        if failure is not None:
            asyncio.get_running_loop().call_soon(exchange.fail, failure)
            return
        connection = Connection(self)
        task = self._tasks.spawn(
            self._connect(connection, exchange.timeouts.connect_s), name="direct.connect"
        )
        self._opening[task] = exchange
        exchange.abandon = partial(self._abandon, task, exchange)
        task.add_done_callback(partial(self._opened, connection, exchange, head))

    async def _connect(self, connection: Connection, limit_s: float) -> Failure | None:
        task = asyncio.current_task()
        assert task is not None
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            task.cancel()

        timer = self._clock.call_later(limit_s, give_up)
        try:
            await self._endpoint.connect(lambda: connection)
        except asyncio.CancelledError:
            if not late:
                raise
            return NotSent(f"no connection to {self._endpoint.name} within {limit_s:g} s")
        except ssl.SSLCertVerificationError as error:
            return NotSent(
                f"the certificate of {self._endpoint.name} is not accepted: {error.verify_message}"
            )
        except OSError as error:
            return NotSent(
                f"can't connect to {self._endpoint.name}: {error.strerror or type(error).__name__}"
            )
        finally:
            timer.cancel()
        return None

    def _abandon(self, task: asyncio.Task[object], exchange: DirectExchange) -> None:
        task.cancel()
        asyncio.get_running_loop().call_soon(exchange.fail, NotSent("cancelled before it was sent"))

    def _opened(
        self,
        connection: Connection,
        exchange: DirectExchange,
        head: bytes,
        task: asyncio.Task[Failure | None],
    ) -> None:
        del self._opening[task]
        exchange.abandon = None
        if task.cancelled():
            failure: Failure | None = NotSent("cancelled before it was sent")
        elif task.exception() is not None:
            failure = NotSent(f"can't connect to {self._endpoint.name}")  # the owner of the tasks logs why
        else:
            failure = task.result()
        if failure is None and connection.usable and not exchange.over and not exchange.cancelled:
            self._live.add(connection)
            connection.begin(exchange, head)
            return
        connection.retire()
        exchange.fail(failure or NotSent(f"{self._endpoint.name} closed the connection before it was used"))

    # -- what connections tell -----------------------------------------------------------------------------------------

    def released(self, connection: Connection, keep_alive: bytes, *, streamed: bool) -> None:
        """See `Owner`."""
        _, timeout_s, most = (
            self._keep_alive if keep_alive == self._keep_alive[0] else self._learn(keep_alive)
        )
        limits = self._limits
        keep_s = min(limits.keep_alive_s, timeout_s - _MARGIN_S)
        if self._closed or keep_s <= 0 or connection.served >= most - 1 or limits.idle < 1:
            connection.retire()
            return
        if self.idle_connections >= limits.idle:
            next(iter(self._idle or self._settling)).retire()
        now = self.monotonic()
        connection.idle_until = now + keep_s
        if streamed and limits.settle_s > 0:
            self._settling[connection] = now + limits.settle_s
        else:
            self._idle[connection] = None
        self.watch(connection.idle_until)

    def _take_settled(self) -> None:
        """Those that have rested long enough can be used again."""
        now = self.monotonic()
        while self._settling:
            connection = next(iter(self._settling))
            if self._settling[connection] > now:
                return
            del self._settling[connection]
            self._idle[connection] = None

    def _learn(self, keep_alive: bytes) -> tuple[bytes, float, float]:
        """Remember what the Keep-Alive field means: seconds and requests. Backends send the same one again and again."""
        values = {name.lower(): float(value) for name, value in _KEEP_ALIVE_PARAMETER.findall(keep_alive)}
        self._keep_alive = keep_alive, values.get(b"timeout", math.inf), values.get(b"max", math.inf)
        return self._keep_alive

    def retired(self, connection: Connection) -> None:
        """See `Owner`."""
        if (
            connection in self._live
        ):  # else uvloop may close it without telling, when the attempt was cancelled
            self._live.remove(connection)
            self._idle.pop(connection, None)
            self._settling.pop(connection, None)
            self._leaving.add(connection)

    def gone(self, connection: Connection) -> None:
        """See `Owner`."""
        self._leaving.discard(connection)
        if not self._leaving:
            self._all_gone.set()

    # -- time ----------------------------------------------------------------------------------------------------------

    def watch(self, at: float) -> None:
        """See `Owner`. One timer serves all connections: it is moved only when something is due before it rings, and
        looks then what is."""
        if at < self._watch_at and not self._closed:
            if self._watch is not None:
                self._watch.cancel()
            self._watch_at = at
            delay_s = max(_SHORTEST_WATCH_S, at - self.monotonic())
            self._watch = self._clock.call_later(delay_s, self._look)

    def _look(self) -> None:
        self._watch, self._watch_at = None, math.inf
        now = self.monotonic()
        nearest = min((connection.check(now) for connection in tuple(self._live)), default=math.inf)
        if nearest < math.inf:
            self.watch(nearest)
