"""Mixed traffic over backends that fail in every way: each request ends in a right answer or one clean error, and nothing
grows.

Twice: against `headrace up` in a process of its own, whose memory and descriptors are nobody else's; and against a gateway
in this process, where the event loop's tasks and what Python allocated can be counted.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.gateway.gate import ConnectionLimits
from headrace.gateway.requests import BodyLimits
from headrace.gateway.token_lane import Patience
from headrace.kernel.aio import Tasks
from headrace.testing.fake_engine import Script
from soak.backends import SLOTS, Backends, backends
from soak.visitors import CHAT, Door, Visitors
from support.house import House, gateway
from support.raw import RawClient, call
from support.service import Service
from support.waiting import until

VISITORS = 24
ENDINGS = [
    "chat", "streamed chat", "completion", "streamed completion", "embedding", "broken stream", "error 502", "error 503",
    "refused 400", "refused 401", "refused 404", "refused 415", "refused 431", "other path", "left", "half closed",
    "left before the request was whole",
]  # fmt: skip
"""What has to be seen in any run that is long enough to mean something."""


CONFIG = """
[server]
header_timeout = "2s"
body_timeout = "2s"
keep_alive = "5s"

[limits]
queue_wait = "2s"
queue_size = 64
anonymous_requests_per_minute = 0
"""
UPSTREAM = """
[[upstreams]]
name = "b{number}"
url = "{url}"
capacity = {slots}
models = {models}
timeouts = {{ connect = "1s", first_byte = "1s", idle = "1s" }}
"""
GROWTH_BYTES = 5_000_000
"""What a process may grow by after it was warm, however long it serves: the heap's fragments."""
LOAD_BYTES = 15_000_000
"""What all of these clients may take at once, slow readers of large answers included."""
READERS = 6
"""Descriptors of connections to the database that are opened when they are first needed: a file and its log for each reader."""
GROWTH_BLOCKS = 2000
"""The same, in blocks of Python's allocator: of thousands of requests, not one in ten may leave an object behind."""


async def traffic(visitors: Visitors, served: Backends, seconds: float) -> None:
    """Visitors and faults at once, for *seconds*; in the end no engine works for anybody, and every slot is free."""
    deadline = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(served.disturb(deadline))
        for _ in range(VISITORS):
            group.create_task(visitors.visit(deadline))
    await until(lambda: served.quiet)
    served.forget()
    await fill_every_slot(visitors.door, served)


async def fill_every_slot(door: Door, served: Backends) -> None:
    """As many requests as the engines have slots are worked on at the same time: none was lost on the way."""
    for engine in served.engines:
        engine.script = Script(tokens=10_000, interval_s=0.2)
    full = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(SLOTS * len(served.engines)):
            group.create_task(_occupy(door, full))
        await until(
            lambda: all(engine.stats.active == SLOTS for engine in served.engines),
            timeout_s=60,  # engines that were away are found again after a while
        )
        full.set()
    served.calm()
    await until(lambda: served.quiet)
    served.forget()


async def _occupy(door: Door, full: asyncio.Event) -> None:
    """Have one slot of an engine until all are taken; ask again when it was the odd peer who answered."""
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "stream": True}
    while True:
        async with RawClient(door.port) as client:
            client.request("POST", CHAT, door.auth, json.dumps(body).encode())
            status, _ = await client.head()
            while status == 200 and await client.chunk():  # those of an engine come and come
                if full.is_set():
                    return
        await asyncio.sleep(0.05)


class Watched:
    """The gateway's process. `most_descriptors`: that were open at once; `resident`: its size, sampled twice a second."""

    def __init__(self, pid: int, served: Backends) -> None:
        self._process = psutil.Process(pid)
        self._ports = {int(url.rpartition(":")[2]) for url in served.urls}
        self.most_descriptors = 0
        self.resident: list[int] = []

    async def sample(self) -> None:
        """Look, for ever."""
        while True:
            self.most_descriptors = max(self.most_descriptors, self._process.num_fds())
            self.resident.append(self._process.memory_info().rss)
            await asyncio.sleep(0.5)

    async def descriptors(self) -> int:
        """How many are open when no client is there, without the connections that are kept to backends."""
        seen = [-1]
        while (
            len(set(seen[-3:])) > 1 or len(seen) < 4
        ):  # a check of the backends may come and go while we look
            kept = [
                c for c in self._process.net_connections("inet") if getattr(c.raddr, "port", 0) in self._ports
            ]
            seen.append(self._process.num_fds() - len(kept))
            await asyncio.sleep(0.3)
        return seen[-1]

    @property
    def size(self) -> int:
        """Resident bytes."""
        return int(self._process.memory_info().rss)


