"""Whatever comes in, the answer is the right 4xx in the envelope, and the next request works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from headrace.gateway.gate import ConnectionLimits
from headrace.gateway.requests import BodyLimits
from headrace.testing.fake_engine import FakeEngine, Script
from support.house import House, gateway
from support.raw import RawClient, call

CHAT = "/v1/chat/completions"
MESSAGES = '"messages":[{"role":"user","content":"hi"}]'
GOOD = f'{{"model":"fake",{MESSAGES}}}'.encode()


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest) -> AsyncIterator[House]:
    limits = BodyLimits(max_bytes=10 * 1024 * 1024, pause_s=0.3, total_s=2)
    async with (
        FakeEngine(Script(tokens=2)) as engine,
        gateway(
            engine.url, limits=limits, connection=ConnectionLimits(head_time_s=0.3), asgi=request.param
        ) as house,
    ):
        yield house
        assert (await call(house.port, "POST", CHAT, house.auth, GOOD)).status == 200
        assert house.control.running == 0


@pytest.mark.compliance("O13", "O16", "O17", "O40", "O50")
@pytest.mark.req("D26", "D31", "D46")
@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"not json", None),
        (b"", None),
        (b"[1,2]", None),
        (b"5", None),
        (b'{"model":"fake","messages":5}', "messages"),
        (b'{"model":"fake","messages":[]}', "messages"),
        (b'{"model":"fake","messages":[5]}', "messages"),
        (b'{"model":"fake"}', "messages"),
        (f'{{"model":null,{MESSAGES}}}'.encode(), "model"),
        (f'{{"model":"",{MESSAGES}}}'.encode(), "model"),
        (f'{{"model":5,{MESSAGES}}}'.encode(), "model"),
        (f"{{{MESSAGES}}}".encode(), "model"),
        (f'{{"model":"fake","model":"fake",{MESSAGES}}}'.encode(), "model"),
        (f'{{"model":"fake","Model":"fake",{MESSAGES}}}'.encode(), "model"),
        (f'{{"model":"fake",{MESSAGES},"n":1000000000}}'.encode(), "n"),
        (f'{{"model":"fake",{MESSAGES},"n":0}}'.encode(), "n"),
        (f'{{"model":"fake",{MESSAGES},"max_tokens":-5}}'.encode(), "max_tokens"),
        (f'{{"model":"fake",{MESSAGES},"max_completion_tokens":-1}}'.encode(), "max_completion_tokens"),
        (f'{{"model":"fake",{MESSAGES},"stream":"true"}}'.encode(), "stream"),
        (f'{{"model":"fake",{MESSAGES},"stream":1}}'.encode(), "stream"),
        (f'{{"model":"fake",{MESSAGES},"temperature":99}}'.encode(), "temperature"),
        (f'{{"model":"fake",{MESSAGES},"stop":["a","b","c","d","e"]}}'.encode(), "stop"),
        (
            f'{{"model":"fake",{MESSAGES},"stream_options":{{"include_usage":true}}}}'.encode(),
            "stream_options",
        ),
        (f'{{"model":"fake",{MESSAGES},"top_logprobs":3}}'.encode(), "top_logprobs"),
        (f'{{"model":"fake",{MESSAGES},"x":"\0"}}'.encode(), None),
        (f'{{"model":"fake",{MESSAGES},"x":"'.encode() + b'\xff"}', None),
        (b'{"model":"fake","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
        (b"[" * 100_000, None),
    ],
)
async def test_a_wrong_body_is_a_400_that_names_the_field(
    house: House, body: bytes, param: str | None
) -> None:
    response = await call(house.port, "POST", CHAT, house.auth, body)
    assert response.status == 400
    assert response.error["type"] == "invalid_request_error"
    assert response.error["param"] == param


@pytest.mark.compliance("O41")
@pytest.mark.req("D27")
async def test_an_unknown_model_is_a_404_with_near_names(house: House) -> None:
    response = await call(house.port, "POST", CHAT, house.auth, GOOD.replace(b"fake", b"fakr"))
    assert (response.status, response.error["code"], response.error["param"]) == (
        404,
        "model_not_found",
        "model",
    )
    assert "'fake'" in response.error["message"]


async def test_a_nul_in_a_string_is_carried_or_refused_but_harms_nobody(house: House) -> None:
    response = await call(house.port, "POST", CHAT, house.auth, GOOD.replace(b"hi", b"a\\u0000b"))
    assert response.status == 200


@pytest.mark.compliance("O40", "O50")
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_a_413_that_the_client_can_read(house: House, chunked: bool) -> None:
    async with RawClient(house.port) as client:
        size = 11 * 1024 * 1024
        coding = "transfer-encoding: chunked" if chunked else f"content-length: {size}"
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: {house.auth['authorization']}\r\n{coding}\r\n\r\n"
        client.send(head.encode())
        client.send(f"{size:x}\r\n".encode() * chunked + b" " * size + b"\r\n0\r\n\r\n" * chunked)
        response = await client.response()
        assert response.status == 413
        assert response.error["code"] == "request_too_large"
        assert response.headers["connection"] == "close"
        assert await client.closed() == b""


@pytest.mark.compliance("O40", "O50")
@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-encoding": "gzip"},
        {"content-encoding": "br"},
    ],
)
async def test_another_type_or_a_compressed_body_is_a_415(house: House, headers: dict[str, str]) -> None:
    response = await call(house.port, "POST", CHAT, house.auth | headers, GOOD)
    assert response.status == 415
    assert response.error["code"] == "unsupported_media_type"


@pytest.mark.compliance("O40", "O50")
@pytest.mark.req("D27", "D28")
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/chat", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", CHAT, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("PUT", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/%ff", 404, "not_found"),
    ],
)
async def test_wrong_paths_and_methods(house: House, method: str, path: str, status: int, code: str) -> None:
    response = await call(house.port, method, path, house.auth)
    assert (response.status, response.error["code"]) == (status, code)
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.compliance("O41")
@pytest.mark.req("C29")
@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {"authorization": "Basic x"}]
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/models/fake")]
)
async def test_without_a_valid_key_nothing_opens(
    house: House, headers: dict[str, str], method: str, path: str
) -> None:
    response = await call(house.port, method, path, headers, GOOD if method == "POST" else None)
    assert (response.status, response.error["code"]) == (401, "invalid_api_key")
    assert "fake" not in response.body.decode()


@pytest.mark.compliance("O40", "O50")
@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET foo HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    ],
)
async def test_bytes_that_are_not_http_get_a_400_in_the_envelope(house: House, request_: bytes) -> None:
    async with RawClient(house.port) as client:
        client.send(request_)
        response = await client.response()
        assert response.status == 400
        assert response.error["code"] in ("invalid_http", "upgrade_refused")
        assert await client.closed() == b""


@pytest.mark.compliance("O40", "O50")
@pytest.mark.parametrize(
    "headers",
    [
        b"x: " + b"a" * 1_000_000,
        b"\r\n".join(b"x%d: %b" % (i, b"a" * 1000) for i in range(1000)),
        b"\r\n".join(b"x%d: a" % i for i in range(1000)),
    ],
)
async def test_headers_over_the_limit_are_a_431(house: House, headers: bytes) -> None:
    async with RawClient(house.port) as client:
        client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n\r\n")
        response = await client.response()
        assert (response.status, response.error["code"]) == (431, "headers_too_large")


@pytest.mark.compliance("O40", "O50")
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"POST /v1/chat/comp", "request_timeout"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n", "request_timeout"),
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\nx-api-key: KEY\r\n\r\n{",
            "request_timeout",
        ),
    ],
)
async def test_half_a_request_and_then_silence_is_a_408(house: House, sent: bytes, code: str) -> None:
    key = house.auth["authorization"].split()[1].encode()
    async with RawClient(house.port) as client:
        client.send(sent.replace(b"KEY", key))
        response = await client.response()
        assert (response.status, response.error["code"]) == (408, code)
        assert await client.closed() == b""


async def test_a_connection_that_never_speaks_is_closed(house: House) -> None:
    async with RawClient(house.port) as client:
        assert await client.closed() == b""


@pytest.mark.slow
async def test_a_body_that_drips_for_ever_is_cut(house: House) -> None:
    key = house.auth["authorization"]
    async with RawClient(house.port) as client:
        client.send(f"POST {CHAT} HTTP/1.1\r\nauthorization: {key}\r\ncontent-length: 9999\r\n\r\n".encode())

        async def drip() -> None:
            while True:
                client.send(b" ")
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        try:
            assert (await client.response()).status == 408
        finally:
            dripping.cancel()


async def test_a_connection_survives_errors_that_leave_it_whole(house: House) -> None:
    async with RawClient(house.port) as client:
        for body, status in ((b"{}", 400), (GOOD, 200), (GOOD.replace(b"fake", b"no"), 404), (GOOD, 200)):
            client.request("POST", CHAT, house.auth, body)
            assert (await client.response()).status == status
        client.request("POST", CHAT, {}, GOOD)
        assert (await client.response()).status == 401
        client.request("POST", CHAT, house.auth, GOOD)
        assert (await client.response()).status == 200


async def test_expect_100_continue_is_answered(house: House) -> None:
    async with RawClient(house.port) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(GOOD)}\r\n"
        client.send(f"{head}authorization: {house.auth['authorization']}\r\n\r\n".encode())
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        client.send(GOOD)
        assert (await client.response()).status == 200


async def test_bytes_behind_a_request_are_dropped_and_the_connection_closes_after_its_answer(
    house: House,
) -> None:
    async with RawClient(house.port) as client:
        client.request("POST", CHAT, house.auth, GOOD)
        client.request("POST", CHAT, house.auth, GOOD)
        client.send(b"garbage" * 1000)
        assert (await client.response()).status == 200
        assert await client.closed() == b""


@pytest.mark.compliance("O40", "O50")
async def test_too_many_connections_are_told_so() -> None:
    async with (
        FakeEngine() as engine,
        gateway(engine.url, connection=ConnectionLimits(connections=1)) as house,
        RawClient(house.port) as first,
        RawClient(house.port) as second,
    ):
        response = await second.response()
        assert (response.status, response.error["code"]) == (503, "too_many_connections")
        first.request("GET", "/version")
        assert (await first.response()).json["version"]
