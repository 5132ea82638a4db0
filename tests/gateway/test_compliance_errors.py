"""Errors as OpenAI's client tells them apart, and what it tries again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.gateway.problems import problem
from headrace.kernel import errors
from headrace.kernel.errors import RequestError
from headrace.testing.fake_engine import FakeEngine, Hang, Refuse, Script
from support.canned import Canned, Reply
from support.house import KEY, House, gateway
from support.raw import RawClient, call
from support.waiting import until

CHAT = "/v1/chat/completions"
ASK: Any = [{"role": "user", "content": "hi"}]


@contextlib.asynccontextmanager
async def client_of(url: str, *, retries: int = 0) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=retries) as client:
        yield client


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(Script(tokens=3)) as engine:
        yield engine


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest, engine: FakeEngine) -> AsyncIterator[House]:
    async with gateway(engine.url, asgi=request.param) as house:
        yield house


def kinds(base: type[RequestError] = RequestError) -> list[type[RequestError]]:
    """Every kind of error that a request can end with."""
    return [kind for sub in base.__subclasses__() for kind in (sub, *kinds(sub))]


MADE: dict[str, RequestError] = {
    "LimitExceeded": errors.LimitExceeded("Too much.", code="rate_limit_exceeded", retry_after_s=1),
    "ModelNotFound": errors.ModelNotFound("m"),
    "MethodNotAllowed": errors.MethodNotAllowed("x", allowed=["GET"]),
    "UpstreamRefused": errors.UpstreamRefused("x", status=422),
    "Unavailable": errors.Unavailable("x", retry_after_s=1),
}
CLASSES = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}


def class_of(status: int) -> type[openai.APIStatusError]:
    return CLASSES.get(status, openai.InternalServerError if status >= 500 else openai.APIStatusError)


@pytest.mark.compliance("O40")
@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
async def test_every_kind_of_error_is_a_class_of_the_clients(kind: type[RequestError]) -> None:
    told = problem(MADE.get(kind.__name__) or kind("Something is wrong."))
    headers = {"content-type": "application/json"} | {k.decode(): v.decode() for k, v in told.headers.items()}
    async with (
        Canned(Reply([told.body], told.status, headers)) as gateway_,
        client_of(gateway_.url) as client,
    ):
        with pytest.raises(class_of(told.status)) as raised:
            await client.chat.completions.create(model="m", messages=ASK)
    assert type(raised.value) is class_of(told.status)
    assert isinstance(raised.value.body, dict)
    assert set(raised.value.body) == {"message", "type", "param", "code"}
    assert all(raised.value.body[name] for name in ("message", "type"))


@pytest.mark.compliance("O40")
@pytest.mark.parametrize(
    "body", ['{"error":{"message":"m","code":"c"}}', "<html>nginx</html>", "", '"x"', '{"detail":"d"}']
)
@pytest.mark.parametrize("status", [400, 404, 409, 413, 415, 422, 500, 502, 503, 504, 302, 418])
async def test_whatever_a_backend_says_the_client_gets_the_envelope_and_the_class(
    engine: FakeEngine, house: House, status: int, body: str
) -> None:
    engine.script = Script(fault=Refuse(status, body))
    refuses = 400 <= status <= 422 and status != 418
    expected = class_of(status) if refuses else openai.InternalServerError
    async with client_of(house.url) as client:
        for stream in (True, False):
            with pytest.raises(openai.APIStatusError) as raised:
                await client.chat.completions.create(model="fake", messages=ASK, stream=stream)
            assert type(raised.value) is expected
            assert raised.value.status_code == (status if refuses else 502)
            assert isinstance(raised.value.body, dict)
            assert raised.value.body["message"]
            assert "<html>" not in raised.value.body["message"]


@pytest.mark.compliance("O40")
@pytest.mark.parametrize("status", [401, 402, 403, 407])
async def test_what_a_backend_thinks_of_our_key_is_not_the_clients_fault(
    engine: FakeEngine, house: House, status: int
) -> None:
    engine.script = Script(fault=Refuse(status, '{"error":{"message":"Incorrect key sk-ours"}}'))
    async with client_of(house.url) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(model="fake", messages=ASK)
    assert "sk-ours" not in str(raised.value)


@pytest.mark.compliance("O41")
@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_beyond_the_context_has_openais_code(
    engine: FakeEngine, house: House, stream: bool
) -> None:
    said = {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n_ctx": 8}
    engine.script = Script(fault=Refuse(400, json.dumps({"error": said})))
    async with client_of(house.url) as client:
        asks: dict[str, Any] = {
            "messages": client.chat.completions.create(model="fake", messages=ASK, stream=stream),
            "prompt": client.completions.create(model="fake", prompt="x", stream=stream),
            "input": client.embeddings.create(model="fake", input="x"),
        }
        for param, asking in asks.items():
            with pytest.raises(openai.BadRequestError) as raised:
                await asking
            assert (raised.value.code, raised.value.param) == ("context_length_exceeded", param)


async def free_the_slot(engine: FakeEngine, house: House) -> None:
    """Once two requests were refused."""
    await until(lambda: sum(house.control.totals.requests.values()) == 2)
    engine.release()


@pytest.mark.compliance("O42")
@pytest.mark.slow
async def test_what_may_work_later_says_when_and_the_client_comes_again(engine: FakeEngine) -> None:
    engine.once(Script(tokens=3, fault=Hang(0)))
    async with gateway(engine.url, capacity=1, queue_wait_s=0.05) as house, RawClient(house.port) as first:
        body = json.dumps({"model": "fake", "messages": ASK, "stream": True}).encode()
        first.request("POST", CHAT, house.auth, body)
        await engine.until(lambda stats: stats.active == 1)
        refused = await call(house.port, "POST", CHAT, house.auth, body)
        assert (refused.status, refused.error["code"]) == (503, "no_free_slot")
        assert 0 < float(refused.headers["retry-after"]) <= 120, "the client doesn't wait for longer"
        assert "x-should-retry" not in refused.headers
        async with client_of(house.url, retries=2) as client:
            asking = client.chat.completions.with_raw_response.create(model="fake", messages=ASK)
            answer, _ = await asyncio.gather(asking, free_the_slot(engine, house))
    assert answer.retries_taken == 1
    assert answer.parse().choices[0].message.content == "tok0 tok1 tok2"


@pytest.mark.compliance("O42")
async def test_what_will_not_work_later_is_not_tried_again(engine: FakeEngine, house: House) -> None:
    house.registry.upsert(
        Node("dead", "engine", (ModelInfo("dead"),), state=NodeState.FAILED, detail="its file is broken")
    )
    async with client_of(house.url, retries=2) as client:
        with pytest.raises(openai.InternalServerError, match="its file is broken") as failed:
            await client.chat.completions.create(model="dead", messages=ASK)
        assert failed.value.response.headers["x-should-retry"] == "false"
        assert sum(house.control.totals.requests.values()) == 1
        for status in (400, 404, 409, 422):
            before = engine.stats.refused
            engine.script = Script(fault=Refuse(status))
            with pytest.raises(class_of(status)):
                await client.chat.completions.create(model="fake", messages=ASK)
            assert engine.stats.refused == before + 1


@pytest.mark.compliance("O43")
async def test_a_key_for_repeats_is_taken_and_means_nothing_yet(engine: FakeEngine, house: House) -> None:
    headers = {"idempotency-key": "one", "x-stainless-retry-count": "1"}
    async with client_of(house.url) as client:
        for _ in range(2):
            answer = await client.chat.completions.create(model="fake", messages=ASK, extra_headers=headers)
            assert answer.choices[0].message.content == "tok0 tok1 tok2"
    assert engine.stats.finished == 2
    for received in engine.stats.received:
        assert not {name for name, _ in received.headers} & {b"idempotency-key", b"x-stainless-retry-count"}


@pytest.mark.compliance("O44")
async def test_a_client_that_comes_while_many_wait_is_let_in(engine: FakeEngine, house: House) -> None:
    engine.script = Script(tokens=3, fault=Hang(-1), slots=256)
    async with contextlib.AsyncExitStack() as open_:
        for _ in range(60):
            client = await open_.enter_async_context(RawClient(house.port))
            client.request("POST", CHAT, house.auth, json.dumps({"model": "fake", "messages": ASK}).encode())
        await engine.until(lambda stats: stats.active == 60, timeout_s=20)
        engine.script = Script(tokens=3)
        async with client_of(house.url) as late:
            patient = late.with_options(timeout=openai.Timeout(60, connect=5.0))
            assert [model.id async for model in patient.models.list()] == ["fake"]
