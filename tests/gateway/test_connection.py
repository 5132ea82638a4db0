"""One client connection: how it lasts, how it waits, what it costs others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from headrace.gateway.gate import ConnectionLimits
from headrace.gateway.token_lane import Patience
from headrace.testing.fake_engine import FakeEngine, Hang, Script
from support.house import KEY, House, gateway
from support.raw import RawClient, call
from support.strict import check_chat_stream
from support.waiting import until

CHAT = "/v1/chat/completions"
IMPATIENT = Patience(grace_s=0.2, interval_s=0.2)


def body(model: str = "fake", **members: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **members}).encode()


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(Script(tokens=3)) as engine:
        yield engine


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest, engine: FakeEngine) -> AsyncIterator[House]:
    async with gateway(
        engine.url, asgi=request.param, connection=ConnectionLimits(keep_alive_s=0.3)
    ) as house:
        yield house


@pytest.mark.parametrize(("asgi", "stream"), [(False, False), (False, True), (True, False)])
async def test_http_1_0_gets_its_answer_without_chunks(engine: FakeEngine, asgi: bool, stream: bool) -> None:
    payload = body(stream=stream)
    async with gateway(engine.url, asgi=asgi) as house, RawClient(house.port) as client:
        head = (
            f"POST {CHAT} HTTP/1.0\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(payload)}\r\n\r\n"
        )
        client.send(head.encode() + payload)
        status, headers = await client.head()
        rest = await client.closed()
    assert status == 200
    assert headers["connection"] == "close"
    assert "transfer-encoding" not in headers
    if stream:
        check_chat_stream(rest, usage=False)
    else:
        assert json.loads(rest)["choices"]


@pytest.mark.parametrize("stream", [False, True])
async def test_connection_close_is_heeded(house: House, stream: bool) -> None:
    async with RawClient(house.port) as client:
        client.request("POST", CHAT, house.auth | {"connection": "close"}, body(stream=stream))
        assert (await client.response()).status == 200
        assert await client.closed() == b""


async def test_a_connection_serves_many_requests_and_is_closed_when_idle(house: House) -> None:
    async with RawClient(house.port) as client:
        for stream in (True, False, True):
            client.request("POST", CHAT, house.auth, body(stream=stream))
            assert (await client.response()).status == 200
            client.request("GET", "/v1/models", house.auth)
            assert (await client.response()).status == 200
        assert await client.closed() == b""


async def test_the_head_says_who_answered_and_at_what_cost(engine: FakeEngine) -> None:
    async with gateway(engine.url) as house:
        for stream in (False, True):
            response = await call(house.port, "POST", CHAT, house.auth, body(stream=stream))
            assert response.headers["x-headrace-node"] == "b0"
            assert response.headers["x-headrace-attempts"] == "1"
            assert float(response.headers["x-headrace-overhead-ms"]) >= 0
            assert response.headers["x-request-id"] in engine.stats.executions
            assert response.headers["date"]
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"


@pytest.mark.slow
@pytest.mark.parametrize("asgi", [False, True])
async def test_a_slow_reader_pauses_exactly_its_own_backend(engine: FakeEngine, asgi: bool) -> None:
    engine.script = Script(text="x" * 1000 + " " + "long " * 80_000)
    async with gateway(engine.url, asgi=asgi) as house, RawClient(house.port) as slow:
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow.request("POST", CHAT, house.auth, body(stream=True))
        await engine.until(lambda stats: stats.held >= 1)
        engine.script = Script(tokens=3)
        assert (await call(house.port, "POST", CHAT, house.auth, body(stream=True))).status == 200
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        said = check_chat_stream((await slow.response()).body, usage=False)
        assert said[0]["content"].count("long") == 80_000
        assert engine.stats.aborted == 0


@pytest.mark.slow
async def test_a_reader_that_stands_still_is_cut_off_and_its_backend_stopped(engine: FakeEngine) -> None:
    engine.script = Script(text="long " * 2_000_000)
    async with (
        gateway(engine.url, connection=ConnectionLimits(write_s=0.5)) as house,
        RawClient(house.port) as slow,
    ):
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow.request("POST", CHAT, house.auth, body(stream=True))
        await engine.until(lambda stats: stats.aborted == 1, timeout_s=20)
        await until(lambda: house.control.running == 0)
        await until(lambda: house.listener.connections == 0)


@pytest.mark.compliance("O03", "O44")
async def test_a_stream_that_waits_for_its_place_is_kept_alive_and_then_served(engine: FakeEngine) -> None:
    engine.once(Script(tokens=3, fault=Hang(0)))
    async with gateway(engine.url, capacity=1, patience=IMPATIENT) as house, RawClient(house.port) as first:
        first.request("POST", CHAT, house.auth, body(stream=True))
        await engine.until(lambda stats: stats.active == 1)
        async with RawClient(house.port) as second:
            second.request("POST", CHAT, house.auth, body(stream=True))
            status, headers = await second.head()
            assert status == 200
            assert "x-headrace-node" not in headers, "the head came before anybody served it"
            comments = [await second.chunk() for _ in range(3)]
            assert all(comment.startswith(b": ") and comment.endswith(b"\n\n") for comment in comments)
            engine.release()
            rest = b"".join([part async for part in second._chunks()])
            check_chat_stream(rest[rest.index(b"data:") :], usage=False)


@pytest.mark.compliance("O03", "O04", "O44")
@pytest.mark.slow
async def test_the_official_client_survives_the_comments(engine: FakeEngine) -> None:
    engine.script = Script(tokens=3, delay_s=1.0)
    async with (
        gateway(engine.url, patience=IMPATIENT) as house,
        openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == "tok0 tok1 tok2"


@pytest.mark.compliance("O03", "O44")
async def test_a_silence_under_way_is_filled_with_comments_too(engine: FakeEngine) -> None:
    engine.once(Script(tokens=3, fault=Hang(2)))
    async with gateway(engine.url, patience=IMPATIENT) as house, RawClient(house.port) as client:
        client.request("POST", CHAT, house.auth, body(stream=True))
        assert (await client.head())[0] == 200
        begun = b""
        while b"tok0" not in begun:
            begun += await client.chunk()
        for _ in range(3):
            comment = await client.chunk()
            assert comment.startswith(b": ")
            assert comment.endswith(b"\n\n")
        engine.release()
        rest = b"".join([part async for part in client._chunks()])
        check_chat_stream(begun + rest, usage=False)


@pytest.mark.compliance("O06", "O07")
@pytest.mark.slow
async def test_an_error_in_the_grace_keeps_its_status_and_a_later_one_is_an_event(engine: FakeEngine) -> None:
    async with gateway(engine.url, capacity=1, patience=IMPATIENT, queue_wait_s=0.05) as house:
        engine.once(Script(tokens=3, fault=Hang(0)))
        async with RawClient(house.port) as first:
            first.request("POST", CHAT, house.auth, body(stream=True))
            await engine.until(lambda stats: stats.active == 1)
            assert (await call(house.port, "POST", CHAT, house.auth, body(stream=True))).status == 503
    async with gateway(engine.url, capacity=1, patience=IMPATIENT, queue_wait_s=1.5) as house:
        engine.once(Script(tokens=3, fault=Hang(0)))
        async with RawClient(house.port) as first:
            first.request("POST", CHAT, house.auth, body(stream=True))
            await engine.until(lambda stats: stats.active == 1)
            late = await call(house.port, "POST", CHAT, house.auth, body(stream=True))
            assert late.status == 200
            last = late.body.rstrip().split(b"\n\n")[-1]
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "no_free_slot"


async def test_a_whole_answer_gets_no_comments_however_long_it_takes(engine: FakeEngine) -> None:
    engine.script = Script(tokens=3, delay_s=1.0)
    async with gateway(engine.url, patience=IMPATIENT) as house:
        response = await call(house.port, "POST", CHAT, house.auth, body())
        assert response.json["choices"][0]["message"]["content"] == "tok0 tok1 tok2"


@pytest.mark.compliance("O96")
async def test_a_half_closed_client_counts_as_gone(engine: FakeEngine, house: House) -> None:
    engine.script = Script(tokens=1000, interval_s=0.01)
    async with RawClient(house.port) as client:
        client.request("POST", CHAT, house.auth, body(stream=True))
        await client.head()
        client.writer.write_eof()
        await engine.until(lambda stats: stats.aborted == 1)
        await client.closed()


@pytest.mark.compliance("O95")
@pytest.mark.parametrize("asgi", [False, True])
async def test_pipelined_bytes_do_not_hide_a_disconnect(engine: FakeEngine, asgi: bool) -> None:
    engine.script = Script(tokens=1000, interval_s=0.01)
    async with gateway(engine.url, asgi=asgi) as house:
        async with RawClient(house.port) as client:
            client.request("POST", CHAT, house.auth, body(stream=True))
            await client.head()
            for _ in range(20):
                client.request("POST", CHAT, house.auth, body(stream=True))
                await asyncio.sleep(0)
        await engine.until(lambda stats: stats.aborted == 1)
        assert engine.stats.started == 1
