"""How long after a client closed its socket the upstream sees it: through each stack, streamed and plain."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bench.endpoint import LOOK_EVERY_S
from bench.figures import Spread
from bench.programs import Upstream
from bench.site import Site, Stack

Mode = Literal["stream", "plain"]
MODES: tuple[Mode, ...] = ("stream", "plain")
SEEN_WITHIN_S = 5.0
TOKENS_READ = b" tok2"
"""A streaming client leaves when it has seen this."""
BAR_MS = 250.0


@dataclass(frozen=True, slots=True)
class Cancels:
    """Through one stack: milliseconds until the upstream saw it, and how often it didn't within `SEEN_WITHIN_S`."""

    stack: str
    mode: Mode
    ms: Spread | None
    unseen: int


def measure(site: Site, stack: Stack, mode: Mode, times: int) -> Cancels:
    """Leave `times` times, one after the other."""
    answers_for = 4 * int(SEEN_WITHIN_S) * 1_000_000  # so long that it can't end by itself meanwhile
    site.upstream.set(
        {"tokens": answers_for // 20_000, "interval_us": 20_000, "delay_us": answers_for, "head_delay_us": 0}
    )
    seen: list[float] = []
    unseen = 0
    for _ in range(times):
        latency = _leave_once(site.upstream, stack, mode)
        if latency is None:
            unseen += 1
        else:
            seen.append(latency)
    return Cancels(stack.name, mode, Spread.over(seen), unseen)


def _leave_once(upstream: Upstream, stack: Stack, mode: Mode) -> float | None:
    before = upstream.stats()
    with socket.create_connection(("127.0.0.1", stack.endpoint.port), timeout=SEEN_WITHIN_S) as client:
        client.sendall(_request(mode, stack))
        if mode == "stream":
            _read_until(client, TOKENS_READ)
        elif not wait_for(upstream, lambda now: _under_way(now) > _under_way(before)):
            return None
        left_us = time.monotonic_ns() // 1000
    if not wait_for(upstream, lambda now: _aborted(now) > _aborted(before)):
        return None
    return (upstream.stats()["last_abort_us"] - left_us) / 1000


def _request(mode: Mode, stack: Stack) -> bytes:
    body = json.dumps(
        {
            "model": "bench",
            "messages": [{"role": "user", "content": "Go on until I leave."}],
            "stream": mode == "stream",
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {stack.endpoint.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _read_until(client: socket.socket, mark: bytes) -> None:
    received = b""
    while mark not in received:
        piece = client.recv(65536)
        if not piece:
            raise ConnectionError(f"the stream ended early: {received[-200:]!r}")
        received += piece


def wait_for(upstream: Upstream, condition: Callable[[dict[str, int]], bool]) -> bool:
    deadline = time.monotonic() + SEEN_WITHIN_S
    while time.monotonic() < deadline:
        if condition(upstream.stats()):
            return True
        time.sleep(LOOK_EVERY_S)
    return False


def _under_way(stats: dict[str, int]) -> int:
    # Both kinds: a gateway may ask for a stream and assemble the plain answer itself.
    return stats["pending"] + stats["active"]


def _aborted(stats: dict[str, int]) -> int:
    return stats["aborted"] + stats["plain_aborted"]
