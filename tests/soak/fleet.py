"""Engines as processes of their own, and what befalls them: they are killed, frozen, slowed and made to fail."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from headrace.testing.fake_engine import Cut, ErrorEvent, Garbage, Hang, Refuse, Script
from soak.backends import HTML
from support.raw import call

TOKENS = 8
INTERVAL_S = 0.05
CALM = Script(tokens=TOKENS, interval_s=INTERVAL_S, slots=1000)
_HTML_TYPE = {"Content-Type": "text/html"}
FAULTS: dict[str, Script] = {
    "500": replace(CALM, fault=Refuse(500)),
    "429": replace(CALM, fault=Refuse(429)),
    "429, later": replace(CALM, fault=Refuse(429, headers={"Retry-After": "1"})),
    "504": replace(CALM, fault=Refuse(504)),
    "502, a page": replace(CALM, fault=Refuse(502, HTML, _HTML_TYPE)),
    "200, a page": replace(CALM, fault=Refuse(200, HTML, _HTML_TYPE)),
    "loading": replace(CALM, loading=True),
    "garbage": replace(CALM, fault=Garbage(0)),
    "garbage under way": replace(CALM, fault=Garbage(4)),
    "cut": replace(CALM, fault=Cut(-1)),
    "cut under way": replace(CALM, fault=Cut(4)),
    "error under way": replace(CALM, fault=ErrorEvent(3)),
    "hangs": replace(CALM, fault=Hang(-1)),
    "hangs under way": replace(CALM, fault=Hang(4)),
    "slow": replace(CALM, interval_s=0.3),
}
VIOLENT = ("killed", "frozen")
_MAYBE_BEGUN = {"came", "200", "500", "502", "504"}
"""What an engine's diary says of requests that, for all that a gateway can know, it began. 429 and its "Loading model" (503) say that it
didn't."""
_BACK_S = 60.0


@dataclass
class Engine:
    """One engine. `away`: when it couldn't read what was sent to it, so that nobody knows what became of that."""

    number: int
    diary: Path
    port: int = 0
    away: list[tuple[float, float]] = field(default_factory=list)

    async def start(self) -> None:
        """Start, on the port of before."""
        options = ("--port", str(self.port), "--diary", str(self.diary), "--script", _json(CALM))
        command = (sys.executable, "-m", "headrace.testing.fake_engine", *options)
        self._process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout is not None
        async with asyncio.timeout(_BACK_S):
            self.port = msgspec.json.decode(await self._process.stdout.readline())["port"]

    async def behave(self, script: Script) -> None:
        """Follow this script from now on."""
        assert (await call(self.port, "PUT", "/script", body=_json(script).encode())).status == 204

    async def killed(self, seconds: float) -> None:
        """Die on the spot, and come back."""
        began = time.monotonic()
        await self.end()
        await asyncio.sleep(seconds)
        await self.start()
        self.away.append((began, time.monotonic()))

    async def frozen(self, seconds: float) -> None:
        """Stop where it stands; its sockets are open all the same."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self._process.send_signal(signal.SIGCONT)
        self.away.append((began, time.monotonic()))

    async def end(self) -> None:
        """Kill it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def happened(self, executions: Counter[str], runs: Counter[str]) -> None:
        """Count, by request, the times that it may have been begun here, and those that it was."""
        for line in self.diary.read_text().splitlines():
            request_id, word = line.split(" ")
            executions[request_id] += word in _MAYBE_BEGUN
            runs[request_id] += word == "ran"


class Fleet:
    """Engines, from `async with` to its end. `faults`: how often each befell one."""

    def __init__(self, folder: Path, size: int, chance: random.Random) -> None:
        self.engines = [Engine(number, folder / f"diary-{number}") for number in range(size)]
        self.faults: Counter[str] = Counter()
        self._chance = chance

    async def __aenter__(self) -> Self:
        async with asyncio.TaskGroup() as group:
            for engine in self.engines:
                group.create_task(engine.start())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for engine in self.engines:
            await engine.end()

    async def disturb(self, deadline: float) -> None:
        """Let something befall each now and then; at the deadline nothing more is wrong with any of them."""
        async with asyncio.TaskGroup() as group:
            for engine in self.engines:
                group.create_task(self._disturb(engine, deadline))

    async def _disturb(self, engine: Engine, deadline: float) -> None:
        chance, plans = self._chance, _shuffled(self._chance)
        await asyncio.sleep(chance.uniform(0, 1))
        while (left_s := deadline - time.monotonic()) > 0:
            name = next(plans)
            seconds = min(chance.uniform(0.2, 2.0), left_s)
            self.faults[name] += 1
            if name == "killed":
                await engine.killed(seconds / 2)
            elif name == "frozen":
                await engine.frozen(seconds * 1.5)
            else:
                await engine.behave(FAULTS[name])
                await asyncio.sleep(seconds)
                await engine.behave(CALM)
            await asyncio.sleep(min(chance.uniform(0.2, 2.0), max(0.0, deadline - time.monotonic())))

    def executions(self) -> tuple[Counter[str], Counter[str]]:
        """For each request: how often an engine was sent it and may have begun it, and how often one did."""
        sent: Counter[str] = Counter()
        run: Counter[str] = Counter()
        for engine in self.engines:
            engine.happened(sent, run)
        return sent, run

    def was_away(self, began: float, ended: float) -> bool:
        """Whether any engine couldn't read at some time between."""
        return any(start < ended and began < end for engine in self.engines for start, end in engine.away)


def _shuffled(chance: random.Random) -> Iterator[str]:
    """All that may befall, in ever new order; the violent as often as three others."""
    while True:
        names = [*FAULTS, *VIOLENT * 3]
        chance.shuffle(names)
        yield from names


def _json(script: Script) -> str:
    return msgspec.json.encode(script).decode()
