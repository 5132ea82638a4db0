"""Anthropic's streamed messages as OpenAI's chunks.

message_start, then for each block content_block_start, content_block_delta …, content_block_stop, then message_delta with the
reason of the end, and message_stop; pings and errors between them. Events, blocks and deltas of unknown types are passed over,
as the API asks of its clients.

Source: Anthropic's API reference ("Streaming messages") and the types of its official Python library.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from headrace.wire.anthropic import (
    MAX_CALLS,
    TOO_MANY_CALLS,
    AnswerHead,
    Block,
    Malformed,
    StopDetails,
    Usage,
    call_id,
    completion_id,
    finish_reason,
)
from headrace.wire.anthropic_errors import ApiError
from headrace.wire.sse import DONE, data_event, data_of, events

_UNKNOWN_SHAPE = "The backend sent an event of an unknown shape."
_ENDED_EARLY = "The backend ended its answer without finishing it."
_KNOWN = frozenset(
    {
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "error",
    }
)
_KNOWN_BLOCKS = frozenset({"text", "thinking", "tool_use"})
_KNOWN_DELTAS = frozenset({"text_delta", "thinking_delta", "input_json_delta"})


class _Delta(msgspec.Struct):
    """What a block grows by; or, in `message_delta`, why the answer ended."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_details: StopDetails | None = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    message: AnswerHead | None = None
    content_block: Block | None = None
    delta: _Delta | None = None
    usage: Usage | None = None
    error: ApiError | None = None


class _Outline(msgspec.Struct):
    """As much of an event as tells whether we should have known its form."""

    type: str
    content_block: Any = None
    delta: Any = None


class _OpenCall:
    """A tool call that is being said. `said`: some of its arguments went out."""

    __slots__ = ("block", "number", "said")

    def __init__(self, number: int, block: Block) -> None:
        self.number = number
        self.block = block
        self.said = False


_decode = msgspec.json.Decoder(_Event).decode
_outline = msgspec.json.Decoder(_Outline).decode
_encode = msgspec.json.encode


