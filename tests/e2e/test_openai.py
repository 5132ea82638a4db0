"""A real model behind the gateway, as OpenAI's own client and LangChain see it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from support.service import Service

pytestmark = pytest.mark.slow

ASK: Any = [{"role": "user", "content": "Name three colors."}]
SAME: Any = {"model": "smollm2", "messages": ASK, "temperature": 0, "seed": 1, "max_tokens": 24}
TOO_LONG = "word " * 5000
PERSON: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "person",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 10},
                "age": {"type": "integer", "minimum": 0, "maximum": 99},
            },
            "required": ["name", "age"],
            "additionalProperties": False,
        },
    },
}


def whole(client: openai.OpenAI, **changes: Any) -> str:
    answer = client.chat.completions.create(**{**SAME, **changes})
    return answer.choices[0].message.content or ""


def streamed(client: openai.OpenAI, **changes: Any) -> dict[int, str]:
    """The texts of the choices of a streamed answer."""
    texts: dict[int, str] = {}
    for chunk in client.chat.completions.create(**{**SAME, **changes}, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts


@pytest.mark.req("C02", "C46", "D01", "D03", "D14", "D18", "D19", "D20")
def test_a_chat_is_the_same_streamed_and_whole(client: openai.OpenAI) -> None:
    text = whole(client)
    assert text.strip()
    assert streamed(client) == {0: text}
    with client.chat.completions.stream(**SAME) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text
    assert final.choices[0].finish_reason == "stop"


@pytest.mark.compliance("O02", "O10", "O12")
@pytest.mark.req("D20")
def test_what_goes_over_the_wire_is_server_sent_events(service: Service) -> None:
    body = json.dumps({**SAME, "stream": True}).encode()
    status, headers, raw = service.raw("POST", "/v1/chat/completions", body, service.auth)
    events = raw.decode().split("\n\n")
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "stop"


@pytest.mark.compliance("O13", "O14")
@pytest.mark.req("D34")
def test_usage_adds_up_and_comes_last_in_a_stream(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**SAME)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    stream = client.chat.completions.create(**SAME, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens


@pytest.mark.compliance("O15")
def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**{**SAME, "n": 2, "temperature": 1, "max_tokens": 12})
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.finish_reason in ("stop", "length") for choice in answer.choices)
    assert sorted(streamed(client, n=2, temperature=1, max_tokens=12)) == [0, 1]


@pytest.mark.compliance("O17")
@pytest.mark.req("D34")
def test_a_stop_sequence_ends_the_text_before_it(client: openai.OpenAI) -> None:
    text = whole(client)
    stop = text[len(text) // 2 :][:3]
    expected = text[: text.index(stop)]
    answer = client.chat.completions.create(**SAME, stop=[stop])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == expected
    assert streamed(client, stop=stop) == {0: expected}


@pytest.mark.compliance("O18")
@pytest.mark.req("D34")
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_tokens_is_kept(client: openai.OpenAI, name: str) -> None:
    limited: Any = {key: value for key, value in SAME.items() if key != "max_tokens"} | {name: 3}
    answer = client.chat.completions.create(**limited)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


@pytest.mark.req("D04")
def test_completions_whole_and_streamed(client: openai.OpenAI) -> None:
    ask: Any = {"model": "smollm2", "prompt": "One, two,", "max_tokens": 6, "temperature": 0}
    text = client.completions.create(**ask).choices[0].text
    assert text
    assert "".join(part.choices[0].text for part in client.completions.create(**ask, stream=True)) == text


@pytest.mark.compliance("O30")
def test_an_answer_in_the_form_of_a_json_schema(client: openai.OpenAI) -> None:
    text = whole(client, response_format=PERSON, max_tokens=80)
    assert set(json.loads(text)) == {"name", "age"}
    assert streamed(client, response_format=PERSON, max_tokens=80) == {0: text}


@pytest.mark.compliance("O16")
def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**{**SAME, "max_tokens": 3}, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert len(tokens) == 3
    assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_a_request_with_tools_is_answered(client: openai.OpenAI) -> None:
    """The demo model's template knows no tools, so none is called; models that do are llama.cpp's matter."""
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    answer = client.chat.completions.create(**SAME, tools=tools)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


@pytest.mark.compliance("O70", "O71")
@pytest.mark.req("C03")
def test_embeddings(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model="embedder", input=["a cat", "a dog"])
    plain = client.embeddings.create(model="embedder", input=["a dog", "a cat"], encoding_format="float")
    assert [item.index for item in packed.data] == [0, 1]
    assert packed.data[0].embedding == pytest.approx(plain.data[1].embedding, abs=1e-3)
    assert packed.data[0].embedding != pytest.approx(packed.data[1].embedding, abs=1e-3)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 0


def test_langchain(service: Service) -> None:
    base, key = f"{service.url}/v1", SecretStr(service.key)
    chat = ChatOpenAI(model="smollm2", base_url=base, api_key=key, temperature=0, max_retries=0)
    chat = chat.bind(max_tokens=8)  # type: ignore[assignment]
    text = chat.invoke("Name three colors.").text
    assert text
    assert "".join(chunk.text for chunk in chat.stream("Name three colors.")) == text
    embeddings = OpenAIEmbeddings(
        model="embedder", base_url=base, api_key=key, check_embedding_ctx_length=False, max_retries=0
    )
    assert len(embeddings.embed_query("a cat")) == len(embeddings.embed_documents(["a dog"])[0]) > 100


@pytest.mark.compliance("O41")
@pytest.mark.req("D26", "D31")
def test_a_prompt_beyond_the_context_is_the_callers_error(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": TOO_LONG}]
    for ask in (
        lambda: whole(client, messages=messages),
        lambda: streamed(client, messages=messages),
        lambda: client.completions.create(model="smollm2", prompt=TOO_LONG),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            ask()
        assert refused.value.code == "context_length_exceeded"
        assert refused.value.request_id is not None


@pytest.mark.compliance("O40", "O41")
@pytest.mark.req("D26", "D31")
def test_errors_are_the_clients_own_classes(service: Service, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'smollm2'") as unknown:
        whole(client, model="smollm")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        whole(client, temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError):
        whole(client, response_format={"type": "json_schema", "json_schema": {"schema": {"type": "x"}}})
    with pytest.raises(openai.AuthenticationError):
        whole(openai.OpenAI(base_url=f"{service.url}/v1", api_key="sk-wrong", max_retries=0))


def test_a_nul_in_a_prompt_harms_nobody(client: openai.OpenAI) -> None:
    expected = whole(client)
    poisoned: Any = [{"role": "user", "content": "a\u0000b"}]
    with ThreadPoolExecutor(3) as threads:
        harmed = threads.submit(whole, client, messages=poisoned)
        beside = threads.submit(whole, client)
        text = threads.submit(client.completions.create, model="smollm2", prompt="\u0000", max_tokens=2)
        harmed.result()
        text.result()
        assert beside.result()
    assert client.embeddings.create(model="embedder", input="a\u0000b").data[0].embedding
    assert whole(client) == expected


def test_a_hundred_requests_on_one_connection_are_all_answered(client: openai.OpenAI) -> None:
    """llama.cpp hangs up after a streamed answer without having said so: none of our requests may meet that."""
    for _ in range(100):
        assert whole(client, max_tokens=1)
