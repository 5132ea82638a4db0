"""What the fake Anthropic server says, and what it refuses: requests that the real API is documented to refuse.

Source: Anthropic's API reference and the types of its official Python library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.testing.fake_engine.script import ToolCall, split

Json = dict[str, Any]

_MEMBERS = frozenset(
    {
        "model", "max_tokens", "messages", "metadata", "output_config", "stop_sequences", "stream", "system",
        "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p",
    }
)  # fmt: skip
_CHOICES: dict[str, set[str]] = {"auto": set(), "any": set(), "tool": {"name"}, "none": set()}


class Wrong(Exception):
    """The request is one that the API refuses; the message is the API's."""


@dataclass(frozen=True, slots=True)
class AnthropicScript:
    """How the server answers. `dataclasses.replace` makes a variant.

    text: what it says, a word to a delta; thinking: before that. tool_calls: after that. tokens: of text, where none is given.
    stop_reason: None: as it comes. explanation: of a refusal. input_tokens, cache_read, cache_written: what the prompt was.
    refuse: an answer of this status instead; error: (type, message), also of `error_after`; error_code: its detail.
    error_after, hang_after, cut_after: what happens after so many events of the stream; -1 of `hang_after`: before the head.
    api_key: what must come as x-api-key, where it is set. models: id → its most tokens. pages: models on one page of the list.
    bare_end: the stream ends without message_stop.
    """

    text: str | None = None
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tokens: int = 8
    stop_reason: str | None = None
    explanation: str | None = None
    input_tokens: int = 11
    cache_read: int = 0
    cache_written: int = 0
    refuse: int | None = None
    error: tuple[str, str] = ("api_error", "the fake server was told to fail")
    error_code: str | None = None
    retry_after: int | None = None
    error_after: int | None = None
    hang_after: int | None = None
    cut_after: int | None = None
    api_key: str = ""
    models: tuple[tuple[str, int], ...] = (("claude-fake", 64_000),)
    pages: int = 1000
    list_status: int = 200
    bare_end: bool = False
    piece_bytes: int = 0


def error_body(script: AnthropicScript, error: tuple[str, str] | None = None) -> Json:
    """An error as the API says it."""
    type_, message = error or script.error
    told: Json = {"type": type_, "message": message}
    if script.error_code is not None:
        told["details"] = {"error_code": script.error_code}
    return {"type": "error", "error": told, "request_id": "req_fake"}


# -- answers -----------------------------------------------------------------------------------------------------------


def blocks(script: AnthropicScript, ask: Json) -> list[Json]:
    """The content of the whole answer."""
    content: list[Json] = []
    if script.thinking:
        content.append({"type": "thinking", "thinking": script.thinking, "signature": "c2ln"})
    if text := "".join(_pieces(script, ask)):
        content.append({"type": "text", "text": text})
    for number, call in enumerate(script.tool_calls):
        content.append(
            {
                "type": "tool_use",
                "id": f"toolu_fake{number}",
                "name": call.name,
                "input": msgspec.json.decode(call.arguments),
            }
        )
    return content


def message(script: AnthropicScript, ask: Json) -> Json:
    """The whole answer."""
    reason = _stop_reason(script, ask)
    return {
        "id": "msg_fake",
        "type": "message",
        "role": "assistant",
        "model": ask["model"],
        "content": blocks(script, ask),
        "stop_reason": reason,
        "stop_sequence": None,
        "stop_details": _details(script, reason),
        "usage": {**_prompt_usage(script), "output_tokens": _output_tokens(script, ask)},
    }


def events(script: AnthropicScript, ask: Json) -> Iterator[Json]:
    """The streamed answer, pings included."""
    empty: Json = {"content": [], "stop_reason": None, "stop_details": None}
    usage = {**_prompt_usage(script), "output_tokens": 1}
    yield {"type": "message_start", "message": {**message(script, ask), **empty, "usage": usage}}
    yield {"type": "ping"}
    for index, block in enumerate(blocks(script, ask)):
        yield {"type": "content_block_start", "index": index, "content_block": _begun(block)}
        for delta in _deltas(block):
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    reason = _stop_reason(script, ask)
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": None, "stop_details": _details(script, reason)},
        "usage": {"output_tokens": _output_tokens(script, ask)},
    }
    if not script.bare_end:
        yield {"type": "message_stop"}


