"""OpenAI's own client through a whole gateway to a backend that speaks Anthropic's API."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import openai
import pydantic
import pytest

from headrace.connectors.anthropic import KIND
from headrace.kernel.clock import SystemClock
from headrace.ports.backend import BackendSpec
from headrace.testing.fake_anthropic import FakeAnthropic
from headrace.testing.fake_anthropic_messages import AnthropicScript
from headrace.testing.fake_engine import FakeEngine, Script, ToolCall
from support.house import KEY, House, gateway
from support.openai_contract import parsed, put_together
from support.raw import call
from support.strict import check_chat_stream

MODEL = "claude-fake"
ASK: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Name three colours."}]}
SAID = AnthropicScript(api_key="k", text="Red, green and blue.", cache_read=3)
TOOL: Any = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}

pytestmark = pytest.mark.req("C27")


@dataclass
class Scene:
    """A gateway, the backend behind it, and OpenAI's client before it."""

    server: FakeAnthropic
    house: House
    client: openai.AsyncOpenAI


@contextlib.asynccontextmanager
async def scene(*others: str, unstreamed: bool | None = None) -> AsyncIterator[Scene]:
    async with FakeAnthropic(SAID) as server:
        spec = BackendSpec("far", server.url, api_key="k", cancels_unstreamed=unstreamed)
        opened = KIND.open(spec, SystemClock())
        async with (
            gateway(*others, engines={MODEL: opened.connector}, queue_wait_s=0.3) as house,
            openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=KEY, max_retries=0, timeout=30) as client,
        ):
            yield Scene(server, house, client)


