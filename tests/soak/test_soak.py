"""Mixed traffic over backends that fail in every way: each request ends in a right answer or one clean error, and nothing
grows.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from collections import Counter

import psutil
import pytest

from headrace.connectors.direct import DirectConnector
from headrace.gateway.gate import ConnectionLimits
from headrace.gateway.token_lane import Patience
from headrace.testing.fake_engine import Cut, ErrorEvent, FakeEngine, Garbage, Refuse, Script
from support.house import House, gateway
from support.raw import RawClient
from support.strict import check_chat_stream
from support.waiting import until

CHAT = "/v1/chat/completions"
VISITORS = 24
WRONG = [b"{", b"[]", b'{"model":"fake"}', b'{"model":"nobody","messages":[{"role":"user","content":"x"}]}']
FAULTS = [
    Refuse(500),
    Refuse(503),
    Refuse(429),
    Cut(-1),
    Cut(2),
    Garbage(0),
    Garbage(2),
    ErrorEvent(1),
    None,
    None,
    None,
]


def visible(tokens: int) -> str:
    """What the backend says when nothing goes wrong."""
    return " ".join(f"tok{number}" for number in range(tokens))


class Soak:
    """Visitors come, ask in some way, and check what they get; some leave."""

    def __init__(self, house: House, chance: random.Random) -> None:
        self.house = house
        self.chance = chance
        self.seen: Counter[str] = Counter()

    async def visit(self, deadline: float) -> None:
        """One client, on one connection after another, until *deadline*."""
        while time.monotonic() < deadline:
            async with RawClient(self.house.port) as client:
                for _ in range(self.chance.randint(1, 8)):
                    if not await self._ask(client):
                        break

    async def _ask(self, client: RawClient) -> bool:
        """One request; whether the connection can be used again."""
        roll = self.chance.random()
        if roll < 0.1:
            client.request("POST", CHAT, self.house.auth, self.chance.choice(WRONG))
            response = await client.response()
            assert response.status in (400, 404)
            assert response.error
            self.seen["wrong"] += 1
            return True
        tokens, stream = self.chance.randint(1, 12), roll < 0.7
        body = {
            "model": "fake",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": tokens,
            "stream": stream,
        }
        client.request("POST", CHAT, self.house.auth, json.dumps(body).encode())
        if roll > 0.9:
            await asyncio.sleep(self.chance.uniform(0, 0.02))
            self.seen["left"] += 1
            return False
        response = await client.response()
        self._check(response.status, response.body, stream, tokens)
        return True

    def _check(self, status: int, body: bytes, stream: bool, tokens: int) -> None:
        if status != 200:
            assert status in (502, 503, 504), (status, body)
            assert json.loads(body)["error"]["message"]
            self.seen["error"] += 1
        elif not stream:
            assert json.loads(body)["choices"][0]["message"]["content"] == visible(tokens)
            self.seen["answer"] += 1
        elif body.endswith(b"data: [DONE]\n\n"):
            assert check_chat_stream(body, usage=False)[0]["content"] == visible(tokens)
            self.seen["stream"] += 1
        else:
            last = body.rstrip().split(b"\n\n")[-1].removeprefix(b"data: ")
            assert json.loads(last)["error"]["message"]
            assert body.count(b'"error"') == 1
            self.seen["broken stream"] += 1


async def disturb(engines: list[FakeEngine], chance: random.Random, deadline: float) -> None:
    """Change what the backends do, several times a second; now and then one dies and comes back."""
    while time.monotonic() < deadline:
        engine = chance.choice(engines)
        engine.script = Script(tokens=12, interval_s=chance.choice([0, 0.001]), fault=chance.choice(FAULTS))
        if chance.random() < 0.1:
            await engine.stop()
            await asyncio.sleep(0.1)
            await engine.start()
        await asyncio.sleep(0.1)
    for engine in engines:
        engine.script = Script(tokens=12)


async def soak(seconds: float) -> Counter[str]:
    """Run the traffic for *seconds*, then see that all of it is gone and nothing has grown."""
    chance = random.Random(7)
    process = psutil.Process()
    engines = [FakeEngine(Script(tokens=12)) for _ in range(3)]
    for engine in engines:
        await engine.start()
    patience = Patience(grace_s=1, interval_s=1)
    limits = ConnectionLimits(keep_alive_s=1)
    async with gateway(
        *[engine.url for engine in engines], capacity=8, patience=patience, connection=limits
    ) as house:
        run = Soak(house, chance)
        await _round(run, engines, chance, seconds / 3)
        settled = await _settle(house, process)
        await _round(run, engines, chance, seconds * 2 / 3)
        after = await _settle(house, process)
        assert after["descriptors"] <= settled["descriptors"] + 8, (settled, after)
        assert after["tasks"] <= settled["tasks"] + 2, (settled, after)
        assert after["resident"] <= settled["resident"] * 1.25 + 16e6, (settled, after)
    for engine in engines:
        await engine.stop()
    return run.seen


async def _round(run: Soak, engines: list[FakeEngine], chance: random.Random, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(disturb(engines, chance, deadline))
        for _ in range(VISITORS):
            group.create_task(run.visit(deadline))


async def _settle(house: House, process: psutil.Process) -> dict[str, float]:
    await until(
        lambda: house.control.running == 0 and house.control.waiting == 0 and not house.inference.active
    )
    await until(lambda: house.listener.connections == 0)
    gc.collect()
    direct = [connector for connector in house.connectors.values() if isinstance(connector, DirectConnector)]
    kept = sum(connector.idle_connections for connector in direct)  # both ends of each are ours
    return {
        "descriptors": process.num_fds() - 2 * kept,
        "tasks": len(asyncio.all_tasks()),
        "resident": process.memory_info().rss,
    }


@pytest.mark.slow
async def test_a_slice_of_the_soak() -> None:
    seen = await soak(15)
    assert min(seen[kind] for kind in ("answer", "stream", "error", "wrong", "left")) > 10, seen


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(1500)
async def test_twenty_minutes_of_it() -> None:
    seen = await soak(1200)
    assert min(seen.values()) > 100, seen
