"""Clients that leave, or close their half, at every point of a request and on every path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest

from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint
from headrace.kernel.clock import SystemClock
from headrace.ports.connector import Traits
from headrace.ports.control import Ending
from headrace.testing.fake_engine import FakeEngine, Hang, Script
from support.house import KEY, House, gateway
from support.raw import RawClient, call
from support.waiting import until

MESSAGES = [{"role": "user", "content": "hi"}]
PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat, streamed": ("/v1/chat/completions", {"messages": MESSAGES, "stream": True}),
    "chat, whole": ("/v1/chat/completions", {"messages": MESSAGES}),
    "completion, streamed": ("/v1/completions", {"prompt": "x", "stream": True}),
    "completion, whole": ("/v1/completions", {"prompt": "x"}),
}
EMBEDDING = ("/v1/embeddings", {"input": "x"})
LONG = Script(tokens=1000, interval_s=0.01)


def send(client: RawClient, house: House, ask: tuple[str, dict[str, Any]]) -> None:
    path, members = ask
    client.request("POST", path, house.auth, json.dumps({"model": "fake", **members}).encode())


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(LONG) as engine:
        yield engine


@pytest.fixture(params=["token lane", "asgi lane", "backend that stops whole answers"])
async def house(request: pytest.FixtureRequest, engine: FakeEngine) -> AsyncIterator[House]:
    stops = request.param.startswith("backend")
    direct = DirectConnector(
        Endpoint.parse(engine.url), clock=SystemClock(), traits=Traits(cancels_unstreamed=stops)
    )
    async with gateway(engines={"fake": direct}, asgi=request.param == "asgi lane") as house:
        yield house


async def nothing_is_held(engine: FakeEngine, house: House) -> None:
    """The backend was stopped, and its slot is free for the next one."""
    await engine.until(lambda stats: stats.active == 0)
    await until(lambda: house.control.running == 0)
    assert engine.stats.finished == 0
    assert engine.stats.aborted == engine.stats.started == 1
    assert not house.inference.active
    assert house.control.totals.requests == {Ending.CANCELLED: 1}
    assert house.control.busy("local/fake") == 0
    engine.script = Script(tokens=2)
    body = json.dumps({"model": "fake", "messages": MESSAGES}).encode()
    assert (await call(house.port, "POST", "/v1/chat/completions", house.auth, body)).status == 200


MOMENTS: dict[str, Script] = {
    "before the backend's head": Script(
        tokens=1000, interval_s=0.01, fault=Hang(-1), cancels_unstreamed=True
    ),
    "before its first event": Script(tokens=1000, interval_s=0.01, fault=Hang(0), cancels_unstreamed=True),
    "under way": Script(tokens=1000, interval_s=0.01, cancels_unstreamed=True),
}


def leave(client: RawClient) -> None:
    client.writer.transport.abort()


def leave_politely(client: RawClient) -> None:
    client.writer.close()


def half_close(client: RawClient) -> None:
    client.writer.write_eof()


@pytest.mark.compliance("O95", "O96")
@pytest.mark.parametrize("goodbye", [leave, leave_politely, half_close])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("path", PATHS)
async def test_leaving_stops_the_backend_at_once(
    engine: FakeEngine, house: House, path: str, moment: str, goodbye: Callable[[RawClient], None]
) -> None:
    engine.script = MOMENTS[moment]
    async with RawClient(house.port) as client:
        send(client, house, PATHS[path])
        await engine.until(lambda stats: stats.started == 1)
        if moment == "under way":
            await engine.until(lambda stats: stats.tokens >= 3)
            if "streamed" in path:
                await client.head()
        goodbye(client)
        await nothing_is_held(engine, house)


@pytest.mark.compliance("O95")
@pytest.mark.parametrize("path", PATHS)
async def test_what_was_produced_for_a_client_that_left_is_counted(engine: FakeEngine, path: str) -> None:
    async with gateway(engine.url) as house:
        async with RawClient(house.port) as client:
            send(client, house, PATHS[path])
            await engine.until(lambda stats: stats.tokens >= 5)
        await engine.until(lambda stats: stats.aborted == 1)
        await until(lambda: house.control.running == 0)
        totals = house.control.totals
        assert 1 <= totals.completion_tokens <= engine.stats.tokens
        assert totals.completion_tokens >= 4, "what came in the last moment may be missing"
        assert totals.prompt_tokens >= 1


@pytest.mark.compliance("O95", "O96")
@pytest.mark.parametrize("goodbye", [leave, half_close])
async def test_an_embedding_that_cannot_be_stopped_keeps_its_slot_until_it_ends(
    engine: FakeEngine, goodbye: Callable[[RawClient], None]
) -> None:
    engine.script = Script(fault=Hang(-1))
    async with gateway(engine.url, capacity=1) as house, RawClient(house.port) as client:
        send(client, house, EMBEDDING)
        await engine.until(lambda stats: stats.started == 1)
        goodbye(client)
        await until(lambda: house.listener.connections == 0)
        assert house.control.busy("b0") == 1
        engine.release()
        await until(lambda: house.control.busy("b0") == 0)
        assert house.control.totals.requests == {Ending.CANCELLED: 1}


@pytest.mark.compliance("O95", "O96")
@pytest.mark.parametrize("goodbye", [leave, half_close])
async def test_an_embedding_that_can_be_stopped_is(
    engine: FakeEngine, goodbye: Callable[[RawClient], None]
) -> None:
    engine.script = Script(fault=Hang(-1), cancels_unstreamed=True)
    direct = DirectConnector(
        Endpoint.parse(engine.url), clock=SystemClock(), traits=Traits(cancels_unstreamed=True)
    )
    async with gateway(engines={"fake": direct}) as house, RawClient(house.port) as client:
        send(client, house, EMBEDDING)
        await engine.until(lambda stats: stats.started == 1)
        goodbye(client)
        await nothing_is_held(engine, house)


@pytest.mark.compliance("O95", "O96")
@pytest.mark.parametrize("goodbye", [leave, half_close])
@pytest.mark.parametrize("path", [*PATHS.values(), EMBEDDING], ids=[*PATHS, "embedding"])
async def test_leaving_the_queue_starts_nothing(
    engine: FakeEngine, path: tuple[str, dict[str, Any]], goodbye: Callable[[RawClient], None]
) -> None:
    async with gateway(engine.url, capacity=1) as house, RawClient(house.port) as first:
        send(first, house, PATHS["chat, streamed"])
        await first.head()
        async with RawClient(house.port) as second:
            send(second, house, path)
            await until(lambda: house.control.waiting == 1)
            goodbye(second)
            await until(lambda: house.control.waiting == 0)
        assert engine.stats.started == 1
        assert engine.stats.aborted == 0


@pytest.mark.compliance("O95", "O96")
@pytest.mark.parametrize("goodbye", [leave, half_close])
@pytest.mark.parametrize("asgi", [False, True])
async def test_leaving_in_the_middle_of_the_request_starts_nothing(
    engine: FakeEngine, asgi: bool, goodbye: Callable[[RawClient], None]
) -> None:
    async with gateway(engine.url, asgi=asgi) as house, RawClient(house.port) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        client.send(f"{head}content-length: 100\r\n\r\n{{".encode())
        await until(lambda: house.listener.connections == 1)
        goodbye(client)
        await until(lambda: house.listener.connections == 0)
        assert engine.stats.started == 0


@pytest.mark.compliance("O95")
@pytest.mark.parametrize("stream", [True, False])
async def test_the_official_clients_own_ways_to_leave(engine: FakeEngine, house: House, stream: bool) -> None:
    engine.script = MOMENTS["under way"]
    async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0) as client:
        ask: Any = {"model": "fake", "messages": MESSAGES}
        if stream:
            answer = await client.chat.completions.create(**ask, stream=True)
            async for _ in answer:
                break
            await answer.close()
        else:
            asking = asyncio.ensure_future(client.chat.completions.create(**ask))
            await engine.until(lambda stats: stats.tokens >= 3)
            asking.cancel()
            await asyncio.wait([asking])
        await nothing_is_held(engine, house)
