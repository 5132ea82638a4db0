"""What a strict OpenAI client takes for granted in a stream, checked chunk by chunk."""

from __future__ import annotations

import json
from typing import Any

REASONS = {"stop", "length", "tool_calls", "content_filter", "function_call"}


def parse_stream(body: bytes) -> list[Any]:
    """The events of a strict stream, checked for their framing; the last is "[DONE]"."""
    assert body.endswith(b"data: [DONE]\n\n")
    events = body.removesuffix(b"\n\n").split(b"\n\n")
    for event in events:
        assert event.startswith(b"data: "), event
        assert b"\n" not in event, event
        assert b"\r" not in event, event
    datas = [event.removeprefix(b"data: ") for event in events]
    assert datas.count(b"[DONE]") == 1
    return [json.loads(data) for data in datas[:-1]] + ["[DONE]"]


def check_chat_stream(body: bytes, *, usage: bool, choices: int = 1) -> dict[int, dict[str, Any]]:
    """Check a chat stream to the letter; what each choice said, put together as a naive client does it."""
    chunks = parse_stream(body)[:-1]
    assert chunks
    for name in ("id", "created", "model", "object"):
        assert len({chunk[name] for chunk in chunks}) == 1, name
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert isinstance(chunks[0]["created"], int)
    _check_usage(chunks, wanted=usage)
    said: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            _check_choice(choice, said)
    assert sorted(said) == list(range(choices))
    for message in said.values():
        assert message["finish_reason"] in REASONS
        for call in message["calls"]:
            json.loads(call["arguments"])
    return said


def _check_usage(chunks: list[dict[str, Any]], *, wanted: bool) -> None:
    for chunk in chunks[:-1] if wanted else chunks:
        assert chunk["choices"], "no chunk without choices but the usage chunk"
        assert chunk.get("usage") is None
        assert ("usage" in chunk) is wanted, (
            "null before the usage chunk for those who asked for it, else not there"
        )
    if wanted:
        usage = chunks[-1]["usage"]
        assert chunks[-1]["choices"] == []
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def _check_choice(choice: dict[str, Any], said: dict[int, dict[str, Any]]) -> None:
    index, delta = choice["index"], choice["delta"]
    assert index in said or index == len(said), "choices begin in their order"
    new = index not in said
    message = said.setdefault(
        index, {"role": "", "content": "", "reasoning": "", "calls": [], "finish_reason": None}
    )
    assert message["finish_reason"] is None, "nothing comes after the finish reason"
    assert ("role" in delta) is new, "the role comes once, first"
    message["role"] += delta.get("role", "")
    message["content"] += delta.get("content") or ""
    message["reasoning"] += delta.get("reasoning_content") or ""
    for piece in delta.get("tool_calls", ()):
        _check_piece(piece, message["calls"])
    message["finish_reason"] = choice["finish_reason"]


def _check_piece(piece: dict[str, Any], calls: list[dict[str, Any]]) -> None:
    index, function = piece["index"], piece["function"]
    assert isinstance(function["arguments"], str)
    if index == len(calls):
        assert piece["type"] == "function"
        assert piece["id"]
        calls.append({"id": piece["id"], "name": function["name"], "arguments": function["arguments"]})
    else:
        assert set(piece) == {"index", "function"}
        assert set(function) == {"arguments"}
        calls[index]["arguments"] += function["arguments"]
