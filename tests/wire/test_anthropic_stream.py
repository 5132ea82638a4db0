"""Anthropic's answers as OpenAI's: the whole one and the stream say the same, however the stream is cut; what is unknown passes."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import msgspec
import pydantic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from headrace.core.assembling import Assembler
from headrace.testing.fake_anthropic_messages import (
    AnthropicScript,
    encode_event,
    error_body,
    events,
    message,
)
from headrace.testing.fake_engine import ToolCall
from headrace.wire.anthropic import MAX_CALLS, Malformed, Usage, completion, finish_reason
from headrace.wire.anthropic_errors import ApiError
from headrace.wire.anthropic_stream import MessageStream
from headrace.wire.sse import DONE, EventSplitter
from support.strict import check_chat_stream, parse_stream

ASK = {"model": "m", "max_tokens": 1000}
_official_event = pydantic.TypeAdapter[Any](RawMessageStreamEvent)


def stream_of(*, usage: bool = True) -> MessageStream:
    return MessageStream(model="m", created=7, include_usage=usage)


def raw(*told: Any) -> bytes:
    """Events as they are sent; bytes go out as they are."""
    return b"".join(one if isinstance(one, bytes) else encode_event(one) for one in told)


def translated(
    body: bytes, cuts: list[int] | None = None, *, usage: bool = True
) -> tuple[bytes, MessageStream]:
    """The chunks of a stream that comes in these pieces."""
    splitter, stream = EventSplitter(), stream_of(usage=usage)
    said = b""
    edges = [0, *sorted(cuts or []), len(body)]
    for start, end in itertools.pairwise(edges):
        if block := splitter.feed(body[start:end]):
            said += stream.feed(block)
    said += stream.feed(splitter.finish()) + stream.finish()
    return said, stream


def start(kind: str, index: int = 0, **members: Any) -> Any:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **members}}


def grow(kind: str, index: int = 0, **members: Any) -> Any:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **members}}


BEGIN: Any = {
    "type": "message_start",
    "message": {"id": "msg_1", "model": "m-2", "usage": {"input_tokens": 3}},
}
STOP: Any = {"type": "content_block_stop", "index": 0}
OVER: Any = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}
LAST: Any = {"type": "message_stop"}


def chunks(body: bytes) -> list[Any]:
    return parse_stream(body)[:-1]


def test_a_stream_to_the_letter() -> None:
    said, stream = translated(
        raw(BEGIN, {"type": "ping"}, start("text", text=""), grow("text_delta", text='a"é'), STOP, OVER, LAST)
    )
    shared = '"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m-2"'
    assert said.decode() == (
        f'data: {{{shared},"choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},"finish_reason":null}}],"usage":null}}\n\n'
        f'data: {{{shared},"choices":[{{"index":0,"delta":{{"content":"a\\"é"}},"finish_reason":null}}],"usage":null}}\n\n'
        f'data: {{{shared},"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}],"usage":null}}\n\n'
        f'data: {{{shared},"choices":[],"usage":{{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,'
        '"prompt_tokens_details":{"cached_tokens":0}}}\n\n'
        "data: [DONE]\n\n"
    )
    assert stream.done
    assert stream.broken is None


def test_a_whole_answer_to_the_letter() -> None:
    body = json.dumps(message(AnthropicScript(text="a", cache_read=5, cache_written=2), ASK)).encode()
    assert completion(body, model="x", created=7) == (
        b'{"id":"chatcmpl-fake","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"a","refusal":null},"logprobs":null,"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":18,"completion_tokens":1,"total_tokens":19,'
        b'"prompt_tokens_details":{"cached_tokens":5,"cache_write_tokens":2}}}'
    )


# -- whole and streamed ------------------------------------------------------------------------------------------------

_text = st.text(st.characters(codec="utf-8"), max_size=20)
_json_object = st.dictionaries(
    _text, st.recursive(st.none() | st.integers() | _text, st.lists, max_leaves=3), max_size=3
)
_scripts = st.builds(
    AnthropicScript,
    text=_text,
    thinking=_text,
    tool_calls=st.lists(
        st.builds(lambda name, value: ToolCall(name, json.dumps(value)), _text, _json_object), max_size=3
    ).map(tuple),
    stop_reason=st.sampled_from(
        [None, "max_tokens", "stop_sequence", "refusal", "pause_turn", "something_new"]
    ),
    explanation=st.none() | _text,
    cache_read=st.integers(0, 9),
)


@pytest.mark.compliance("O01", "O10", "O11", "O12", "O13", "O14", "O20", "O21", "O22")
@given(_scripts, st.data(), st.booleans())
def test_a_stream_cut_anywhere_says_what_the_whole_answer_says(
    script: AnthropicScript, data: st.DataObject, usage: bool
) -> None:
    told = list(events(script, ASK))
    for event in told:
        if event["type"] != "ping" and script.stop_reason != "something_new":
            _official_event.validate_python(event)
    body = raw(*told)
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=12))
    said, stream = translated(body, cuts, usage=usage)
    assert said == translated(body, usage=usage)[0]
    assert stream.broken is None
    check_chat_stream(said, usage=usage)
    whole = json.loads(completion(json.dumps(message(script, ASK)).encode(), model="m", created=7))
    ChatCompletion.model_validate(whole)
    assembler = Assembler()
    for chunk in chunks(said):
        ChatCompletionChunk.model_validate(chunk)
        assembler.add(chunk)
    assembled = assembler.whole()
    assert said_by(assembled) == said_by(whole)
    assert (assembled["id"], assembled["model"], assembled["created"]) == (whole["id"], "m", 7)
    assert assembled.get("usage") == (whole["usage"] if usage else None)


def said_by(answer: Any) -> Any:
    [choice] = answer["choices"]
    spoken = choice["message"]
    calls = [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in spoken.get("tool_calls", ())
    ]
    text = (spoken["content"] or "", spoken.get("reasoning_content", ""), spoken.get("refusal") or "")
    return text, calls, choice["finish_reason"]


def test_every_single_cut() -> None:
    script = AnthropicScript(
        text="déjà vu", thinking="hm", tool_calls=(ToolCall("f", '{"a":"é"}'), ToolCall("g"))
    )
    body = raw(*events(script, ASK)).replace(b"\n", b"\r\n")
    expected = translated(body)[0]
    check_chat_stream(expected, usage=True)
    for cut in range(len(body)):
        assert translated(body, [cut])[0] == expected


@given(_scripts)
def test_the_fake_speaks_as_the_official_library_reads(script: AnthropicScript) -> None:
    if script.stop_reason != "something_new":
        Message.model_validate(message(script, ASK), strict=True)


# -- reasons, usage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop_reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
        (None, "stop"),
    ],
)
def test_reasons(stop_reason: str | None, expected: str) -> None:
    assert finish_reason(stop_reason) == expected


def test_counts_add_up_and_later_ones_win() -> None:
    usage = Usage(input_tokens=3, output_tokens=1, cache_read_input_tokens=4)
    usage.update(
        msgspec.convert({"output_tokens": 9, "output_tokens_details": {"thinking_tokens": 5}}, Usage)
    )
    assert usage.member() == {
        "prompt_tokens": 7,
        "completion_tokens": 9,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    assert Usage().member() is None


def test_without_counts_there_is_no_usage_chunk() -> None:
    bare = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    said, _ = translated(raw(start("text"), grow("text_delta", text="a"), bare, LAST))
    assert [chunk["choices"] == [] for chunk in chunks(said)] == [False, False, False]
    assert {chunk["model"] for chunk in chunks(said)} == {"m"}
    body = {"type": "message", "content": [{"type": "text", "text": "a"}]}
    assert "usage" not in json.loads(completion(json.dumps(body).encode(), model="m", created=7))


# -- what is unusual ---------------------------------------------------------------------------------------------------


def test_what_is_unknown_is_passed_over() -> None:
    said, stream = translated(
        raw(
            BEGIN,
            b": a comment\n\n",
            {"type": "brand_new", "delta": 5, "message": "x"},
            start("redacted_thinking", data="x"),
            start("web_search_tool_result", 1, content=[], text=5),
            grow("future_delta", 1, text=None),
            grow("signature_delta", signature="x"),
            grow("citations_delta", citation={}),
            grow("input_json_delta", 9, partial_json="{}"),
            start("text", 2),
            grow("text_delta", 2, text="a"),
            {"type": "message_delta", "delta": {"stop_reason": None}},
            OVER,
            {**OVER, "delta": {"stop_reason": "refusal"}},
            grow("text_delta", 2, text="late"),
            LAST,
            grow("text_delta", 2, text="later"),
        )
    )
    spoken = check_chat_stream(said, usage=True)[0]
    assert (spoken["content"], spoken["finish_reason"]) == ("a", "stop")
    assert stream.broken is None


def test_the_input_of_a_call_may_come_at_its_start_or_not_at_all() -> None:
    said, _ = translated(
        raw(
            start("tool_use", id="t1", name="f", input={"a": 1}),
            start("tool_use", id="t2", name="g", input={}),
            grow("input_json_delta", partial_json=""),
            OVER,
            LAST,
        )
    )
    calls = check_chat_stream(said, usage=True)[0]["calls"]
    assert calls == [
        {"id": "t1", "name": "f", "arguments": '{"a":1}'},
        {"id": "t2", "name": "g", "arguments": "{}"},
    ]


def test_a_call_without_an_id_gets_one() -> None:
    said, _ = translated(raw(start("tool_use", name="f"), OVER, LAST))
    assert check_chat_stream(said, usage=True)[0]["calls"][0]["id"].startswith("call_")


def test_nothing_is_said_before_something_is_generated() -> None:
    stream = stream_of()
    assert (
        stream.feed(
            raw(BEGIN, {"type": "ping"}, error_body(AnthropicScript(error=("overloaded_error", "x"))))
        )
        == b""
    )
    assert isinstance(stream.broken, ApiError)
    assert (stream.begun, stream.broken.type) == (False, "overloaded_error")


def test_what_came_before_an_error_is_passed_on_and_nothing_after() -> None:
    stream = stream_of()
    said = stream.feed(
        raw(
            start("text"), grow("text_delta", text="a"), {"type": "error"}, grow("text_delta", text="b"), OVER
        )
    )
    assert b'"content":"a"' in said
    assert b'"content":"b"' not in said
    assert stream.begun
    assert isinstance(stream.broken, ApiError)
    assert stream.feed(raw(OVER, LAST)) == stream.finish() == b""


@pytest.mark.parametrize(
    "told",
    [
        b"data: {\n\n",
        b"data: [1]\n\n",
        b"data: {}\n\n",
b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"\xff"}}\n\n',
        {"type": "message_start", "message": 5},
        start("text", text=5),
        start("tool_use", id=5),
        grow("text_delta", text=None),
        {"type": "message_delta", "delta": {"stop_reason": 5}},
        {"type": "error", "error": "x"},
        LAST,
    ],
)  # fmt: skip
def test_what_has_not_its_form_breaks_the_stream(told: Any) -> None:
    _, stream = translated(raw(BEGIN, told))
    assert isinstance(stream.broken, Malformed)


def test_an_end_without_a_reason_is_none() -> None:
    _, stream = translated(raw(BEGIN, start("text"), grow("text_delta", text="a"), STOP))
    assert isinstance(stream.broken, Malformed)
    assert not stream.done


def test_an_end_without_message_stop_is_one() -> None:
    said, stream = translated(raw(BEGIN, start("text"), grow("text_delta", text="a"), STOP, OVER))
    assert said.endswith(DONE)
    assert stream.done
    check_chat_stream(said, usage=True)


def test_calls_are_bounded() -> None:
    one_by_one = [start("tool_use", index, id=f"t{index}", name="f") for index in range(MAX_CALLS + 1)]
    _, stream = translated(raw(*one_by_one, OVER, LAST))
    assert isinstance(stream.broken, Malformed)
    block = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    with pytest.raises(Malformed):
        completion(
            json.dumps({"type": "message", "content": [block] * (MAX_CALLS + 1)}).encode(),
            model="m",
            created=7,
        )


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"type":"error"}', b'{"type":"message","content":5}', b"[" * 100_000,
     b'{"type":"message","content":[{"type":"tool_use","id":"a","name":"f","input":{"a":"\xff"}}]}'],
)  # fmt: skip
def test_what_is_no_message_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        completion(body, model="m", created=7)


def test_a_refusal_says_why() -> None:
    script = replace(AnthropicScript(text="So", stop_reason="refusal"), explanation="Not that.")
    whole = json.loads(completion(json.dumps(message(script, ASK)).encode(), model="m", created=7))
    [choice] = whole["choices"]
    assert (choice["finish_reason"], choice["message"]["refusal"]) == ("content_filter", "Not that.")
