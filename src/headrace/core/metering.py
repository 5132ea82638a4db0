"""Tokens: what a backend reports, and what is counted where it reports nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.domain.inference import Usage, estimate_tokens
from headrace.kernel.errors import InvalidRequest, UpstreamFailed
from headrace.wire.openai import InferenceBody, read_error

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.encode


def usage_of(answer: dict[str, Any], fallback: Usage) -> Usage:
    """The usage that a backend's answer or chunk reports, or *fallback* where it reports none that adds up."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return fallback
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if type(prompt) is not int or type(completion) is not int or prompt < 0 or completion < 0:
        return fallback
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def usage_member(usage: Usage) -> dict[str, object]:
    """Usage as the member `usage` of an answer; what we counted ourselves is marked as an estimate."""
    member: dict[str, object] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    return {**member, "estimated": True} if usage.estimated else member


def meter_whole(raw: bytes, body: InferenceBody) -> tuple[bytes, Usage]:
    """A whole answer to *body* and its usage; usage that the backend left out is estimated, and added to the answer.

    Raises:
        UpstreamFailed: it isn't a JSON object.
        InvalidRequest: an embedding hasn't the dimensions that were asked for: the model has no choice of them.
    """
    try:
        answer = _decode(raw)
    except (msgspec.DecodeError, RecursionError):
        raise UpstreamFailed("The backend's answer is not a JSON object.") from None
    if answer.get("error"):
        message, _, _ = read_error(raw)
        raise UpstreamFailed(f"The backend failed: {message or 'it gave no reason'}")
    if body.dimensions is not None:
        _check_dimensions(answer, body.dimensions)
    usage = usage_of(answer, _UNKNOWN)
    if usage is _UNKNOWN:
        usage = Usage(body.prompt_tokens, estimate_tokens(_text_chars(answer)), estimated=True)
        answer["usage"] = usage_member(usage)
        raw = _encode(answer)
    return raw, usage


_UNKNOWN = Usage(estimated=True)


def _check_dimensions(answer: dict[str, Any], wanted: int) -> None:
    for item in answer.get("data") or ():
        vector = item.get("embedding") if isinstance(item, dict) else None
        size = (
            len(vector) * 3 // 16 if isinstance(vector, str) else len(vector or ())
        )  # base64 of 4-byte floats
        if size != wanted:
            raise InvalidRequest(
                f"This model's embeddings have {size} dimensions, and no others.",
                param="dimensions",
                code="unsupported",
            )


def _text_chars(answer: dict[str, Any]) -> int:
    """Characters of text in the choices of a whole answer."""
    chars = 0
    for choice in answer.get("choices") or ():
        message = choice.get("message") or {}
        chars += len(choice.get("text") or "") + len(message.get("content") or "")
        chars += len(_encode(message["tool_calls"])) if message.get("tool_calls") else 0
    return chars
