"""The API as OpenAI's own client, LangChain and curl see it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from headrace.control.access import digest
from headrace.domain.access import Principal
from headrace.testing.fake_engine import ErrorEvent, FakeEngine, Refuse, Script, ToolCall
from support.house import KEY, House, gateway
from support.raw import RawClient, call

CHAT = "/v1/chat/completions"
ASK: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine(Script(models=("fake", "org/model:7b"), tokens=5, dimensions=3)) as engine:
        yield engine


@pytest.fixture(params=[False, True], ids=["token lane", "asgi lane"])
async def house(request: pytest.FixtureRequest, engine: FakeEngine) -> AsyncIterator[House]:
    async with gateway(engine.url, asgi=request.param) as house:
        yield house


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.mark.compliance("O14", "O50")
@pytest.mark.req("C02", "D01", "D03")
async def test_a_chat_whole(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="fake", messages=ASK)
    assert answer.choices[0].message.content == "tok0 tok1 tok2 tok3 tok4"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


@pytest.mark.compliance("O13")
@pytest.mark.req("C46", "D18", "D19", "D20")
async def test_a_chat_streamed(client: openai.AsyncOpenAI) -> None:
    text, usages = "", 0
    stream = await client.chat.completions.create(model="fake", messages=ASK, stream=True)
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        usages += chunk.usage is not None
    assert text == "tok0 tok1 tok2 tok3 tok4"
    assert usages == 0


@pytest.mark.compliance("O13")
async def test_a_stream_with_usage_has_it_once_and_last(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="fake",
        messages=ASK,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []


@pytest.mark.req("D04")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_completion(client: openai.AsyncOpenAI, stream: bool) -> None:
    if stream:
        parts = await client.completions.create(model="fake", prompt="x", stream=True)
        text = "".join([part.choices[0].text async for part in parts])
    else:
        text = (await client.completions.create(model="fake", prompt="x")).choices[0].text
    assert text == "tok0 tok1 tok2 tok3 tok4"


@pytest.mark.compliance("O70", "O71")
@pytest.mark.req("C03")
async def test_embeddings_as_floats_and_as_the_sdk_asks_for_them(client: openai.AsyncOpenAI) -> None:
    packed = await client.embeddings.create(model="fake", input=["a", "b"])
    plain = await client.embeddings.create(model="fake", input=["a", "b"], encoding_format="float")
    assert [item.index for item in packed.data] == [0, 1]
    assert len(packed.data[0].embedding) == 3
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding)
    assert packed.usage.prompt_tokens == 2


@pytest.mark.compliance("O20", "O22")
async def test_tools_and_their_arguments(engine: FakeEngine, client: openai.AsyncOpenAI) -> None:
    engine.script = Script(tool_calls=(ToolCall("weather", '{"city":"Bern"}'), ToolCall("time", "{}")))
    tools: Any = [
        {"type": "function", "function": {"name": name, "parameters": {}}} for name in ("weather", "time")
    ]
    answer = await client.chat.completions.create(model="fake", messages=ASK, tools=tools)
    calls = answer.choices[0].message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls if call.type == "function"] == [
        ("weather", '{"city":"Bern"}'),
        ("time", "{}"),
    ]
    assert answer.choices[0].finish_reason == "tool_calls"
    async with client.chat.completions.stream(model="fake", messages=ASK, tools=tools) as stream:
        final = await stream.get_final_completion()
    streamed = final.choices[0].message.tool_calls or []
    assert [call.function.arguments for call in streamed] == ['{"city":"Bern"}', "{}"]


async def test_what_we_do_not_know_reaches_the_backend_and_our_key_does_not(
    engine: FakeEngine, client: openai.AsyncOpenAI
) -> None:
    anything: Any = client
    await anything.chat.completions.create(
        model="fake",
        messages=ASK,
        response_format={"type": "json_object"},
        extra_body={"vendor_option": [1, {"a": None}]},
        extra_headers={"x-secret": "s", "cookie": "c=1"},
    )
    received = engine.stats.last
    assert received is not None
    body = json.loads(received.body)
    assert body["vendor_option"] == [1, {"a": None}]
    assert body["response_format"] == {"type": "json_object"}
    names = {name.decode() for name, _ in received.headers}
    assert not names & {"authorization", "x-api-key", "cookie", "x-secret", "user-agent"}
    assert KEY not in str(received.headers)


@pytest.mark.compliance("O60")
@pytest.mark.req("C04")
async def test_models_also_those_with_slashes(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["fake", "org/model:7b"]
    model = await client.models.retrieve("org/model:7b")
    assert (model.id, model.object) == ("org/model:7b", "model")


@pytest.mark.compliance("O40", "O41")
@pytest.mark.req("D31")
async def test_errors_become_the_clients_own_exceptions(
    engine: FakeEngine, client: openai.AsyncOpenAI
) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="nobody", messages=ASK)
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id is not None
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model="fake", messages=[])
    assert wrong.value.param == "messages"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").models.list()
    engine.script = Script(
        fault=Refuse(400, '{"error":{"message":"no such tool","param":"tools","code":"bad_tool"}}')
    )
    with pytest.raises(openai.BadRequestError, match="no such tool") as refused:
        await client.chat.completions.create(model="fake", messages=ASK)
    assert refused.value.code == "bad_tool"
    engine.script = Script(fault=Refuse(500))
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="fake", messages=ASK)


@pytest.mark.compliance("O06")
async def test_an_error_in_a_stream_is_raised_by_the_client(
    engine: FakeEngine, client: openai.AsyncOpenAI
) -> None:
    engine.script = Script(tokens=5, fault=ErrorEvent(after_events=3))
    stream = await client.chat.completions.create(model="fake", messages=ASK, stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        async for _ in stream:
            pass


@pytest.mark.compliance("O14")
async def test_a_backend_without_usage_gets_it_estimated(engine: FakeEngine, house: House) -> None:
    engine.script = Script(tokens=5, usage=False)
    body = json.dumps({"model": "fake", "messages": ASK}).encode()
    usage = (await call(house.port, "POST", CHAT, house.auth, body)).json["usage"]
    assert usage["estimated"] is True
    assert usage["completion_tokens"] == 5


@pytest.mark.req("C46")
async def test_langchain_chats_and_streams(house: House) -> None:
    model = ChatOpenAI(model="fake", base_url=f"{house.url}/v1", api_key=SecretStr(KEY), max_retries=0)
    answer = await model.ainvoke("hi")
    assert answer.content == "tok0 tok1 tok2 tok3 tok4"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 5
    assert "".join([str(part.content) async for part in model.astream("hi")]) == "tok0 tok1 tok2 tok3 tok4"


@pytest.mark.slow
async def test_curl_streams_unbuffered(house: House) -> None:
    body = json.dumps({"model": "fake", "messages": ASK, "stream": True})
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sSN", f"{house.url}{CHAT}", "-H", f"Authorization: Bearer {KEY}",
        "-H", "Content-Type: application/json", "-d", body, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await curl.communicate()
    assert curl.returncode == 0
    assert output.endswith(b"data: [DONE]\n\n")
    assert output.count(b"data: ") == 1 + 5 + 1 + 1


@pytest.mark.req("C07", "D09")
@pytest.mark.parametrize("path", ["/health", "/v1/health"])
async def test_health_needs_no_key(house: House, path: str) -> None:
    response = await call(house.port, "GET", path)
    assert response.status == 200
    assert response.json == {"status": "ok", "mode": "gateway", "default_model": None, "detail": "runtimes=1"}
    head = await call_head(house, path)
    assert head == 200


async def call_head(house: House, path: str) -> int:
    async with RawClient(house.port) as client:
        client.request("HEAD", path)
        status, _ = await client.head()
        return status


@pytest.mark.compliance("O50", "O52")
@pytest.mark.req("C10")
async def test_browsers_of_allowed_origins_may_call_and_read_errors(house: House) -> None:
    for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
        preflight = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        async with RawClient(house.port) as client:
            client.request("OPTIONS", CHAT, preflight)
            response = await client.response()
            assert response.headers["x-request-id"]
            assert (response.headers.get("access-control-allow-origin") == origin) is allowed
            client.request("POST", CHAT, {"origin": origin}, b"{}")
            refused = await client.response()
        assert refused.status == 401
        assert (refused.headers.get("access-control-allow-origin") == origin) is allowed
        if allowed:
            assert "x-request-id" in refused.headers["access-control-expose-headers"]


@pytest.mark.compliance("O60")
async def test_models_are_shown_to_those_who_may_use_them(house: House) -> None:
    house.keys.replace_managed({digest(b"sk-narrow"): Principal("narrow", models=("else-*",))})
    narrow = {"authorization": "Bearer sk-narrow"}
    assert (await call(house.port, "GET", "/v1/models", narrow)).json["data"] == []
    assert (await call(house.port, "GET", "/v1/models/fake", narrow)).status == 404
    assert (await call(house.port, "GET", "/v1/models/fake", house.auth)).status == 200