def encode_event(event: Json) -> bytes:
    """Its bytes, blank line included."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))


def _pieces(script: AnthropicScript, ask: Json) -> list[str]:
    if script.text is None and script.tool_calls:
        return []
    text = " ".join(f"tok{number}" for number in range(script.tokens)) if script.text is None else script.text
    return split(text)[: ask["max_tokens"]]


def _begun(block: Json) -> Json:
    empty: Json = {
        "text": {"text": ""},
        "thinking": {"thinking": "", "signature": ""},
        "tool_use": {"input": {}},
    }
    return {**block, **empty[block["type"]]}


def _deltas(block: Json) -> Iterator[Json]:
    if block["type"] == "text":
        for piece in split(block["text"]):
            yield {"type": "text_delta", "text": piece}
    elif block["type"] == "thinking":
        for piece in split(block["thinking"]):
            yield {"type": "thinking_delta", "thinking": piece}
        yield {"type": "signature_delta", "signature": block["signature"]}
    else:
        said = msgspec.json.encode(block["input"]).decode() if block["input"] else ""
        yield {"type": "input_json_delta", "partial_json": ""}
        for at in range(0, len(said), 7):
            yield {"type": "input_json_delta", "partial_json": said[at : at + 7]}


def _stop_reason(script: AnthropicScript, ask: Json) -> str:
    if script.stop_reason is not None:
        return script.stop_reason
    if script.tool_calls:
        return "tool_use"
    full = script.tokens if script.text is None else len(split(script.text))
    return "max_tokens" if full > ask["max_tokens"] else "end_turn"


def _details(script: AnthropicScript, reason: str) -> Json | None:
    if reason != "refusal":
        return None
    return {"type": "refusal", "category": None, "explanation": script.explanation}


def _prompt_usage(script: AnthropicScript) -> Json:
    return {
        "input_tokens": script.input_tokens,
        "cache_read_input_tokens": script.cache_read,
        "cache_creation_input_tokens": script.cache_written,
    }


def _output_tokens(script: AnthropicScript, ask: Json) -> int:
    return len(_pieces(script, ask)) + len(split(script.thinking)) + len(script.tool_calls)


# -- what is refused ---------------------------------------------------------------------------------------------------


def check(ask: Any) -> Json:
    """The request, where the API would take it.

    Raises:
        Wrong: it wouldn't.
    """
    if not isinstance(ask, dict):
        raise Wrong("The request body is not a JSON object")
    for name in ask:
        _require(name in _MEMBERS, f"{name}: Extra inputs are not permitted")
    for name in ("model", "max_tokens", "messages"):
        _require(name in ask, f"{name}: Field required")
    limit = ask["max_tokens"]
    _require(type(limit) is int and limit >= 1, "max_tokens: Input should be greater than or equal to 1")
    _require(0 <= ask.get("temperature", 1) <= 1, "temperature: range: 0..1")
    _check_tools(ask)
    _check_text(ask.get("system", "x"), "system")
    _require(bool(ask["messages"]), "messages: at least one message is required")
    for number, turn in enumerate(ask["messages"]):
        _check_turn(turn, f"messages.{number}")
    _check_results(ask["messages"])
    return ask


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise Wrong(complaint)


def _check_tools(ask: Json) -> None:
    for number, tool in enumerate(ask.get("tools", ())):
        _require(set(tool) <= {"name", "description", "input_schema", "strict"}, f"tools.{number}: extra")
        schema = tool.get("input_schema")
        fits = isinstance(schema, dict) and schema.get("type") == "object"
        _require(fits, f"tools.{number}.custom.input_schema.type: Field required")
    choice = ask.get("tool_choice")
    if choice is None:
        return
    _require("tools" in ask, "tool_choice may only be specified while providing tools.")
    expected = {"type"} | _CHOICES[choice["type"]]
    allowed = expected if choice["type"] == "none" else expected | {"disable_parallel_tool_use"}
    _require(expected <= set(choice) <= allowed, "tool_choice: Extra inputs are not permitted")


def _check_text(text: Any, where: str) -> None:
    _require(isinstance(text, str) and text != "", f"{where}: text content blocks must be non-empty")


def _check_turn(turn: Json, where: str) -> None:
    _require(set(turn) == {"role", "content"}, f"{where}: Extra inputs are not permitted")
    _require(turn["role"] in ("user", "assistant"), f"{where}.role: unexpected role")
    if isinstance(turn["content"], str):
        _check_text(turn["content"], where)
        return
    _require(bool(turn["content"]), f"{where}: content must be non-empty")
    results_over = False
    for block in turn["content"]:
        kind = block["type"]
        _check_block(block, kind, turn["role"], where)
        _require(kind != "tool_result" or not results_over, f"{where}: tool_result blocks must come first")
        results_over |= kind != "tool_result"


def _check_block(block: Json, kind: str, role: str, where: str) -> None:
    if kind == "text":
        _check_text(block["text"], where)
    elif kind == "image":
        _require(role == "user", f"{where}: images are only allowed in user messages")
    elif kind == "tool_use":
        fits = role == "assistant" and isinstance(block["input"], dict)
        _require(fits, f"{where}: Input should be a valid dictionary")
    else:
        _require(kind == "tool_result" and role == "user", f"{where}: unexpected block {kind}")


def _check_results(turns: list[Json]) -> None:
    """Each call is answered in the very next turn, and nothing else is."""
    asked: set[str] = set()
    for number, turn in enumerate(turns):
        content = [] if isinstance(turn["content"], str) else turn["content"]
        answered = {block["tool_use_id"] for block in content if block["type"] == "tool_result"}
        _require(
            asked <= answered, f"messages.{number}: `tool_use` ids were found without `tool_result` blocks"
        )
        _require(
            answered <= asked, f"messages.{number}: unexpected `tool_use_id` found in `tool_result` blocks"
        )
        asked = {block["id"] for block in content if block["type"] == "tool_use"}
