"""A client that leaves stops the work that was done for it, whatever it was waiting for."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator

import pytest

from headrace.testing.fake_engine import FakeEngine, Hang, Script
from support.house import House, gateway
from support.raw import RawClient, call
from support.waiting import until

CHAT = "/v1/chat/completions"


def body(*, stream: bool) -> bytes:
    return json.dumps(
        {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    ).encode()


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(Script(tokens=1000, interval_s=0.01, slots=256)) as engine:
        yield engine


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest, engine: FakeEngine) -> AsyncIterator[House]:
    async with gateway(engine.url, capacity=256, asgi=request.param) as house:
        yield house
        assert house.control.running == 0
        assert house.control.waiting == 0
        assert not house.inference.active


@pytest.mark.compliance("O95")
@pytest.mark.req("D25")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", [Hang(-1), Hang(0), Hang(3), None])
async def test_leaving_before_and_during_the_answer_is_seen_by_the_backend(
    engine: FakeEngine, house: House, stream: bool, fault: Hang | None
) -> None:
    engine.script = Script(tokens=1000, interval_s=0.01, fault=fault)
    async with RawClient(house.port) as client:
        client.request("POST", CHAT, house.auth, body(stream=stream))
        await engine.until(lambda stats: stats.started == 1)
        if stream and (fault is None or fault.after_events > 0):
            await client.head()
    await engine.until(lambda stats: stats.aborted == 1)
    await idle(house)


@pytest.mark.compliance("O95")
async def test_leaving_while_waiting_for_a_slot(engine: FakeEngine) -> None:
    async with gateway(engine.url, capacity=1) as house, RawClient(house.port) as first:
        first.request("POST", CHAT, house.auth, body(stream=True))
        await first.head()
        async with RawClient(house.port) as second:
            second.request("POST", CHAT, house.auth, body(stream=True))
            await until(lambda: house.control.waiting == 1)
        await until(lambda: house.control.waiting == 0)
    assert engine.stats.started == 1


@pytest.mark.compliance("O95")
async def test_leaving_in_the_middle_of_the_request(engine: FakeEngine, house: House) -> None:
    async with RawClient(house.port) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
        client.send(f"{head}authorization: {house.auth['authorization']}\r\n\r\n{{".encode())
        await until(lambda: house.listener.connections == 1)
    await until(lambda: house.listener.connections == 0)
    assert engine.stats.started == 0


@pytest.mark.compliance("O95")
async def test_an_embedding_keeps_its_slot_until_the_backend_has_finished(engine: FakeEngine) -> None:
    engine.script = Script(delay_s=0.3)
    request = json.dumps({"model": "fake", "input": "x"}).encode()
    async with gateway(engine.url, capacity=1) as house:
        async with RawClient(house.port) as client:
            client.request("POST", "/v1/embeddings", house.auth, request)
            await engine.until(lambda stats: stats.started == 1)
        await until(lambda: house.listener.connections == 0)
        assert house.control.busy("b0") == 1
        assert (await call(house.port, "POST", "/v1/embeddings", house.auth, request)).status == 200
        assert engine.stats.max_active == 1
        assert engine.stats.aborted == 0


@pytest.mark.compliance("O95")
@pytest.mark.slow
async def test_two_hundred_clients_leave_at_random_moments_and_nothing_stays_behind(
    engine: FakeEngine, house: House
) -> None:
    chance = random.Random(1)
    tasks = len(asyncio.all_tasks())

    async def visit() -> None:
        async with RawClient(house.port) as client:
            client.request("POST", CHAT, house.auth, body(stream=chance.random() < 0.5))
            try:
                async with asyncio.timeout(chance.uniform(0, 0.5)):
                    await client.closed()
            except TimeoutError:
                pass

    async with asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(visit())
    await engine.until(lambda stats: stats.active == 0, timeout_s=20)
    await until(lambda: house.listener.connections == 0)
    await idle(house)
    assert engine.stats.finished == 0
    assert engine.stats.aborted == engine.stats.started
    await until(lambda: len(asyncio.all_tasks()) <= tasks + 2)


async def idle(house: House) -> None:
    await until(lambda: house.control.running == 0)
