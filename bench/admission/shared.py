"""Reservations in a real Redis: how many pairs of a reservation and its settlement one process makes in a second."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.endpoint import free_port
from bench.figures import Spread
from bench.procs import cpu_s, running
from bench.site import Unavailable
from headrace.adapters.ledger.redis import RedisLedger, RedisOptions
from headrace.domain.quota import Limits, Measure, Window
from headrace.kernel.clock import SystemClock
from headrace.ports.ledger import Charge, Verdict

UP_WITHIN_S = 20.0
IN_FLIGHT = 256
"""Reservations that are asked for before an answer came: what is given in one turn goes to Redis in one write."""
PATIENCE_S = 10.0
"""Longer than a gateway's: on a busy machine a slow turn is a slow turn, and not an outage."""
PAIRS = 20_000
BAR_PER_S = 8_000.0
MODES = {
    "one window": Limits(requests_per_minute=100_000_000),
    "three windows": Limits(
        requests_per_minute=100_000_000, requests_per_day=200_000_000, concurrency=100_000
    ),
}


@dataclass(frozen=True, slots=True)
class RedisFigures:
    """Of one mode, over all rounds: pairs each second, CPU µs of this process for a pair, and of Redis."""

    mode: str
    per_s: Spread
    own_us: Spread
    redis_us: Spread


def measure(folder: Path, rounds: int) -> list[RedisFigures]:
    """Every mode, against a `redis-server` of our own below *folder*.

    Raises:
        Unavailable: there is no `redis-server`, no client library for it, or it doesn't come up.
        RuntimeError: a reservation was refused.
    """
    with redis(folder) as (url, pid):
        return [_of(mode, limits, url, pid, rounds) for mode, limits in MODES.items()]


def _of(mode: str, limits: Limits, url: str, pid: int, rounds: int) -> RedisFigures:
    found: list[tuple[float, float, float]] = []
    for number in range(rounds + 1):
        turn = uvloop.run(_turn(url, limits.windows(f"user:{mode}"), pid, f"{mode}-{number}"))
        if number:  # the first one warms up
            found.append(turn)
    spreads = [Spread.over(list(values)) for values in zip(*found, strict=True)]
    per_s, own_us, redis_us = (spread for spread in spreads if spread is not None)
    return RedisFigures(mode, per_s, own_us, redis_us)


async def _turn(url: str, windows: tuple[Window, ...], pid: int, name: str) -> tuple[float, float, float]:
    ledger = RedisLedger(url, SystemClock(), RedisOptions(timeout_s=PATIENCE_S))
    await ledger.open()
    try:
        ours, theirs, begun = time.process_time(), cpu_s(pid), time.monotonic()
        await Pairs(ledger, windows, name).make(PAIRS)
        took = time.monotonic() - begun
        ours, theirs = time.process_time() - ours, cpu_s(pid) - theirs
        return PAIRS / took, ours / PAIRS * 1e6, theirs / PAIRS * 1e6
    finally:
        await ledger.close()


class Pairs:
    """Reserves, and settles what was granted, with `IN_FLIGHT` of them under way."""

    def __init__(self, ledger: RedisLedger, windows: tuple[Window, ...], name: str) -> None:
        self._ledger = ledger
        self._charges = [Charge(window, 1) for window in windows]
        self._name = name
        self._left = self._awaited = 0
        self._done = asyncio.Event()
        self._refused = ""

    async def make(self, pairs: int) -> None:
        """So many of them, and wait for the last one's answer and for all settlements to be sent.

        Raises:
            RuntimeError: one was refused.
        """
        self._left = self._awaited = pairs
        for _ in range(min(IN_FLIGHT, pairs)):
            self._reserve()
        await self._done.wait()
        await self._settled()
        if self._refused:
            raise RuntimeError(f"a reservation was refused: {self._refused}")

    async def _settled(self) -> None:
        """Until Redis has answered what was given before: it does so in order."""
        told: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._ledger.peek([charge.window for charge in self._charges], told.set_result)
        await told

    def _reserve(self) -> None:
        self._left -= 1
        reservation = f"{self._name}-{self._left}"
        self._ledger.reserve(reservation, self._charges, lambda verdict: self._decided(reservation, verdict))

    def _decided(self, reservation: str, verdict: Verdict) -> None:
        self._awaited -= 1
        if not verdict.granted:
            self._refused = verdict.unavailable or "the limit is reached"
        self._ledger.settle(reservation, {Measure.TOKENS: 1})
        if self._left and not self._refused:
            self._reserve()
        elif not self._awaited or self._refused:
            self._done.set()


@contextmanager
def redis(folder: Path) -> Iterator[tuple[str, int]]:
    """A server of our own that keeps nothing on disk; its URL and process id."""
    program = shutil.which("redis-server")
    if program is None:
        raise Unavailable("redis: there is no redis-server; scripts/require-apt redis-server installs it")
    port = free_port()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "no", "--loglevel", "warning"]
    with running(command) as process:
        deadline = time.monotonic() + UP_WITHIN_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable("redis: it didn't come up")
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0", process.pid


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False
