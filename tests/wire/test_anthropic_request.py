"""Chats as requests to Anthropic's API: each member translated, ignored or refused; and the official library finds them right."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pydantic
import pytest
from anthropic.types import message_create_params
from hypothesis import given
from hypothesis import strategies as st

from headrace.kernel.errors import InvalidRequest
from headrace.testing.fake_anthropic_messages import check
from headrace.wire.anthropic_request import IGNORED, TRANSLATED, translate

HI: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
}
CALL: Any = {"id": "toolu_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1.50}'}}
PNG = "data:image/png;base64,iVBORw0KGgo="
GONE_FROM_THE_TYPES = {"temperature", "top_k", "top_p"}
"""The API's older models know them; the library's types have dropped them."""

_official = pydantic.TypeAdapter[Any](message_create_params.MessageCreateParams)


def officially(body: Any) -> Any:
    """*body* as the official types read it, all of it: they check what is iterated only then."""
    read = _official.validate_python(body)
    return read | {"messages": [_turn(turn) for turn in read["messages"]]}


def _turn(turn: Any) -> Any:
    content = turn["content"]
    return turn | {"content": content if isinstance(content, str) else list(content)}


def ask(**members: Any) -> Any:
    """The translation of a chat, once the official types and the fake server's rules found it right."""
    asked = translate(json.dumps({"model": "m", "messages": HI, **members}).encode(), lambda model: 4096)
    body = json.loads(asked.body)
    assert set(body) - GONE_FROM_THE_TYPES <= set(officially(body))
    check(body)
    return body


def refused(**members: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        ask(**members)
    return raised.value


def test_the_official_types_do_refuse() -> None:
    for content in ([{"type": "image", "source": {"type": "base64"}}], [{"type": "text"}], [5], 5):
        body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
        with pytest.raises(pydantic.ValidationError):
            officially(body)


def test_a_request_to_the_letter() -> None:
    body = json.dumps(
        {
            "model": "claude",
            "messages": [{"role": "system", "content": "Be brief."}, *HI],
            "max_tokens": 9,
            "temperature": 0.5,
            "stop": "END",
            "stream": True,
            "stream_options": {"include_usage": True},
            "user": "u1",
            "tools": [TOOL],
        }
    )
    asked = translate(body.encode(), lambda model: 1)
    assert asked.body == (
        b'{"model":"claude","max_tokens":9,"messages":[{"role":"user","content":"hi"}],"stream":true,'
        b'"system":"Be brief.","temperature":0.5,"stop_sequences":["END"],'
        b'"tools":[{"name":"look","input_schema":{"type":"object","properties":{}},"description":"Look."}],'
        b'"metadata":{"user_id":"u1"}}'
    )
    assert (asked.model, asked.stream, asked.include_usage) == ("claude", True, True)


# -- messages ----------------------------------------------------------------------------------------------------------


def test_a_whole_conversation_with_tools() -> None:
    body = ask(
        tools=[TOOL],
        messages=[
            {"role": "system", "content": "One."},
            {"role": "user", "content": "a", "name": "ann"},
            {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": ""}]},
            {"role": "developer", "content": [{"type": "text", "text": "Two."}]},
            {
                "role": "assistant",
                "content": "Let me look.",
                "reasoning_content": "not taken back without its signature",
                "tool_calls": [CALL, {**CALL, "id": "call é", "function": {"name": "look", "arguments": ""}}],
            },
            {"role": "tool", "tool_call_id": "toolu_1", "content": "seen"},
            {"role": "user", "content": "and?"},
            {"role": "tool", "tool_call_id": "call é", "content": ""},
            {"role": "assistant", "content": None, "refusal": "No."},
        ],
    )
    other = body["messages"][1]["content"][2]["id"]
    assert other.startswith("toolu_")
    assert other.isascii()
    assert body["system"] == "One.\n\nTwo."
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"a": 1.5}},
                {"type": "tool_use", "id": other, "name": "look", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "seen"},
                {"type": "tool_result", "tool_use_id": other},
                {"type": "text", "text": "and?"},
            ],
        },
        {"role": "assistant", "content": "No."},
    ]


def test_arguments_and_schemas_keep_their_bytes() -> None:
    exact = '{"n":12345678901234567890.10}'
    schema = {"type": "object", "properties": {"x": {"multipleOf": 0.1}}}
    messages = [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": exact}}],
        },
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    body = json.dumps({"model": "m", "messages": messages, "tools": tools}).encode()
    sent = translate(body, lambda _: 1).body
    assert b'"input":' + exact.encode() in sent
    assert b'"multipleOf": 0.1' in sent or b'"multipleOf":0.1' in sent