async def soak_a_process(home: Path, seconds: float) -> None:
    """A third of the time to get warm, the rest to grow in."""
    chance = random.Random(7)
    async with backends(chance) as served:
        upstreams = [
            UPSTREAM.format(number=number, url=url, slots=SLOTS, models=json.dumps(models))
            for number, (url, models) in enumerate(zip(served.urls, served.models, strict=True))
        ]
        service = Service(home, CONFIG + "".join(upstreams))
        try:
            await asyncio.to_thread(service.__enter__)
            visitors = Visitors(Door(service.port, service.auth), chance)
            watched = Watched(service.process.pid, served)
            await call(service.port, "GET", "/health")
            start, start_descriptors = watched.size, await watched.descriptors()
            async with Tasks() as tasks:
                tasks.spawn(watched.sample(), name="sample")
                await traffic(visitors, served, seconds / 3)
                warm, warm_descriptors, before = watched.size, await watched.descriptors(), visitors.requests
                await traffic(visitors, served, seconds * 2 / 3)
            end, end_descriptors = watched.size, await watched.descriptors()
            service.send(signal.SIGTERM)
            status = await asyncio.to_thread(service.ended)
        finally:
            await asyncio.to_thread(service.__exit__, None, None, None)
    requests = visitors.requests - before
    print(
        f"requests {before} + {requests}; resident MB: start {start / 1e6:.1f}, warm {warm / 1e6:.1f}, "
        f"end {end / 1e6:.1f}, most {max(watched.resident) / 1e6:.1f}; descriptors: start {start_descriptors}, warm {warm_descriptors}, end {end_descriptors}, "
        f"most {watched.most_descriptors}\nfaults {dict(served.faults)}, engines held back {served.held} times\nendings {dict(visitors.seen.most_common())}\n"
        f"resident MB, every 30 s: {[round(size / 1e6, 1) for size in watched.resident[::60]]}"
    )
    assert status == 0
    assert warm_descriptors == end_descriptors <= start_descriptors + READERS
    assert watched.most_descriptors <= start_descriptors + VISITORS * 2 + SLOTS * 8
    assert end - warm <= GROWTH_BYTES
    assert max(watched.resident) - start <= LOAD_BYTES
    assert served.held
    assert "Traceback" not in service.log.text
    assert "[error" not in service.log.text
    assert {kind for kind in ENDINGS if visitors.seen[kind] < 5} == set(), visitors.seen


async def soak_in_process(seconds: float, caplog: pytest.LogCaptureFixture) -> None:
    """The same traffic, where tasks and allocated blocks can be counted."""
    caplog.set_level(
        logging.ERROR, "asyncio"
    )  # its warnings are about the backends' sockets, and kept in memory
    chance = random.Random(8)
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    async with (
        backends(chance) as served,
        gateway(
            *served.urls,
            capacity=SLOTS,
            queue_wait_s=2,
            patience=Patience(grace_s=0.3, interval_s=0.3),
            limits=BodyLimits(pause_s=1, total_s=2),
            connection=ConnectionLimits(head_time_s=1, keep_alive_s=5, write_s=1),
        ) as house,
    ):
        # Until each was asked once, a model that nobody has may be one that wasn't told yet.
        await until(lambda: all(node.models for node in house.registry.nodes()))
        visitors = Visitors(Door(house.port, house.auth), chance)
        await traffic(visitors, served, seconds / 3)
        warm, before = await _counted(house, served), visitors.requests
        await traffic(visitors, served, seconds * 2 / 3)
        end, requests = await _counted(house, served), visitors.requests - before
    print(f"requests {before} + {requests}; (tasks, blocks): warm {warm}, end {end}; {dict(visitors.seen)}")
    assert not troubles
    assert not caplog.records
    assert end[0] <= warm[0]
    assert end[1] - warm[1] <= GROWTH_BLOCKS


async def _counted(house: House, served: Backends) -> tuple[int, int]:
    """The tasks of this loop and the blocks of Python's allocator, once nobody is there and no connection is kept.

    The visitors' and the engines' own sockets count too, as they live in this process: none may be on its way out.
    """
    await until(
        lambda: house.control.running == 0 and house.control.waiting == 0 and not house.inference.active
    )
    await until(lambda: house.listener.connections == 0)
    for engine in served.engines:
        engine.drop_connections()
    await until(lambda: len(asyncio.all_tasks()) <= len(house.connectors) + 3)
    ports = {house.port, *(int(url.rpartition(":")[2]) for url in served.urls)}
    asked = 2 * len(served.urls)  # both ends of the connection on which each backend is asked how it is
    await until(lambda: _connections(ports) <= asked)
    gc.collect()
    return len(asyncio.all_tasks()), sys.getallocatedblocks()


def _connections(ports: set[int]) -> int:
    """How many sockets of this process are an end of a connection to one of *ports*."""
    sockets = psutil.Process().net_connections("tcp")
    connected = [c for c in sockets if c.status != psutil.CONN_LISTEN]
    return sum(bool({c.laddr.port, getattr(c.raddr, "port", 0)} & ports) for c in connected)


@pytest.mark.slow
async def test_a_slice_against_a_process(tmp_path: Path) -> None:
    await soak_a_process(tmp_path, 45)


@pytest.mark.slow
async def test_a_slice_in_this_process(caplog: pytest.LogCaptureFixture) -> None:
    await soak_in_process(15, caplog)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(1700)
async def test_twenty_minutes_against_a_process(tmp_path: Path) -> None:
    await soak_a_process(tmp_path, 1200)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_three_minutes_in_this_process(caplog: pytest.LogCaptureFixture) -> None:
    await soak_in_process(180, caplog)
