"""Calls of scripts in Redis, many in one round trip, that never hang: each is answered, or told to have failed, in time.

Without the extra `redis`, importing this is a `ConfigError`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from headrace.adapters.ledger.breaker import Breaker
from headrace.adapters.ledger.redis_scripts import ALL, RESERVE, Script
from headrace.kernel.aio import Tasks
from headrace.kernel.clock import Clock, Timer
from headrace.kernel.errors import ConfigError

try:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as Disconnected
    from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError, ResponseError
except ImportError as missing:
    raise ConfigError("A quota ledger in Redis needs an extra: pip install 'headrace[redis]'.") from missing

log = structlog.get_logger(__name__)

MOST_IN_A_BATCH = 128
"""More at once would hold the event loop for milliseconds while they are written and read."""


_PING = b"*1\r\n$4\r\nPING\r\n"


class Call:
    """A script, and what it is given. *answered* hears its answer; None where it failed, and then perhaps was carried out.

    lasting: it is repeated until it is answered (its script does nothing the second time).
    """

    __slots__ = ("answered", "arguments", "deadline", "keys", "lasting", "script", "sent")

    def __init__(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[str | int],
        answered: Callable[[bytes | None], object],
        *,
        lasting: bool = False,
    ) -> None:
        self.script = script
        self.keys = keys
        self.arguments = arguments
        self.answered = answered
        self.lasting = lasting
        self.deadline = 0.0
        self.sent = False  # whether Redis may have seen it

    def packed(self) -> bytes:
        """As Redis's protocol wants it: an array of strings with their lengths in bytes."""
        words = ["EVALSHA", self.script.sha, str(len(self.keys)), *self.keys, *map(str, self.arguments)]
        text = "".join([f"${len(word)}\r\n{word}\r\n" for word in words])
        if not text.isascii():
            text = "".join([f"${len(word.encode())}\r\n{word}\r\n" for word in words])
        return f"*{len(words)}\r\n{text}".encode()


