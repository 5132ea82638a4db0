"""Headers that OpenAI's clients send and read, from scripts and from web pages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from headrace.testing.fake_engine import FakeEngine, Script
from support.house import KEY, House, gateway
from support.raw import RawClient, call

CHAT = "/v1/chat/completions"
ASK: Any = [{"role": "user", "content": "hi"}]
BODY = json.dumps({"model": "fake", "messages": ASK}).encode()
ORIGIN = {"origin": "https://app.example"}


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(Script(tokens=3)) as engine:
        yield engine


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest, engine: FakeEngine) -> AsyncIterator[House]:
    async with gateway(engine.url, asgi=request.param) as house:
        yield house


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{house.url}/v1", api_key=KEY, max_retries=0, organization="org-1", project="proj-1"
    ) as client:
        yield client


@pytest.mark.compliance("O50")
async def test_the_client_finds_the_id_on_answers_streams_and_errors(
    engine: FakeEngine, client: openai.AsyncOpenAI
) -> None:
    whole = await client.chat.completions.create(model="fake", messages=ASK)
    listing = await client.models.list()
    stream = await client.chat.completions.create(model="fake", messages=ASK, stream=True)
    streamed = stream.response.headers["x-request-id"]
    await stream.close()
    embedded = await client.embeddings.with_raw_response.create(model="fake", input="x")
    with pytest.raises(openai.NotFoundError) as missing:
        await client.models.retrieve("nobody")
    ids = [whole._request_id, listing._request_id, streamed, embedded.request_id, missing.value.request_id]
    assert all(ident is not None and ident.startswith("req_") for ident in ids)
    assert len(set(ids)) == len(ids)
    assert {whole._request_id, streamed, embedded.request_id} == set(engine.stats.executions)


@pytest.mark.compliance("O50")
@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
        b"PUT /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\norigin: https://app.example\r\n"
        b"access-control-request-method: POST\r\n\r\n",
    ],
    ids=lambda sent: sent[:24].decode().replace("\r\n", " "),
)
async def test_there_is_no_answer_without_an_id(house: House, request_: bytes) -> None:
    async with RawClient(house.port) as client:
        client.send(request_)
        _, headers = await client.head()
    assert headers["x-request-id"].startswith("req_")


@pytest.mark.compliance("O50")
@pytest.mark.parametrize("stream", [True, False])
async def test_the_clients_own_id_is_echoed_and_ours_goes_to_the_backend(
    engine: FakeEngine, client: openai.AsyncOpenAI, stream: bool
) -> None:
    answer: Any = await client.chat.completions.with_raw_response.create(
        model="fake", messages=ASK, stream=stream, extra_headers={"X-Request-ID": "trace-7"}
    )
    assert answer.headers["x-client-request-id"] == "trace-7"
    assert answer.headers["x-request-id"].startswith("req_")
    assert engine.stats.last is not None
    assert engine.stats.last.header("x-request-id") == answer.headers["x-request-id"]


@pytest.mark.compliance("O50")
@pytest.mark.parametrize("given", ["", " ", "two words", "\u00e9", "x" * 129, "a\tb"])
async def test_an_id_that_could_do_harm_is_not_echoed(house: House, given: str) -> None:
    for method, path, body in (("POST", CHAT, BODY), ("GET", "/health", None)):
        response = await call(house.port, method, path, {**house.auth, "x-request-id": given}, body)
        assert response.status == 200
        assert "x-client-request-id" not in response.headers


@pytest.mark.compliance("O52")
async def test_organisation_and_project_are_taken_and_stay_with_us(
    engine: FakeEngine, client: openai.AsyncOpenAI
) -> None:
    await client.chat.completions.create(model="fake", messages=ASK)
    async for _ in await client.chat.completions.create(model="fake", messages=ASK, stream=True):
        pass
    await client.embeddings.create(model="fake", input="x")
    assert len(engine.stats.received) == 3
    for received in engine.stats.received:
        names = {name.decode() for name, _ in received.headers}
        assert not [name for name in names if name.startswith(("openai-", "x-stainless-"))]
        assert not names & {"authorization", "user-agent"}


@pytest.mark.compliance("O52")
async def test_a_page_may_send_what_the_client_sends_and_read_what_we_send(house: House) -> None:
    sent = (
        "authorization,content-type,openai-organization,openai-project,x-stainless-retry-count,x-request-id"
    )
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": sent,
    }
    for path in (CHAT, "/v1/embeddings", "/v1/models"):
        response = await call(house.port, "OPTIONS", path, {**ORIGIN, **preflight})
        assert response.status == 200
        allowed = {
            name.strip() for name in response.headers["access-control-allow-headers"].lower().split(",")
        }
        assert set(sent.split(",")) <= allowed
        assert response.headers["access-control-allow-origin"] == ORIGIN["origin"]
    for method, path, body in (("POST", CHAT, BODY), ("POST", CHAT, b"{}"), ("GET", "/v1/models", None)):
        fields = {**house.auth, **ORIGIN, "x-request-id": "mine"}
        response = await call(house.port, method, path, fields, body)
        exposed = {name.strip() for name in response.headers["access-control-expose-headers"].split(",")}
        assert {"x-request-id", "x-client-request-id", "retry-after", "x-should-retry"} <= exposed
        ours = {name for name in response.headers if name.startswith("x-")}
        assert ours <= exposed, "every header of ours can be read"
