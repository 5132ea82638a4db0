"""Every bound of a connection, a little within it and a little beyond, on both lanes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.gateway.gate import ConnectionLimits
from headrace.gateway.protocol import MAX_HEADERS
from headrace.gateway.requests import BodyLimits
from headrace.testing.fake_engine import FakeEngine, Refuse, Script
from support.house import House, gateway
from support.raw import RawClient, call
from support.waiting import until

CHAT = "/v1/chat/completions"
HEAD_BYTES = 8 * 1024
BODY_BYTES = 64 * 1024
HEAD_TIME_S = 0.4
FLOOD_BYTES = 64 * 1024 * 1024
"""Far more than what sockets hold."""


def body(*, stream: bool = False, text: str = "hi") -> bytes:
    return json.dumps(
        {"model": "fake", "messages": [{"role": "user", "content": text}], "stream": stream}
    ).encode()


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(Script(tokens=2)) as engine:
        yield engine


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest, engine: FakeEngine) -> AsyncIterator[House]:
    async with gateway(
        engine.url,
        asgi=request.param,
        limits=BodyLimits(max_bytes=BODY_BYTES, pause_s=0.5, total_s=2),
        connection=ConnectionLimits(
            head_bytes=HEAD_BYTES, head_time_s=HEAD_TIME_S, keep_alive_s=5, write_s=0.5
        ),
    ) as house:
        yield house
        assert (await call(house.port, "POST", CHAT, house.auth, body())).status == 200
        await until(lambda: house.control.running == 0)


def head(house: House, *fields: str, length: int | None = None) -> bytes:
    """The head of a chat request with *fields* besides the usual ones."""
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = [f"POST {CHAT} HTTP/1.1", f"authorization: {house.auth['authorization']}", framing, *fields]
    return "\r\n".join([*lines, "", ""]).encode()


def padded(house: House, size: int, payload: bytes) -> bytes:
    """A request whose head is exactly *size* bytes long."""
    plain = head(house, "x: ", length=len(payload))
    return head(house, "x: " + "a" * (size - len(plain)), length=len(payload)) + payload


def read_nothing(client: RawClient) -> None:
    """Let the answer stand in the sockets, of which this one holds little."""
    transport: Any = client.writer.transport
    transport.pause_reading()
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)


@pytest.mark.parametrize("piece", [None, 1000])
async def test_a_head_of_the_greatest_size_passes_and_a_larger_one_does_not(
    house: House, piece: int | None
) -> None:
    """However it is cut on its way; and also behind another request on the same connection."""
    async with RawClient(house.port) as client:
        for size, status in ((HEAD_BYTES, 200), (HEAD_BYTES - 1, 200), (HEAD_BYTES + 100, 431)):
            data = padded(house, size, body())
            for start in range(0, len(data), piece or len(data)):
                client.send(data[start : start + (piece or len(data))])
                await client.writer.drain()
                await asyncio.sleep(0)
            response = await client.response()
            assert response.status == status
        assert response.error["code"] == "headers_too_large"
        assert await client.closed() == b""


async def test_the_greatest_number_of_fields_passes_and_one_more_does_not(house: House) -> None:
    for count, status in ((MAX_HEADERS, 200), (MAX_HEADERS + 1, 431)):
        async with RawClient(house.port) as client:
            fields = [f"x{number}: y" for number in range(count - 2)]
            client.send(head(house, *fields, length=len(body())) + body())
            assert (await client.response()).status == status


@pytest.mark.parametrize(
    "drop", [b"P", b"POST /v1/chat/completions HTTP/1.1\r\nx: ", b"\r\n", b"\r\n\r\nGET"]
)
async def test_a_head_that_drips_is_a_408_however_often_something_comes(house: House, drop: bytes) -> None:
    async with RawClient(house.port) as client:
        client.send(drop)

        async def drip() -> None:
            while True:
                await asyncio.sleep(HEAD_TIME_S / 8)
                client.send(b"\r\n" if drop == b"\r\n" else b"a")

        dripping = asyncio.create_task(drip())
        try:
            response = await client.response()
        finally:
            dripping.cancel()
        assert response.status in (400, 408), "the letters may make it no request at all"
        assert response.error["code"] in ("request_timeout", "invalid_http")


async def test_empty_lines_before_a_request_are_counted(house: House) -> None:
    async with RawClient(house.port) as client:
        client.send(b"\r\n" * HEAD_BYTES)
        assert (await client.response()).status == 431


@pytest.mark.parametrize("target", [CHAT, "/v1/models", "/health"])
@pytest.mark.parametrize(
    ("begun", "flood"),
    [
        (b"1;", b"x" * 4000),
        (b"0\r\n", b"x-trailer: " + b"y" * 4000 + b"\r\n"),
        (b"0\r\nx-trailer: ", b"y" * 4000),
    ],
    ids=["a chunk extension without an end", "trailers", "a trailer without an end"],
)
@pytest.mark.parametrize("key", [True, False], ids=["with a key", "without"])
async def test_what_surrounds_a_chunked_body_has_a_bound(
    house: House, target: str, begun: bytes, flood: bytes, key: bool
) -> None:
    """Nothing of it is kept, and whoever sends it without an end is cut off long before any time-out."""
    request = head(house).replace(CHAT.encode(), target.encode(), 1)
    if not key:
        request = request.replace(b"authorization", b"x-nothing")
    async with RawClient(house.port) as client:
        client.send(request + begun)
        told = asyncio.create_task(client.closed())
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not told.done() and sent < FLOOD_BYTES:
                client.send(flood * 16)
                sent += len(flood) * 16
                await client.writer.drain()
                await asyncio.sleep(0)
        assert told.done(), "all of it was taken"
        assert (await told).count(b"HTTP/1.1") == 1, (
            "one answer, and not another one to the end of its request"
        )


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_of_the_greatest_size_passes_and_a_larger_one_does_not(
    house: House, chunked: bool
) -> None:
    spare = BODY_BYTES - len(body(text=""))
    for size, status in ((spare, 200), (spare + 1, 413)):
        payload = body(text="x" * size)
        async with RawClient(house.port) as client:
            if chunked:
                halves = payload[: len(payload) // 2], payload[len(payload) // 2 :]
                coded = b"".join([b"%x\r\n%b\r\n" % (len(half), half) for half in halves])
                client.send(head(house) + coded + b"0\r\n\r\n")
            else:
                client.send(head(house, length=len(payload)) + payload)
            assert (await client.response()).status == status


async def test_a_body_that_pauses_too_long_is_a_408_and_one_that_comes_slowly_passes(house: House) -> None:
    payload = body()
    async with RawClient(house.port) as client:
        client.send(head(house, length=len(payload)))
        for start in range(0, len(payload), 20):
            client.send(payload[start : start + 20])
            await asyncio.sleep(0.05)
        assert (await client.response()).status == 200
        client.send(head(house, length=len(payload)) + payload[:-1])
        response = await client.response()
        assert (response.status, response.error["code"]) == (408, "request_timeout")
        assert await client.closed() == b""


@pytest.mark.slow
async def test_a_reader_that_stands_still_is_cut_off(engine: FakeEngine, house: House) -> None:
    engine.script = Script(text=" ".join(["word-" * 10_000] * 800))
    async with RawClient(house.port) as client:
        read_nothing(client)
        client.send(head(house, length=len(body(stream=True))) + body(stream=True))
        await engine.until(lambda stats: stats.held == 1, timeout_s=20)
        await engine.until(lambda stats: stats.aborted == 1, timeout_s=20)
        await until(lambda: house.listener.connections == 0)
    engine.script = Script(tokens=2)


# A client that leaves, in the states that are left


@pytest.mark.parametrize("sent", [b"", b"POST /v1/ch", b"POST /v1/chat/completions HTTP/1.1\r\nx: y\r\n"])
async def test_leaving_before_the_head_is_whole(house: House, sent: bytes) -> None:
    async with RawClient(house.port) as client:
        client.send(sent)
        await until(lambda: house.listener.connections == 1)
    await until(lambda: house.listener.connections == 0, timeout_s=HEAD_TIME_S * 0.9)


async def test_leaving_between_two_requests(house: House) -> None:
    async with RawClient(house.port) as client:
        client.send(head(house, length=len(body())) + body())
        assert (await client.response()).status == 200
    await until(lambda: house.listener.connections == 0, timeout_s=2)


@pytest.mark.slow
async def test_leaving_while_the_backend_is_held_back(engine: FakeEngine, house: House) -> None:
    engine.script = Script(text=" ".join(["word-" * 10_000] * 800))
    async with RawClient(house.port) as client:
        read_nothing(client)
        client.send(head(house, length=len(body(stream=True))) + body(stream=True))
        await engine.until(lambda stats: stats.held == 1, timeout_s=20)
    await engine.until(lambda stats: stats.aborted == 1, timeout_s=0.4)
    await until(lambda: house.control.running == 0)
    engine.script = Script(tokens=2)


async def test_leaving_while_the_backend_is_busy(engine: FakeEngine, house: House) -> None:
    engine.script = Script(fault=Refuse(429, headers={"retry-after": "60"}))
    async with RawClient(house.port) as client:
        client.send(head(house, length=len(body())) + body())
        await until(lambda: house.control.waiting == 1)
    await until(lambda: house.control.waiting == 0, timeout_s=2)
    assert not house.inference.active
    engine.script = Script(tokens=2)


async def test_leaving_a_refusal_unread(house: House) -> None:
    """The connection lingers so that a client that is still sending can read why; one that has left needs no such care."""
    async with RawClient(house.port) as client:
        client.send(head(house, length=10 * BODY_BYTES) + b"x" * 1000)
        assert (await client.response()).status == 413
    await until(lambda: house.listener.connections == 0, timeout_s=1)


async def test_what_requests_without_a_body_take_is_not_held_against_a_later_body(house: House) -> None:
    async with RawClient(house.port) as client:
        for _ in range(100):
            client.send(b"GET /health HTTP/1.1\r\nx: " + b"a" * (HEAD_BYTES - 100) + b"\r\n\r\n")
            assert (await client.response()).status == 200
        client.send(head(house, length=len(body())))
        await asyncio.sleep(0.05)
        client.send(body())
        assert (await client.response()).status == 200


async def test_an_answer_in_several_writes_goes_out_at_once(house: House) -> None:
    async with RawClient(house.port) as client:
        client.request("GET", "/health")
        await client.response()
        [connection] = house.listener._connections()
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