class MessageStream:
    """Translates one streamed answer.

    model: what was asked for, where the answer doesn't say. created: UTC epoch seconds. include_usage: end with the usage
    chunk, before which `usage` is null.
    begun: something was generated. done: `[DONE]` was said; nothing is missing, and what comes is passed over.
    broken: why it can't go on, from then on nothing comes: the backend's own error, or that it isn't a stream of messages.
    """

    def __init__(self, *, model: str, created: int, include_usage: bool) -> None:
        self.begun = False
        self.done = False
        self.broken: ApiError | Malformed | None = None
        self._model = model
        self._created = created
        self._include_usage = include_usage
        self._usage = Usage()
        self._calls: dict[int, _OpenCall] = {}
        self._call_count = 0
        self._finished = False
        self._opened = False
        self._before = self._after = b""
        self._frame(AnswerHead())

    def feed(self, block: bytes) -> bytes:
        """The chunks of a block of whole events; what came before the stream broke is among them."""
        chunks = []
        for event in events(block):
            if self.done or self.broken is not None:
                break
            data = data_of(event)
            if data is not None:
                try:
                    chunks.append(self._event(data))
                except Malformed as error:
                    self.broken = error
        return b"".join(chunks)

    def finish(self) -> bytes:
        """The rest, once the backend ended its body: nothing as a rule. Without an end `broken` is set."""
        if self.done or self.broken is not None:
            return b""
        if self._finished:
            return self._close()
        self.broken = Malformed(_ENDED_EARLY)
        return b""

    def _event(self, data: bytes) -> bytes:
        try:
            event = _decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            if _is_known(data):
                raise Malformed(_UNKNOWN_SHAPE) from None
            return b""
        match event.type:
            case "content_block_delta" if event.delta is not None and not self._finished:
                return self._grow(event.index, event.delta)
            case "content_block_start" if event.content_block is not None and not self._finished:
                return self._begin(event.index, event.content_block)
            case "content_block_stop":
                return self._end_call(event.index)
            case "message_start" if event.message is not None and not self._opened:
                self._usage.update(event.message.usage)
                self._frame(event.message)
            case "message_delta" if event.delta is not None:
                if event.usage is not None:
                    self._usage.update(event.usage)
                return self._finish(event.delta)
            case "message_stop":
                if not self._finished:
                    raise Malformed(_ENDED_EARLY)
                return self._close()
            case "error":
                self.broken = event.error or ApiError()
        return b""

    # -- content -------------------------------------------------------------------------------------------------------

    def _begin(self, index: int, block: Block) -> bytes:
        self.begun = True
        if block.type == "text":
            return self._text(b"content", block.text)
        if block.type == "thinking":
            return self._text(b"reasoning_content", block.thinking)
        if block.type != "tool_use":
            return b""
        if self._call_count >= MAX_CALLS:
            raise Malformed(TOO_MANY_CALLS)
        before = self._end_call(index)
        call = self._calls[index] = _OpenCall(self._call_count, block)
        self._call_count += 1
        function = {"name": block.name, "arguments": ""}
        opening = {"index": call.number, "id": call_id(block), "type": "function", "function": function}
        return before + self._chunk(b'{"tool_calls":[%b]}' % _encode(opening))

    def _grow(self, index: int, delta: _Delta) -> bytes:
        if delta.type == "text_delta":
            return self._text(b"content", delta.text)
        if delta.type == "thinking_delta":
            return self._text(b"reasoning_content", delta.thinking)
        if delta.type == "input_json_delta" and delta.partial_json:
            call = self._calls.get(index)
            if call is not None:
                call.said = True
                return self._arguments(call, delta.partial_json)
        return b""

    def _end_call(self, index: int) -> bytes:
        """A call of which nothing was said has the input that it began with, or none: an object it is in any case."""
        call = self._calls.pop(index, None)
        if call is None or call.said:
            return b""
        return self._arguments(call, call.block.arguments)

    def _arguments(self, call: _OpenCall, piece: str) -> bytes:
        return self._chunk(
            b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (call.number, _encode(piece))
        )

    def _text(self, name: bytes, text: str) -> bytes:
        return self._chunk(b'{"%b":%b}' % (name, _encode(text))) if text else b""

    # -- the end -------------------------------------------------------------------------------------------------------

    def _finish(self, delta: _Delta) -> bytes:
        if delta.stop_reason is None or self._finished:
            return b""
        rest = [self._end_call(index) for index in tuple(self._calls)]
        if delta.stop_details is not None:
            rest.append(self._text(b"refusal", delta.stop_details.explanation or ""))
        self._finished = True
        return b"".join(rest) + self._chunk(b"{}", _encode(finish_reason(delta.stop_reason)))

    def _close(self) -> bytes:
        self.done = True
        usage = self._usage.member()
        if not self._include_usage or usage is None:
            return DONE
        return data_event(b'%b[],"usage":%b}' % (self._shared, _encode(usage))) + DONE

    # -- chunks --------------------------------------------------------------------------------------------------------

    def _frame(self, head: AnswerHead) -> None:
        """Write down what all chunks share."""
        shared = {
            "id": completion_id(head.id),
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": head.model or self._model,
            "choices": Raw(b"null"),
        }
        self._shared = _encode(shared).removesuffix(b"null}")
        self._before = b"data: " + self._shared + b'[{"index":0,"delta":'
        self._after = b',"finish_reason":%b}]' + (b',"usage":null}\n\n' if self._include_usage else b"}\n\n")

    def _chunk(self, delta: bytes, reason: bytes = b"null") -> bytes:
        """One chunk. The one with the role goes before the first, and not sooner: a backend that is overloaded says so right
        after `message_start`, and up to the first chunk another one can answer instead."""
        chunk = self._before + delta + self._after % reason
        if self._opened:
            return chunk
        self._opened = True
        return self._before + b'{"role":"assistant","content":""}' + self._after % b"null" + chunk


def _is_known(data: bytes) -> bool:
    """Whether *data*, which we can't read, is of a form that we know. Events of types that are still to come aren't."""
    try:
        outline = _outline(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return True
    if outline.type == "content_block_start":
        return _type_of(outline.content_block) in _KNOWN_BLOCKS
    if outline.type == "content_block_delta":
        return _type_of(outline.delta) in _KNOWN_DELTAS
    return outline.type in _KNOWN


def _type_of(value: Any) -> object:
    return value.get("type") if isinstance(value, dict) else None
