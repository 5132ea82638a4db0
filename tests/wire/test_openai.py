"""Request bodies: what is checked, what is written again, and that nobody reads them otherwise than we do."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.domain.inference import Api, Operation
from headrace.kernel.errors import InvalidRequest
from headrace.wire.openai import blamed, decode_request, error_envelope, read_error

MESSAGES = [{"role": "user", "content": "hi"}]
WRONG_SHAPES: list[Any] = [
    "json",
    {"type": 5},
    {"type": "json_schema"},
    {"type": "json_schema", "json_schema": {"name": "a"}},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": 5}},
    *[
        {"type": "json_schema", "json_schema": {"name": name, "schema": {}}}
        for name in ("", "a b", "é", "a\n", "x" * 65, 5)
    ],
]
CONTROL = ("model", "stream", "stream_options", "max_tokens", "n")


def encode(**members: Any) -> bytes:
    return json.dumps(members).encode()


def test_a_body_is_written_again_with_our_edits_and_all_else_untouched() -> None:
    raw = b'{"model": "m", "messages": [{"role":"user","content":"a  b"}], "x": 1.50, "stream": null, "seed": 1}'
    body = decode_request(Operation.CHAT, raw)
    assert body.render(model="other", stream=True, ask_usage=True) == (
        b'{"model":"other","messages":[{"role":"user","content":"a  b"}],"x":1.50,"seed":1,"stream":true,'
        b'"stream_options":{"include_usage":true}}'
    )
    assert body.render(model="m", stream=False, ask_usage=True).endswith(b'"seed":1,"stream":false}')


def test_what_the_body_says_is_read() -> None:
    body = decode_request(
        Operation.CHAT,
        encode(
            model="m",
            messages=MESSAGES,
            n=2,
            max_tokens=7,
            stream=True,
            stream_options={"include_usage": True},
        ),
    )
    assert (body.model, body.choices, body.max_tokens, body.stream, body.include_usage) == (
        "m",
        2,
        7,
        True,
        True,
    )
    assert body.prompt_tokens > 0


@pytest.mark.compliance("O70")
def test_an_embedding_is_never_sent_a_null_nor_stream() -> None:
    raw = encode(model="m", input=["a"], encoding_format=None, dimensions=None, user=None)
    written = decode_request(Operation.EMBEDDING, raw).render(model="m", stream=False, ask_usage=False)
    assert json.loads(written) == {"model": "m", "input": ["a"]}


@pytest.mark.compliance("O71")
@pytest.mark.parametrize("value", ["x", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_every_form_of_an_embeddings_input_is_taken(value: Any) -> None:
    assert decode_request(Operation.EMBEDDING, encode(model="m", input=value)).model == "m"


@pytest.mark.req("C41")
def test_a_default_model_stands_in_where_none_is_named() -> None:
    body = decode_request(Operation.CHAT, encode(messages=MESSAGES), "fallback")
    assert body.model == "fallback"
    assert json.loads(body.render(model="fallback", stream=False, ask_usage=False))["model"] == "fallback"


@pytest.mark.compliance("O16", "O30")
@pytest.mark.parametrize(
    ("operation", "members", "param"),
    [
        (Operation.COMPLETION, {"prompt": []}, "prompt"),
        (Operation.COMPLETION, {"prompt": 5}, "prompt"),
        (Operation.COMPLETION, {"prompt": "x", "logprobs": True}, "logprobs"),
        (Operation.EMBEDDING, {"input": ""}, "input"),
        (Operation.EMBEDDING, {"input": []}, "input"),
        (Operation.EMBEDDING, {"input": None}, "input"),
        (Operation.EMBEDDING, {"input": "x", "encoding_format": "hex"}, "encoding_format"),
        (Operation.EMBEDDING, {"input": "x", "dimensions": 0}, "dimensions"),
        (Operation.CHAT, {"messages": MESSAGES, "tools": {}}, "tools"),
        *[
            (Operation.CHAT, {"messages": MESSAGES, "response_format": shape}, "response_format")
            for shape in WRONG_SHAPES
        ],
        (Operation.CHAT, {"messages": MESSAGES, "logprobs": 1}, "logprobs"),
        (Operation.CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (Operation.CHAT, {"messages": MESSAGES, "seed": 1.5}, "seed"),
        (Operation.CHAT, {"messages": MESSAGES, "top_p": -0.1}, "top_p"),
        (Operation.CHAT, {"messages": MESSAGES, "logit_bias": []}, "logit_bias"),
    ],
)
def test_wrong_members_are_named(operation: Operation, members: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_request(operation, encode(model="m", **members))
    assert refused.value.param == param


names = st.sampled_from([*CONTROL, *(name.upper() for name in CONTROL), "Model", "\u017ftream", "x"])
values: st.SearchStrategy[Any] = st.sampled_from(
    ["m", "other", True, False, None, 1, 5, {"include_usage": True}, [], "true"]
)
spaces = st.sampled_from(["", " ", "\n\t"])


def _escape(name: str) -> str:
    return '"' + "".join(f"\\u{ord(c):04x}" for c in name) + '"'


@given(st.lists(st.tuples(names, values, spaces, st.booleans()), max_size=6), st.booleans())
def test_every_reader_finds_in_the_written_body_what_we_read(pairs: list[Any], stream: bool) -> None:
    """A backend may take the first or the last of repeated members, or ignore case: it must not matter."""
    members = [
        (_escape(n) if escaped else json.dumps(n)) + s + ":" + s + json.dumps(v) for n, v, s, escaped in pairs
    ]
    raw = "{" + ",".join([*members, '"messages":' + json.dumps(MESSAGES)]) + "}"
    try:
        body = decode_request(Operation.CHAT, raw.encode())
    except InvalidRequest:
        return
    written = body.render(model=body.model, stream=stream, ask_usage=True)
    seen: list[tuple[str, Any]] = json.loads(written, object_pairs_hook=list)
    for name in CONTROL:
        found = [value for key, value in seen if key.casefold() == name]
        assert len(found) <= 1
        if name == "model":
            assert found == [body.model]
        if name == "stream":
            assert found == [stream]
        if name == "max_tokens":
            assert (found or [None]) == [body.max_tokens]
        if name == "n":
            assert (found or [1]) == [body.choices]


@given(st.binary(max_size=80))
def test_no_body_raises_anything_else(raw: bytes) -> None:
    for operation in Operation.of(Api.OPENAI):
        with pytest.raises(InvalidRequest):
            decode_request(operation, raw)


@pytest.mark.compliance("O40")
@pytest.mark.req("D31")
def test_the_envelope_has_openais_four_members() -> None:
    assert json.loads(error_envelope("m", type_="t", param="p", code="c")) == {
        "error": {"message": "m", "type": "t", "param": "p", "code": "c"}
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"message":"m","code":"c","param":"p"}}', ("m", "c", "p")),
        (b'{"error":{"message":"m","code":400}}', ("m", None, None)),
        (b'{"error":"m"}', ("m", None, None)),
        (b'{"message":"m"}', ("m", None, None)),
        (b'{"detail":"m"}', ("m", None, None)),
        (
            b'{"error":{"message":"m","type":"exceed_context_size_error"}}',
            ("m", "context_length_exceeded", "messages"),
        ),
        (b"<html>", ("", None, None)),
        (b"[]", ("", None, None)),
        (b"[" * 10_000, ("", None, None)),
        (b'{"error":5}', ("", None, None)),
        (json.dumps({"error": {"message": "x" * 10_000}}).encode(), ("x" * 2000, None, None)),
    ],
)
def test_backends_errors_are_read_in_every_form(
    body: bytes, expected: tuple[str, str | None, str | None]
) -> None:
    assert read_error(body) == expected


@pytest.mark.compliance("O30")
@pytest.mark.parametrize(
    "shape",
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_object", "schema": {"type": "object"}},
        {"type": "json_schema", "json_schema": {"schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "A-z_9" + "x" * 59, "schema": {}, "strict": True}},
    ],
)
def test_right_response_formats_are_passed_on_as_they_came(shape: Any) -> None:
    body = decode_request(Operation.CHAT, encode(model="m", messages=MESSAGES, response_format=shape))
    assert json.loads(body.render(model="m", stream=False, ask_usage=False))["response_format"] == shape


@pytest.mark.compliance("O30")
@pytest.mark.parametrize(
    ("message", "members", "param"),
    [
        (
            "JSON schema error at #: unrecognized type x",
            {"response_format": 1, "tools": 1},
            "response_format",
        ),
        ("JSON schema error at #: unrecognized type x", {"tools": 1}, "tools"),
        ("JSON schema error at #: unrecognized type x", {}, None),
        ("Invalid tool_choice: x", {"tool_choice": 1, "tools": 1, "messages": 1}, "tool_choice"),
        ("Invalid tool_choice: x", {"messages": 1}, None),
        ("max_tokens and top_p don't go together", {"max_tokens": 1, "top_p": 1}, None),
        ("the model is out of order", {"model": 1}, None),
    ],
)
def test_the_member_that_a_refusal_is_about(message: str, members: dict[str, Any], param: str | None) -> None:
    assert blamed(message, {name: msgspec.Raw(b"1") for name in members}) == param
