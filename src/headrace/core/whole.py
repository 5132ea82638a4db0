"""Whole answers, made strict and counted: what is right passes as it came, the rest is put right and written again.

What clients take for granted is checked while the usage is read: a typed decode, which costs less than reading everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from headrace.core.embedding import mend_embeddings
from headrace.core.mending import Mender, drop_alternatives, mend_whole
from headrace.core.metering import usage_member, usage_of
from headrace.domain.inference import Operation, Usage, estimate_tokens
from headrace.kernel.errors import UpstreamFailed
from headrace.wire.openai import InferenceBody, read_error

_Reason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Function(msgspec.Struct):
    name: str
    arguments: str


class _Call(msgspec.Struct):
    id: str
    type: Literal["function"]
    function: _Function


class _Message(msgspec.Struct):
    role: Literal["assistant"]
    content: str | None
    tool_calls: list[_Call] | None = None


class _ChatChoice(msgspec.Struct):
    index: int
    finish_reason: _Reason
    message: _Message


class _TextChoice(msgspec.Struct):
    index: int
    finish_reason: _Reason
    text: str


class _Chat(msgspec.Struct):
    """What a client takes for granted in a chat's answer; members that aren't named here don't matter."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[_ChatChoice]
    usage: _Usage
    error: Any = None


class _Text(msgspec.Struct):
    """The same of a text completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[_TextChoice]
    usage: _Usage
    error: Any = None


_STRICT: dict[Operation, Callable[[bytes], _Chat | _Text]] = {
    Operation.CHAT: msgspec.json.Decoder(_Chat).decode,
    Operation.COMPLETION: msgspec.json.Decoder(_Text).decode,
}
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.encode
_UNKNOWN = Usage(estimated=True)


def meter_whole(raw: bytes, body: InferenceBody) -> tuple[bytes, Usage]:
    """A whole answer to *body*, made strict, and its usage; usage that the backend left out is estimated, and added.

    Raises:
        UpstreamFailed: it isn't a JSON object, it is an error, or it lacks what can't be made up.
        InvalidRequest: an embedding hasn't the dimensions that were asked for: the model has no choice of them.
    """
    usage = _strict_usage(raw, body.operation)
    if usage is not None and not body.bare_logprobs:
        return raw, usage
    try:
        answer = _decode(raw)
    except (msgspec.DecodeError, RecursionError):
        raise UpstreamFailed("The backend's answer is not a JSON object.") from None
    if answer.get("error"):
        message, _, _ = read_error(raw)
        raise UpstreamFailed(f"The backend failed: {message or 'it gave no reason'}")
    if body.operation is Operation.EMBEDDING:
        changed = mend_embeddings(answer, body)
    else:
        changed = mend_whole(answer, Mender(body.operation, body.model, int(time.time())))
        if body.bare_logprobs:
            drop_alternatives(answer)
    usage = usage_of(answer, _UNKNOWN)
    if usage is _UNKNOWN:
        usage = Usage(body.prompt_tokens, estimate_tokens(_text_chars(answer)), estimated=True)
    changed |= _tell_usage(answer, usage, body.operation)
    return (_encode(answer) if changed else raw), usage


def _strict_usage(raw: bytes, operation: Operation) -> Usage | None:
    """The usage of an answer that has all that clients take for granted; None where it has to be looked at."""
    decode = _STRICT.get(operation)
    if decode is None:
        return None
    try:
        answer = decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    told = answer.usage
    usage = Usage(told.prompt_tokens, told.completion_tokens)
    in_order = [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    counted = min(told.prompt_tokens, told.completion_tokens) >= 0 and told.total_tokens == usage.total_tokens
    return usage if in_order and counted and answer.choices and not answer.error else None


def _tell_usage(answer: dict[str, Any], usage: Usage, operation: Operation) -> bool:
    """Make the member `usage` say *usage*; whether it didn't. An embedding's has no completion."""
    told = answer.get("usage")
    member = usage_member(usage)
    if not operation.streams:
        del member["completion_tokens"]
    if isinstance(told, dict) and not usage.estimated:
        member = {**told, **member}
    answer["usage"] = member
    return member != told


def _text_chars(answer: dict[str, Any]) -> int:
    """Characters of text in the choices of a whole answer."""
    chars = 0
    for choice in answer.get("choices") or ():
        message = choice.get("message") or {}
        chars += len(choice.get("text") or "") + len(message.get("content") or "")
        chars += len(_encode(message["tool_calls"])) if message.get("tool_calls") else 0
    return chars