class RedisPipe:
    """Sends what was called in one turn of the event loop, or while the last batch was under way, as one pipeline.

    A batch has *timeout_s*. When that is over, or the connection fails twice, the connection is given up and the breaker
    opens: every call fails at once, but for lasting ones, which wait; after a pause they, or a ping, are tried again.
    *changed* is told when the breaker opened or closed, and when Redis became full or has room again.
    """

    def __init__(self, url: str, clock: Clock, timeout_s: float, changed: Callable[[], object]) -> None:
        self._redis = _connect(url, timeout_s)
        self._clock = clock
        self._timeout_s = timeout_s
        self._changed = changed
        self._queue: deque[Call] = deque()
        self._lasting = 0
        self._breaker = Breaker(threshold=1, first_pause_s=0.1)
        self._pause: Timer | None = None
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._tasks = Tasks()
        self._busy = False
        self._sending: list[Call] = []
        self._full = False

    @property
    def broken(self) -> bool:
        """Whether Redis can't be asked at present."""
        return self._breaker.open

    @property
    def full(self) -> bool:
        """Whether Redis had no memory for the last reservation that it was asked for."""
        return self._full

    @property
    def waiting(self) -> int:
        """Calls that weren't sent yet."""
        return len(self._queue)

    @property
    def lasting(self) -> int:
        """Calls that must be carried out and weren't answered yet."""
        return self._lasting

    def start(self) -> None:
        """Begin to send. Needs a running event loop."""
        self._tasks.spawn(self._run(), name="redis-ledger")

    def call(self, call: Call) -> None:
        """Send it with the next batch."""
        call.deadline = self._clock.monotonic() + self._timeout_s
        self._lasting += call.lasting
        self._queue.append(call)
        if self._pause is None:
            self._wake.set()

    async def close(self, within_s: float) -> None:
        """Send what must be sent, while there is time for it; then fail the rest and let go of the connection. Idempotent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._busy or (self._queue and not self.broken):
                    self._moved.clear()
                    await self._moved.wait()
        await self._tasks.close()
        if self._pause is not None:
            self._pause.cancel()
        self._fail([*(self._sending if self._busy else ()), *self._queue])
        self._queue.clear()
        self._busy = False
        await self._give_up_connection()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pause is None and (self._queue or self.broken):
                self._sending = self._batch()
                self._busy = True
                await self._send(self._sending)
                self._busy = False
                self._moved.set()

    def _batch(self) -> list[Call]:
        now = self._clock.monotonic()
        batch: list[Call] = []
        late: list[Call] = []
        while self._queue and len(batch) < MOST_IN_A_BATCH:
            call = self._queue.popleft()
            (batch if call.lasting or call.deadline >= now else late).append(call)
        self._fail(late)
        return batch

    async def _send(self, batch: list[Call]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                answers = await self._exchange(batch)
        except Exception as error:  # noqa: BLE001
            # whatever the client library raises: who waits must hear of it, and the task that serves all must go on
            await self._give_up_connection()
            self._broke(batch, error)
            return
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        if errors and len(errors) == len(batch) and not _is_full(errors[0]):
            self._broke(batch, errors[0])
            return
        repeated = self._answer(batch, answers)
        if repeated:
            self._broke([], errors[0])
        else:
            self._succeeded()

    async def _exchange(self, batch: Sequence[Call]) -> Sequence[Any]:
        """One round trip. A connection that has gone stale is opened anew once, and scripts that Redis doesn't know, after a
        restart, are loaded: nothing that was carried out the first time is done twice."""
        try:
            answers = await self._pipeline(batch)
        except Disconnected:
            await self._give_up_connection()
            answers = await self._pipeline(batch)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            for script in ALL:
                await self._redis.script_load(script.text)
            answers = await self._pipeline(batch)
        return answers

    async def _pipeline(self, batch: Sequence[Call]) -> Sequence[Any]:
        """Written and read on the connection itself: the library's own pipeline costs twice as much for each call."""
        pool = self._redis.connection_pool
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            for call in batch:
                call.sent = True
            await connection.send_packed_command(b"".join([call.packed() for call in batch]) or _PING, False)
            answers: list[Any] = []
            for _ in batch or (None,):
                try:
                    answers.append(await connection.read_response(disable_decoding=True))
                except ResponseError as refused:
                    answers.append(refused)
        finally:
            await pool.release(connection)
        return answers[: len(batch)]

    def _answer(self, batch: Sequence[Call], answers: Sequence[Any]) -> bool:
        """Tell everybody; says whether some that must be carried out were not, and go back into the queue."""
        again = []
        self._see_whether_full(batch, answers)
        for call, answer in zip(batch, answers, strict=True):
            if not isinstance(answer, Exception):
                self._lasting -= call.lasting
                self._tell(call, answer)
            elif call.lasting:
                again.append(call)
            else:
                call.sent = not _is_full(answer)  # then it wasn't begun
                self._tell(call, None)
        self._queue.extendleft(reversed(again))
        return bool(again)

    def _see_whether_full(self, batch: Sequence[Call], answers: Sequence[Any]) -> None:
        """Before anybody hears an answer: who does may want to know. Only a reservation needs memory."""
        told = [answer for call, answer in zip(batch, answers, strict=True) if call.script is RESERVE]
        if not told or _is_full(told[-1]) is self._full:
            return
        self._full = not self._full
        if self._full:
            log.error("Redis is full: it takes no reservations", action="ledger.full")
        else:
            log.info("Redis has room again", action="ledger.recovered", lasting=self._lasting)
        self._changed()

    def _broke(self, batch: list[Call], error: Exception) -> None:
        was_open = self._breaker.open
        self._pause = self._clock.call_later(self._breaker.failed(), self._resume)
        everything = [*batch, *self._queue]
        self._queue.clear()
        self._queue.extend(call for call in everything if call.lasting)
        if not was_open:
            log.error("Redis doesn't answer the ledger", action="ledger.unavailable", error=repr(error))
            self._changed()
        self._fail([call for call in everything if not call.lasting])

    def _succeeded(self) -> None:
        was_open = self._breaker.open
        self._breaker.succeeded()
        if was_open:
            log.info("Redis answers the ledger again", action="ledger.recovered", lasting=self._lasting)
            self._changed()

    def _resume(self) -> None:
        self._pause = None
        self._wake.set()

    def _fail(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self._tell(call, None)

    def _tell(self, call: Call, answer: bytes | None) -> None:
        try:
            call.answered(answer)
        except Exception as error:  # noqa: BLE001
            # one listener's error must not end the task that serves all the others
            log.error("a listener raised", action="ledger.listener_raised", error=repr(error))

    async def _give_up_connection(self) -> None:
        """Answers that come late, or weren't read, must not be taken for those of later calls."""
        with contextlib.suppress(OSError, RedisError):
            await self._redis.connection_pool.disconnect()


def _connect(url: str, timeout_s: float) -> Redis:
    try:
        return Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,  # each connection would read the library's version from the disk, on the event loop
        )
    except ValueError as error:
        raise ConfigError(f"The Redis URL of the quota ledger can't be used: {error}.") from error


def _is_full(answer: Any) -> bool:
    """Redis is there, and has no memory for more."""
    return isinstance(answer, OutOfMemoryError)
