"""What a client of OpenAI's API gets from a real model, through the whole service."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from support.openai_contract import OpenAIContract, Site
from support.service import Service

pytestmark = pytest.mark.slow

ASK: Any = [{"role": "user", "content": "Name three colors."}]
SAME: Any = {"model": "smollm2", "messages": ASK, "temperature": 0, "seed": 1, "max_tokens": 24}


class TestRealEngine(OpenAIContract):
    """llama.cpp with the demo model."""

    @pytest.fixture
    async def site(self, service: Service) -> Site:
        return Site(service.port, service.key, "smollm2", "embedder", "smollm2")


def whole(client: openai.OpenAI, **changes: Any) -> Any:
    return client.chat.completions.create(**{**SAME, **changes}).choices[0]


def streamed(client: openai.OpenAI, **changes: Any) -> tuple[str, list[str]]:
    """The text, and the reasons to finish."""
    text, reasons = "", []
    for chunk in client.chat.completions.create(**{**SAME, **changes}, stream=True):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    return text, reasons


@pytest.mark.compliance("O17")
def test_a_stop_string_never_shows_wherever_it_lies_between_tokens(client: openai.OpenAI) -> None:
    """The pieces that are looked for begin and end anywhere: inside of tokens, and across several."""
    text = whole(client).message.content or ""
    assert len(text) > 20
    for start in range(1, len(text) - 7, 3):
        for size in (1, 3, 7):
            stop = text[start : start + size]
            expected = text[: text.index(stop)]
            answer = whole(client, stop=stop)
            assert (answer.message.content, answer.finish_reason) == (expected, "stop")
            assert streamed(client, stop=["\x01nowhere", stop]) == (expected, ["stop"])


@pytest.mark.compliance("O17")
def test_a_stop_string_of_a_text_completion_never_shows(client: openai.OpenAI) -> None:
    ask: Any = {"model": "smollm2", "prompt": "One, two,", "max_tokens": 12, "temperature": 0}
    text = client.completions.create(**ask).choices[0].text
    stop = text[len(text) // 2 :][:4]
    expected = text[: text.index(stop)]
    answer = client.completions.create(**ask, stop=[stop, "\x01", "\x02", "\x03"]).choices[0]
    assert (answer.text, answer.finish_reason) == (expected, "stop")
    parts = list(client.completions.create(**ask, stop=stop, stream=True))
    assert "".join(part.choices[0].text for part in parts) == expected
    assert parts[-1].choices[0].finish_reason == "stop"


@pytest.mark.compliance("O16")
def test_as_many_alternatives_as_were_asked_for(client: openai.OpenAI) -> None:
    for count in (None, 0, 1, 20):
        asked = {} if count is None else {"top_logprobs": count}
        answer = whole(client, max_tokens=3, logprobs=True, **asked)
        assert answer.logprobs is not None
        assert [len(token.top_logprobs) for token in answer.logprobs.content] == [count or 0] * 3
        for token in answer.logprobs.content:
            assert token.logprob <= 0
            assert all(other.logprob <= 0 for other in token.top_logprobs)


@pytest.mark.compliance("O30")
@pytest.mark.parametrize("schema", [{"type": "x"}, {"$ref": "https://example.com/schema.json"}])
@pytest.mark.parametrize("stream", [True, False])
def test_a_schema_that_cannot_be_kept_is_refused(client: openai.OpenAI, schema: Any, stream: bool) -> None:
    shape: Any = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**SAME, response_format=shape, stream=stream)
    assert refused.value.param == "response_format"


@pytest.mark.compliance("O30")
def test_an_unknown_kind_of_shape_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        whole(client, response_format={"type": "nonsense"})
    assert refused.value.param == "response_format"


@pytest.mark.compliance("O30")
def test_a_json_object_is_one(client: openai.OpenAI) -> None:
    ask: Any = [{"role": "user", "content": 'Say exactly this: {"a": 1}'}]
    answer = whole(client, messages=ask, response_format={"type": "json_object"}, max_tokens=200)
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)
    text, reasons = streamed(client, messages=ask, response_format={"type": "json_object"}, max_tokens=200)
    assert (text, reasons) == (answer.message.content, [answer.finish_reason])


TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
]


@pytest.mark.compliance("O23")
def test_a_conversation_with_tools_is_understood(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages: Any = [
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    for choice in ("none", "auto"):
        answer = whole(client, messages=messages, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
        assert answer.message.content
        assert not answer.message.tool_calls
    with pytest.raises(openai.BadRequestError) as refused:
        whole(client, tools=TOOLS, tool_choice="nonsense")
    assert refused.value.param == "tool_choice"


@pytest.mark.compliance("O71")
def test_an_embedding_does_not_depend_on_its_neighbours_nor_its_place(client: openai.OpenAI) -> None:
    texts = ["a cat", "a dog and a cow", "the sea"]
    alone = [client.embeddings.create(model="embedder", input=text).data[0].embedding for text in texts]
    for order in ([0, 1, 2], [2, 0, 1]):
        together = client.embeddings.create(model="embedder", input=[texts[place] for place in order])
        for item, place in zip(together.data, order, strict=True):
            assert item.embedding == pytest.approx(alone[place], abs=1e-3)
    size = len(alone[0])
    same = client.embeddings.create(model="embedder", input="a cat", dimensions=size)
    assert len(same.data[0].embedding) == size
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="embedder", input="a cat", dimensions=size - 1)
    assert refused.value.param == "dimensions"
