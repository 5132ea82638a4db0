"""Whole answers of careless backends: put right where that can be, refused where it can't, untouched where they are right."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from headrace.core.whole import meter_whole
from headrace.domain.inference import Operation
from headrace.kernel.errors import InvalidRequest, UpstreamFailed
from headrace.wire.openai import InferenceBody, decode_request

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ENVELOPE = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def body_of(operation: Operation, **members: Any) -> InferenceBody:
    return decode_request(operation, json.dumps({"model": "m", **members}).encode())


def chat(answer: Any) -> tuple[bytes, Any]:
    """The answer as it went in, and as it comes out."""
    raw = json.dumps(answer).encode()
    out, _ = meter_whole(raw, body_of(Operation.CHAT, messages=[{"role": "user", "content": "x"}]))
    return raw, out


def said(**message: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "a", **message},
    }
    return {**ENVELOPE, "choices": [choice], "usage": USAGE}


@pytest.mark.compliance("O22")
@pytest.mark.parametrize("answer", [said(), said(content=None, tool_calls=[CALL]), {**said(), "x": 1.50}])
def test_a_right_answer_passes_byte_for_byte(answer: Any) -> None:
    raw, out = chat(answer)
    assert out == raw


@pytest.mark.compliance("O12", "O15", "O20", "O21", "O22")
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"message": {"content": "a"}}, {"role": "assistant", "content": "a"}),
        ({"finish_reason": "eos"}, {"content": None, "role": "assistant"}),
        (
            {"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
        ),
    ],
)
def test_a_careless_answer_is_put_right(choice: Any, expected: Any) -> None:
    _, out = chat({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    answer = json.loads(out)
    [mended] = answer["choices"]
    for call in mended["message"].get("tool_calls", ()):
        assert call["id"]
        call["id"] = "1"
    assert mended["message"] == expected
    assert mended["index"] == 0
    assert mended["finish_reason"] == ("tool_calls" if "tool_calls" in expected else "stop")
    assert answer["object"] == "chat.completion"
    assert (answer["usage"], bool(answer["id"]), answer["model"]) == (USAGE, True, "m")
    assert isinstance(answer["created"], int)


@pytest.mark.compliance("O14")
def test_a_wrong_total_is_put_right_and_details_are_kept() -> None:
    told = {**USAGE, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 2}}
    _, out = chat({**said(), "usage": told})
    assert json.loads(out)["usage"] == {**told, "total_tokens": 5}


@pytest.mark.compliance("O16")
def test_alternatives_that_nobody_asked_for_are_left_out_of_whole_answers() -> None:
    token = {"token": "a", "logprob": -0.5, "bytes": [97]}
    answer = said()
    answer["choices"][0]["logprobs"] = {"content": [{**token, "top_logprobs": [token]}]}
    members = {"messages": [{"role": "user", "content": "x"}], "logprobs": True}
    for alternatives in (0, 1):
        body = body_of(Operation.CHAT, **members, top_logprobs=alternatives)
        out = json.loads(meter_whole(json.dumps(answer).encode(), body)[0])
        assert out["choices"][0]["logprobs"]["content"] == [{**token, "top_logprobs": [token][:alternatives]}]


@pytest.mark.parametrize(
    "answer", [[], {"choices": []}, {"error": {"message": "boom"}}, {**said(), "error": "x"}]
)
def test_what_is_no_answer_is_a_failure(answer: Any) -> None:
    with pytest.raises(UpstreamFailed):
        chat(answer)


def embed(data: Any, given: Any = ("a", "b"), **members: Any) -> Any:
    raw = json.dumps({"data": data, "usage": {"prompt_tokens": 2}}).encode()
    return json.loads(meter_whole(raw, body_of(Operation.EMBEDDING, input=given, **members))[0])


@pytest.mark.compliance("O70", "O71")
@pytest.mark.parametrize("asked", ["base64", "float", None])
@pytest.mark.parametrize("sent", ["base64", "float"])
def test_embeddings_come_in_the_order_and_the_form_that_was_asked_for(asked: str | None, sent: str) -> None:
    vectors = [[0.5, -1.0], [1.0, 0.25]]
    packed = [base64.b64encode(struct.pack("<2f", *vector)).decode() for vector in vectors]
    given = packed if sent == "base64" else vectors
    members = {"encoding_format": asked} if asked else {}
    answer = embed([{"index": i, "embedding": given[i]} for i in (1, 0)], dimensions=2, **members)
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert [item["embedding"] for item in answer["data"]] == (packed if asked == "base64" else vectors)
    assert {item["object"] for item in answer["data"]} == {"embedding"}
    assert (answer["object"], answer["model"]) == ("list", "m")
    assert answer["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


@pytest.mark.compliance("O71")
@pytest.mark.parametrize("given", ["text", ["text"], [1, 2, 3], [[1, 2, 3]]])
def test_each_form_of_one_input_is_one_embedding(given: Any) -> None:
    assert len(embed([{"embedding": [0.5]}], given)["data"]) == 1


@pytest.mark.compliance("O71")
@pytest.mark.parametrize(
    ("data", "asked"),
    [
        ([], "float"),
        (None, "float"),
        ([1, 2], "float"),
        ([{"embedding": [0.5]}], "float"),
        ([{"embedding": [0.5]}, {"embedding": []}], "float"),
        ([{"embedding": [0.5]}, {"embedding": ["x"]}], "base64"),
        ([{"embedding": "AAAAPw=="}, {"embedding": "no base64!"}], "float"),
        ([{"embedding": "AAAAPw=="}, {"embedding": "AAAA"}], "float"),
    ],
)
def test_missing_vectors_are_a_failure_not_a_shift(data: Any, asked: str) -> None:
    with pytest.raises(UpstreamFailed):
        embed(data, encoding_format=asked)


@pytest.mark.compliance("O71")
def test_other_dimensions_than_asked_for_are_the_clients_mistake() -> None:
    with pytest.raises(InvalidRequest) as refused:
        embed([{"embedding": [0.5, 1]}, {"embedding": [0.5, 1]}], dimensions=3)
    assert refused.value.param == "dimensions"


@pytest.mark.compliance("O71")
def test_estimated_usage_of_an_embedding_has_no_completion() -> None:
    raw = json.dumps({"data": [{"embedding": [0.5]}]}).encode()
    answer = json.loads(meter_whole(raw, body_of(Operation.EMBEDDING, input="x"))[0])
    assert set(answer["usage"]) == {"prompt_tokens", "total_tokens", "estimated"}
