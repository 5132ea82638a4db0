"""A request hidden in another one is never executed, and never gets into another one's answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from headrace.testing.fake_engine import FakeEngine, Script
from support.house import House, gateway
from support.raw import RawClient, call

CHAT = "/v1/chat/completions"


def body(text: str = "hi", *, stream: bool = False) -> bytes:
    return json.dumps(
        {"model": "fake", "messages": [{"role": "user", "content": text}], "stream": stream}
    ).encode()


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(Script(tokens=2)) as engine:
        yield engine


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest, engine: FakeEngine) -> AsyncIterator[House]:
    async with gateway(engine.url, asgi=request.param) as house:
        yield house
        assert (await call(house.port, "POST", CHAT, house.auth, body())).status == 200


def request(house: House, payload: bytes, *fields: str) -> bytes:
    """A whole request as bytes; *fields* over the usual ones."""
    usual = ["host: x", f"authorization: {house.auth['authorization']}", "content-type: application/json"]
    lines = [f"POST {CHAT} HTTP/1.1", *usual, *(fields or (f"content-length: {len(payload)}",)), "", ""]
    return "\r\n".join(lines).encode() + payload


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_sent_with_the_first_one_is_not_executed_and_not_in_its_answer(
    engine: FakeEngine, house: House, stream: bool
) -> None:
    async with RawClient(house.port) as client:
        client.send(request(house, body("first", stream=stream)) + request(house, body("second")) * 3)
        response = await client.response()
        assert response.status == 200
        assert b"second" not in response.body
        if not stream:
            assert response.json["choices"][0]["message"]["content"] == "tok0 tok1"
        assert await client.closed() == b""
    assert engine.stats.started == 1