@pytest.fixture(params=[None, True], ids=["assembled", "whole"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """Answers that aren't streamed are put together from streams, or asked for whole, as the settings say."""
    async with scene(unstreamed=request.param) as stage:
        yield stage


@pytest.mark.compliance("O10", "O14")
async def test_a_chat(stage: Scene) -> None:
    answer = await stage.client.chat.completions.create(**ASK, max_tokens=50)
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Red, green and blue.", "stop")
    assert (answer.object, answer.id, answer.model) == ("chat.completion", "chatcmpl-fake", MODEL)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        14,
        4,
        18,
    )
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert stage.server.asked["max_tokens"] == 50


@pytest.mark.compliance("O01", "O02", "O10", "O11", "O12", "O13")
@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("piece_bytes", [0, 1])
async def test_every_chunk_is_strict(stage: Scene, usage: bool, piece_bytes: int) -> None:
    stage.server.script = replace(
        SAID, thinking="Well, now", tool_calls=(ToolCall("look", '{"at":"é"}'),), piece_bytes=piece_bytes
    )
    body = {**ASK, "stream": True, **({"stream_options": {"include_usage": True}} if usage else {})}
    response = await call(
        stage.house.port, "POST", "/v1/chat/completions", stage.house.auth, json.dumps(body).encode()
    )
    said = check_chat_stream(response.body, usage=usage)[0]
    assert (said["content"], said["reasoning"]) == ("Red, green and blue.", "Well, now")
    assert said["calls"] == [{"id": "toolu_fake0", "name": "look", "arguments": '{"at":"é"}'}]
    assert said["finish_reason"] == "tool_calls"


@pytest.mark.compliance("O20", "O21", "O22", "O23")
async def test_a_conversation_with_tools(stage: Scene) -> None:
    calls = (ToolCall("look", '{"at":"here"}'), ToolCall("look"))
    stage.server.script = replace(SAID, text="Let me see.", tool_calls=calls)
    ask = {**ASK, "tools": [TOOL], "tool_choice": "required"}
    whole = await stage.client.chat.completions.create(**ask)
    streamed = await put_together(stage.client, **ask)
    for answer in (whole, streamed):
        [choice] = answer.choices
        assert choice.finish_reason == "tool_calls"
        said = [
            (made.id, made.function.name, json.loads(made.function.arguments))
            for made in choice.message.tool_calls
        ]
        assert said == [("toolu_fake0", "look", {"at": "here"}), ("toolu_fake1", "look", {})]
    assert stage.server.asked["tool_choice"] == {"type": "any"}
    stage.server.script = SAID
    results: Any = [
        {"role": "tool", "tool_call_id": made.id, "content": "seen"}
        for made in whole.choices[0].message.tool_calls or ()
    ]
    spoken: Any = whole.choices[0].message.model_dump(exclude_none=True)
    answer = await stage.client.chat.completions.create(
        model=MODEL, messages=[*ASK["messages"], spoken, *results], tools=[TOOL]
    )
    assert answer.choices[0].message.content == "Red, green and blue."
    assert [turn["role"] for turn in stage.server.asked["messages"]] == ["user", "assistant", "user"]


class Colour(pydantic.BaseModel):
    """A shape that an answer may be asked for in."""

    name: str
    warm: bool


@pytest.mark.compliance("O30", "O31")
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_in_a_shape(stage: Scene, stream: bool) -> None:
    stage.server.script = replace(SAID, text='{"name": "blue", "warm": false}')
    answer = await parsed(stage.client, stream=stream, **ASK, response_format=Colour)
    assert answer.choices[0].message.parsed == Colour(name="blue", warm=False)
    asked = stage.server.asked["output_config"]["format"]
    assert (asked["type"], asked["schema"]["required"]) == ("json_schema", ["name", "warm"])
    with pytest.raises(openai.LengthFinishReasonError):
        await parsed(stage.client, stream=stream, **ASK, response_format=Colour, max_tokens=1)
    with pytest.raises(openai.BadRequestError) as refused:
        await stage.client.chat.completions.create(**ASK, response_format={"type": "json_object"})
    assert refused.value.param == "response_format"


@pytest.mark.compliance("O18")
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_of_tokens(stage: Scene, name: str) -> None:
    ask = {**ASK, name: 2}
    answer = await stage.client.chat.completions.create(**ask)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


@pytest.mark.compliance("O40", "O41")
@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_refused(stage: Scene, stream: bool) -> None:
    create = stage.client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as ours:
        await create(**ASK, stream=stream, seed=7)
    assert (ours.value.param, ours.value.code) == ("seed", "unsupported")
    stage.server.script = replace(
        SAID, refuse=400, error=("invalid_request_error", "prompt is too long: 9 tokens > 5 maximum")
    )
    with pytest.raises(openai.BadRequestError) as theirs:
        await create(**ASK, stream=stream)
    assert (theirs.value.param, theirs.value.code) == ("messages", "context_length_exceeded")


async def test_it_only_chats(stage: Scene) -> None:
    with pytest.raises(openai.BadRequestError) as completion:
        await stage.client.completions.create(model=MODEL, prompt="One, two,")
    with pytest.raises(openai.BadRequestError) as streamed:
        await stage.client.completions.create(model=MODEL, prompt="One, two,", stream=True)
    with pytest.raises(openai.BadRequestError) as embedding:
        await stage.client.embeddings.create(model=MODEL, input="x")
    assert {each.value.code for each in (completion, streamed, embedding)} == {"unsupported"}
    assert not stage.server.received


@pytest.mark.compliance("O06")
async def test_a_stream_that_breaks_off_under_way(stage: Scene) -> None:
    stage.server.script = replace(SAID, error_after=5, error=("api_error", "Something gave way."))
    said = ""

    async def follow() -> None:
        nonlocal said
        async for chunk in await stage.client.chat.completions.create(**ASK, stream=True):
            said += chunk.choices[0].delta.content or ""

    with pytest.raises(openai.APIError, match="gave way"):
        await follow()
    assert said == "Red, green"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "trouble",
    [
        {"refuse": 529, "error": ("overloaded_error", "Overloaded")},
        {"refuse": 429, "error": ("rate_limit_error", "Slow down.")},
        {"refuse": 401, "error": ("authentication_error", "invalid x-api-key")},
        {"error_after": 2, "error": ("overloaded_error", "Overloaded")},
    ],
)
async def test_another_backend_answers_instead(trouble: Any, stream: bool) -> None:
    """What was refused before anything was done moves on, also when the refusal comes within a stream."""
    async with FakeEngine(Script(models=(MODEL,), text="elsewhere")) as engine, scene(engine.url) as stage:
        stage.server.script = replace(SAID, **trouble)
        for _ in range(4):
            if stream:
                answer = await put_together(stage.client, **ASK)
            else:
                answer = await stage.client.chat.completions.create(**ASK)
            assert answer.choices[0].message.content == "elsewhere"
        assert stage.server.received


async def listen(client: openai.AsyncOpenAI, stream: bool) -> None:
    if not stream:
        await client.chat.completions.create(**ASK)
        return
    async for _ in await client.chat.completions.create(**ASK, stream=True):
        pass


@pytest.mark.compliance("O95")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("hang_after", [-1, 4])
async def test_a_client_that_leaves_stops_the_backend(hang_after: int, stream: bool) -> None:
    async with scene() as stage:
        stage.server.script = replace(SAID, hang_after=hang_after)
        async with openai.AsyncOpenAI(
            base_url=f"{stage.house.url}/v1", api_key=KEY, max_retries=0, timeout=0.3
        ) as hasty:
            with pytest.raises(openai.APITimeoutError):
                await listen(hasty, stream)
        await stage.server.until(lambda: stage.server.left == 1)
        assert stage.server.finished == 0
        stage.server.script = SAID
        assert (await stage.client.chat.completions.create(**ASK)).choices