@pytest.mark.parametrize(
    ("url", "source"),
    [
        (PNG, {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}),
        ("data:image/JPG;base64,AAAA", {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}),
        ("https://a.example/b.png", {"type": "url", "url": "https://a.example/b.png"}),
    ],
)
def test_images(url: str, source: Any) -> None:
    parts = [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
    ]
    content = ask(messages=[{"role": "user", "content": parts}])["messages"][0]["content"]
    assert content == [{"type": "text", "text": "What?"}, {"type": "image", "source": source}]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "alone"}],
        [{"role": "user", "content": ""}],
        [*HI, {"role": "function", "name": "f", "content": "1"}],
        [*HI, {"role": "tool", "content": "no id"}],
        [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}, *HI],
        [
            {
                "role": "user",
                "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}],
            }
        ],
        [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://a/b"}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,raw"}}]}],
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/bmp;base64,AA"}}],
            }
        ],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [*HI, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}],
        [*HI, {"role": "assistant", "tool_calls": [{"id": "a", "type": "custom", "custom": {}}]}],
        [
            *HI,
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[1]"}}]},
        ],
        [
            *HI,
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]},
        ],
        [{"role": "user", "content": 5}],
        "hi",
    ],
)
def test_messages_that_cannot_be_said_there_are_refused(messages: Any) -> None:
    error = refused(messages=messages)
    assert error.param == "messages"
    assert error.code in ("unsupported", "invalid_value")
    assert "iVBOR" not in error.message


# -- other members -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": 7, "max_completion_tokens": 8}, {"max_tokens": 8}),
        ({}, {"max_tokens": 4096}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"top_k": 40}, {"top_k": 40}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"safety_identifier": "s", "user": "u"}, {"metadata": {"user_id": "s"}}),
        ({"reasoning_effort": "high"}, {"output_config": {"effort": "high"}}),
        ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        ),
    ],
)  # fmt: skip
def test_members_are_translated(given_: Any, expected: Any) -> None:
    body = ask(**given_)
    assert {name: body[name] for name in expected} == expected


@pytest.mark.parametrize(
    "members",
    [
        {"temperature": 1},
        {"temperature": 1.7},
        {"top_p": 1},
        {"stop": []},
        {"n": 1},
        {"logprobs": False},
        {"logit_bias": {}},
        {"presence_penalty": 0, "frequency_penalty": 0.0},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"tool_choice": "auto"},
        {"tool_choice": "none", "parallel_tool_calls": False},
        {"tools": []},
        {"seed": None, "something_else": None, "stream_options": None},
        *[{name: "x"} for name in sorted(IGNORED)],
    ],
)
def test_what_asks_for_nothing_is_left_out(members: Any) -> None:
    assert ask(**members) == {"model": "m", "max_tokens": 4096, "messages": HI, "stream": False}


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"seed": 1}, "seed"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"verbosity": "low"}, "verbosity"),
        ({"min_p": 0.1}, "min_p"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_name(members: Any, param: str) -> None:
    error = refused(**members)
    assert error.param == param
    assert error.code in ("unsupported", "invalid_value")


def test_nothing_is_both_ignored_and_translated() -> None:
    assert not IGNORED & TRANSLATED


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"model":"m"}', b'{"messages":[]}', b"[" * 100_000, b'{"model":"\xff"}']
)
def test_what_is_no_chat_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        translate(body, lambda _: 1)


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        (None, None, None),
        ("auto", True, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", None, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"type": "function", "function": {"name": "look"}}, None, {"type": "tool", "name": "look"}),
    ],
)
@pytest.mark.compliance("O23")
def test_which_tools_are_used(choice: Any, parallel: bool | None, expected: Any) -> None:
    body = ask(tools=[TOOL], tool_choice=choice, parallel_tool_calls=parallel)
    assert body.get("tool_choice") == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ({"name": "f"}, {"name": "f", "input_schema": {"type": "object", "properties": {}}}),
        (
            {"name": "f", "parameters": {}},
            {"name": "f", "input_schema": {"type": "object", "properties": {}}},
        ),
        (
            {"name": "f", "description": "", "strict": True, "parameters": {"properties": {"a": {}}}},
            {"name": "f", "strict": True, "input_schema": {"type": "object", "properties": {"a": {}}}},
        ),
    ],
)
def test_tools_always_have_a_schema(function: Any, expected: Any) -> None:
    assert ask(tools=[{"type": "function", "function": function}])["tools"] == [expected]


# -- any conversation --------------------------------------------------------------------------------------------------

_text = st.text(st.characters(codec="utf-8"), max_size=8)
_content = _text | st.lists(st.builds(lambda text: {"type": "text", "text": text}, _text), max_size=3)
_simple = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "developer", "user", "assistant"]),
    _content,
)


@st.composite
def _conversation(draw: st.DrawFn) -> list[Any]:
    """Messages in any order, calls of tools with their results right behind them, these in any order."""
    messages: list[Any] = [*HI]
    for _ in range(draw(st.integers(0, 5))):
        messages.append(draw(_simple))
        ids = draw(st.lists(_text.filter(bool), max_size=3, unique=True))
        if ids:
            calls = [{"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in ids]
            messages.append({"role": "assistant", "content": draw(_content), "tool_calls": calls})
            messages += [
                {"role": "tool", "tool_call_id": i, "content": draw(_content)}
                for i in draw(st.permutations(ids))
            ]
    return messages


@given(_conversation())
def test_every_conversation_becomes_one_that_the_api_takes(messages: list[Any]) -> None:
    body = ask(messages=messages)
    roles = [turn["role"] for turn in body["messages"]]
    assert all(one != other for one, other in itertools.pairwise(roles))
    said = json.dumps(body["messages"], ensure_ascii=False)
    for message in messages:
        if message["role"] == "user" and isinstance(message["content"], str) and message["content"]:
            assert json.dumps(message["content"], ensure_ascii=False) in said
