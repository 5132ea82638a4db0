"""Anthropic's messages as OpenAI's chat completions: what both forms of an answer share, and the whole one.

Source: Anthropic's API reference and the types of its official Python library.
"""

from __future__ import annotations

import secrets
from typing import Any, Literal

import msgspec
from msgspec import Raw

MAX_CALLS = 128
"""Tool calls in one answer."""
TOO_MANY_CALLS = f"The backend's answer has more than {MAX_CALLS} tool calls."

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "refusal": "content_filter",
}
"""`pause_turn` is an answer that isn't complete; only tools that run at the backend, which nobody here asks for, lead to it."""


class Malformed(Exception):
    """The backend's answer hasn't the form that it must have. `str()` is one sentence, free of what it said."""


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens as the backend counts them: those read from and written to its cache aren't among `input_tokens`."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None

    def update(self, later: Usage) -> None:
        """Take over what a later event says; its counts include the earlier ones."""
        for name in self.__struct_fields__:
            value = getattr(later, name)
            if value is not None:
                setattr(self, name, value)

    def member(self) -> dict[str, Any] | None:
        """As OpenAI counts: the prompt with all of its parts. None where nothing was said: a zero would be taken for a fact."""
        if self.input_tokens is None and self.output_tokens is None:
            return None
        read, written = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        prompt = (self.input_tokens or 0) + read + written
        completion = self.output_tokens or 0
        details: dict[str, int] = {"cached_tokens": read}
        if written:
            details["cache_write_tokens"] = written
        told: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": details,
        }
        if self.output_tokens_details is not None:
            told["completion_tokens_details"] = {
                "reasoning_tokens": self.output_tokens_details.thinking_tokens
            }
        return told


class StopDetails(msgspec.Struct):
    """Why the backend refused."""

    explanation: str | None = None


class Block(msgspec.Struct):
    """One block of an answer's content; those of types that aren't translated say nothing to a client."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: Raw = Raw(b"{}")

    @property
    def arguments(self) -> str:
        """The input of a tool, as text.

        Raises:
            Malformed: it isn't UTF-8.
        """
        try:
            return bytes(self.input).decode()
        except UnicodeDecodeError:
            raise Malformed("The backend's answer is not UTF-8.") from None


class AnswerHead(msgspec.Struct):
    """What an answer begins with, and all that a whole one has."""

    id: str = ""
    model: str = ""
    content: list[Block] = []
    stop_reason: str | None = None
    stop_details: StopDetails | None = None
    usage: Usage = msgspec.field(default_factory=Usage)


class _Whole(AnswerHead, kw_only=True):
    """A whole answer. It says that it is one."""

    type: Literal["message"]


_decode = msgspec.json.Decoder(_Whole).decode


def completion(body: bytes, *, model: str, created: int) -> bytes:
    """A whole answer as a `chat.completion`. *model*: what was asked for, where the answer doesn't say. *created*: UTC epoch
    seconds.

    Raises:
        Malformed: it isn't a message.
    """
    try:
        answer = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Malformed("The backend's answer is not a message.") from None
    choice = {
        "index": 0,
        "message": _message(answer),
        "logprobs": None,
        "finish_reason": finish_reason(answer.stop_reason),
    }
    told = {
        "id": completion_id(answer.id),
        "object": "chat.completion",
        "created": created,
        "model": answer.model or model,
        "choices": [choice],
    }
    usage = answer.usage.member()
    return msgspec.json.encode(told if usage is None else {**told, "usage": usage})


def finish_reason(stop_reason: str | None) -> str:
    """OpenAI's word for it; "stop" for one that we don't know."""
    return _REASONS.get(stop_reason or "", "stop")


def completion_id(message_id: str) -> str:
    """The id of an answer, by which it can be found at the backend; ours where it gave none."""
    return "chatcmpl-" + (message_id.removeprefix("msg_") or secrets.token_hex(12))


def _message(answer: AnswerHead) -> dict[str, Any]:
    calls = [block for block in answer.content if block.type == "tool_use"]
    if len(calls) > MAX_CALLS:
        raise Malformed(TOO_MANY_CALLS)
    text = "".join(block.text for block in answer.content if block.type == "text")
    thinking = "".join(block.thinking for block in answer.content if block.type == "thinking")
    refused = answer.stop_details.explanation if answer.stop_details is not None else None
    said: dict[str, Any] = {
        "role": "assistant",
        "content": text or None if calls else text,
        "refusal": refused,
    }
    if thinking:
        said["reasoning_content"] = thinking
    if calls:
        said["tool_calls"] = [_call(block) for block in calls]
    return said


def call_id(block: Block) -> str:
    """By which the result of a call is known; ours where the backend gave none."""
    return block.id or f"call_{secrets.token_hex(12)}"


def _call(block: Block) -> dict[str, Any]:
    return {
        "id": call_id(block),
        "type": "function",
        "function": {"name": block.name, "arguments": block.arguments},
    }
