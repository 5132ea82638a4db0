"""Counting tokens in what passes by: a byte scan for a clean backend, a parse only where something has to be read."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from headrace.domain.inference import Usage, estimate_tokens
from headrace.kernel.errors import UpstreamFailed
from headrace.wire.openai import read_error
from headrace.wire.sse import DONE, data_event, data_of, events

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
    """Usage that we counted, as the member `usage` of an answer, marked as an estimate."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "estimated": True,
    }


class StreamMeter:
    """Follows one streamed answer: sees its usage, keeps the usage chunk from those who didn't ask for it, adds what a
    backend forgot (the usage chunk, `[DONE]`).
    """

    __slots__ = ("_ask_usage", "_counted", "_last", "_prompt_tokens", "_reported", "_usage_sent", "done")

    def __init__(self, *, ask_usage: bool, prompt_tokens: int) -> None:
        self._ask_usage = ask_usage
        self._prompt_tokens = prompt_tokens
        self._counted = 0
        self._reported: Usage | None = None
        self._usage_sent = False
        self._last = b""
        self.done = False

    @property
    def usage(self) -> Usage:
        """What the backend reported; until it did, the prompt's estimate and one token an event."""
        return self._reported or Usage(self._prompt_tokens, max(0, self._counted - 1), estimated=True)

    def feed(self, block: bytes) -> bytes:
        """What of a block of whole events is to be passed on.

        Raises:
            UpstreamFailed: the backend sent an error event; nothing of the block is to be passed on.
        """
        if self.done:
            return b""
        if b'"usage"' not in block and b"[DONE]" not in block and b'"error"' not in block:
            self._counted += block.count(b"\n\n")
            self._last = block
            return block
        return b"".join([self._inspect(event) for event in events(block)])

    def finish(self) -> bytes:
        """What is still to be sent when the backend ended its stream."""
        if self.done:
            return b""
        self.done = True
        if self._reported is None and _only_finishes(self._last_chunk()):
            self._counted -= 1
        return self._forgotten_usage() + DONE

    def _inspect(self, event: bytes) -> bytes:
        data = data_of(event)
        if data is None or self.done:
            return b""
        if data == b"[DONE]":
            return self.finish()
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, RecursionError):
            raise UpstreamFailed("The backend sent an event that is not a JSON object.") from None
        if chunk.get("error"):
            message, _, _ = read_error(data)
            raise UpstreamFailed(f"The backend broke off: {message or 'it gave no reason'}")
        if chunk.get("usage") is None:
            self._counted += 1
            self._last = event
            return event
        return self._with_usage(event, chunk)

    def _with_usage(self, event: bytes, chunk: dict[str, Any]) -> bytes:
        """The usage chunk proper passes to those who asked; usage anywhere else is noted, and sent in one at the end."""
        self._reported = usage_of(chunk, self.usage)
        if not chunk.get("choices"):
            if not self._ask_usage or self._usage_sent:
                return b""
            self._usage_sent = True
            return event
        self._counted += 1
        del chunk["usage"]
        self._last = data_event(_encode(chunk))
        return self._last

    def _forgotten_usage(self) -> bytes:
        if not self._ask_usage or self._usage_sent:
            return b""
        self._usage_sent = True
        last = self._last_chunk()
        shared = {name: last[name] for name in ("id", "object", "created", "model") if name in last}
        usage = self.usage
        member = usage_member(usage)
        if not usage.estimated:
            del member["estimated"]
        return data_event(_encode({**shared, "choices": [], "usage": member}))

    def _last_chunk(self) -> dict[str, Any]:
        """The last chunk that was passed on; empty where it can't be read."""
        last: dict[str, Any] = {}
        for event in events(self._last):
            with contextlib.suppress(msgspec.DecodeError, RecursionError):
                last = _decode(data_of(event) or b"{}")
        return last


def meter_whole(body: bytes, *, prompt_tokens: int) -> tuple[bytes, Usage]:
    """A whole answer and its usage; usage that the backend left out is estimated, and added to the answer.

    Raises:
        UpstreamFailed: it isn't a JSON object.
    """
    try:
        answer = _decode(body)
    except (msgspec.DecodeError, RecursionError):
        raise UpstreamFailed("The backend's answer is not a JSON object.") from None
    if answer.get("error"):
        message, _, _ = read_error(body)
        raise UpstreamFailed(f"The backend failed: {message or 'it gave no reason'}")
    estimate = Usage(prompt_tokens, estimate_tokens(_text_chars(answer)), estimated=True)
    usage = usage_of(answer, estimate)
    if usage is estimate:
        answer["usage"] = usage_member(usage)
        body = _encode(answer)
    return body, usage


def _text_chars(answer: dict[str, Any]) -> int:
    """Characters of text in the choices of a whole answer."""
    chars = 0
    for choice in answer.get("choices") or ():
        message = choice.get("message") or {}
        chars += len(choice.get("text") or "") + len(message.get("content") or "")
        chars += len(_encode(message["tool_calls"])) if message.get("tool_calls") else 0
    return chars


def _only_finishes(chunk: dict[str, Any]) -> bool:
    """Whether it carries a finish reason and no token."""
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return False
    return any(c.get("finish_reason") and not c.get("text") and not c.get("delta") for c in choices)
