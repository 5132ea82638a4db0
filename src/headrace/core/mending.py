"""Strict chunks from careless backends.

OpenAI's own client concatenates what it is sent: a repeated `role` becomes "assistantassistant", a repeated tool id
"call_1call_1"; a missing index raises. So each chunk that we had to parse is brought to the letter here. What is mended: members
that all chunks share, `role` in later deltas, missing `index` and `delta`, the form of tool calls, `finish_reason`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import UNSET

from headrace.core.plain import PlainChunk
from headrace.domain.inference import Operation
from headrace.kernel.errors import UpstreamFailed
from headrace.wire.openai import MAX_CHOICES

Chunk = dict[str, Any]

_SHARED = ("id", "object", "created", "model")
_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "function_call",
    "max_tokens": "length",
}
MAX_CALLS = 128


@dataclass(slots=True)
class _Call:
    """A tool call of one choice: the backend's index and id for it."""

    index: object
    id: str


@dataclass(slots=True)
class _Choice:
    """How far one choice is."""

    begun: bool = False
    finished: bool = False
    calls: list[_Call] = field(default_factory=list)


class Mender:
    """Mends the chunks of one streamed answer, in their order.

    `shared`: the members that all of its chunks have. `created`: UTC epoch seconds, for a backend that doesn't say.
    """

    def __init__(self, operation: Operation, model: str, created: int) -> None:
        self._chat = operation is Operation.CHAT
        self.shared: Chunk = {
            "id": "",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": created,
            "model": model,
        }
        self._choices: dict[int, _Choice] = {}

    @property
    def begun(self) -> bool:
        """Whether any choice was begun."""
        return bool(self._choices)

    def mend(self, chunk: Chunk) -> bool:
        """Bring *chunk* to the letter, in place; whether anything was changed. `choices` may be empty afterwards."""
        changed = self._share(chunk)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            choices, changed = [], True
        kept = []
        for position, choice in enumerate(choices):
            if not isinstance(choice, dict):
                changed = True
                continue
            changed |= self._index(choice, position)
            state = self._choices.setdefault(choice["index"], _Choice())
            if state.finished:
                changed = True
                continue
            changed |= self._delta(choice, state) if self._chat else self._text(choice)
            changed |= _finish_reason(choice, state)
            kept.append(choice)
        if len(kept) > 1 and any(a["index"] > b["index"] for a, b in pairwise(kept)):
            kept.sort(key=itemgetter("index"))
            changed = True
        chunk["choices"] = kept
        return changed

    def passes(self, chunk: PlainChunk) -> bool:
        """Whether *chunk* is right as it stands; it is noted then. One that isn't has to be mended."""
        shared, [choice] = self.shared, chunk.choices
        if not shared["id"]:
            if not (self._chat and chunk.id and chunk.model and chunk.created):
                return False
            shared.update(id=chunk.id, created=chunk.created, model=chunk.model)
        elif chunk.id != shared["id"] or chunk.created != shared["created"] or chunk.model != shared["model"]:
            return False
        state = self._choices.get(0)
        if choice.index != 0 or not self._chat:
            return False
        if state is None:
            if choice.delta.role is UNSET:
                return False
            state = self._choices[0] = _Choice(begun=True)
        elif state.finished or state.calls or choice.delta.role is not UNSET:
            return False
        state.finished = choice.finish_reason is not None
        return True

    def openers(self, chunk: Chunk) -> list[Chunk]:
        """Chunks to go before this one: OpenAI's client takes for granted that choices begin in the order of their numbers,
        and mistakes one for another where they don't.
        """
        if not self._chat or not chunk["choices"]:
            return []
        missing = [index for index in range(chunk["choices"][-1]["index"]) if index not in self._choices]
        self._choices |= {index: _Choice(begun=True) for index in missing}
        return [self._chunk_for(index, {"role": "assistant", "content": ""}, None) for index in missing]

    def closers(self) -> list[Chunk]:
        """Chunks for the choices that the backend never said to be finished."""
        chunks = []
        for index, state in sorted(self._choices.items()):
            if not state.finished:
                state.finished = True
                chunks.append(self._chunk_for(index, {}, "tool_calls" if state.calls else "stop"))
        return chunks

    def unfinished(self) -> bool:
        """Whether a choice was begun and not finished, or none begun."""
        return not self._choices or not all(state.finished for state in self._choices.values())

    def _chunk_for(self, index: int, delta: Chunk, reason: str | None) -> Chunk:
        content = {"delta": delta} if self._chat else {"text": ""}
        return {**self.shared, "choices": [{"index": index, **content, "finish_reason": reason}]}

    def _share(self, chunk: Chunk) -> bool:
        """The first chunk decides what all have; what it lacks is ours."""
        if not self.shared["id"]:
            for name in _SHARED:
                value = chunk.get(name)
                if isinstance(value, type(self.shared[name])) and value and name != "object":
                    self.shared[name] = value
            if not self.shared["id"]:
                self.shared["id"] = ("chatcmpl-" if self._chat else "cmpl-") + secrets.token_hex(12)
        changed = False
        for name, value in self.shared.items():
            if chunk.get(name) != value:
                chunk[name] = value
                changed = True
        return changed

    def _index(self, choice: Chunk, position: int) -> bool:
        index = choice.get("index")
        if type(index) is int and 0 <= index < MAX_CHOICES:
            return False
        choice["index"] = min(position, MAX_CHOICES - 1)
        return True

    def _delta(self, choice: Chunk, state: _Choice) -> bool:
        changed = False
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            message = choice.pop("message", None)  # some send the whole message in a chunk
            delta = choice["delta"] = message if isinstance(message, dict) else {}
            changed = True
        if not state.begun:
            state.begun = True
            if delta.get("role") != "assistant":
                choice["delta"] = delta = {
                    "role": "assistant",
                    **{k: v for k, v in delta.items() if k != "role"},
                }
                changed = True
        elif "role" in delta:
            del delta["role"]
            changed = True
        if "tool_calls" in delta:
            changed |= _tool_calls(delta, state)
        return changed

    def _text(self, choice: Chunk) -> bool:
        if isinstance(choice.get("text"), str):
            return False
        choice["text"] = ""
        return True


def drop_alternatives(chunk: Chunk) -> bool:
    """Take the alternatives out of the log probabilities, which nobody asked for; whether there were any."""
    changed = False
    for choice in chunk["choices"]:
        logprobs = choice.get("logprobs")
        for token in (logprobs.get("content") or ()) if isinstance(logprobs, dict) else ():
            if isinstance(token, dict) and token.get("top_logprobs") != []:
                token["top_logprobs"] = []
                changed = True
    return changed


def mend_whole(answer: Chunk, mender: Mender) -> bool:
    """Bring a whole answer to the letter as if it had come as one chunk, in place. Always changed.

    Raises:
        UpstreamFailed: it has no choices.
    """
    answer.pop("object", None)
    mender.mend(answer)
    if not answer["choices"]:
        raise UpstreamFailed("The backend's answer has no choices.")
    answer["object"] = mender.shared["object"].removesuffix(".chunk")
    for number, choice in enumerate(answer["choices"]):
        choice["index"] = number
        delta = choice.pop("delta", None)
        calls = (delta or {}).get("tool_calls", ())
        for call in calls:
            del call["index"]
        choice["finish_reason"] = choice["finish_reason"] or ("tool_calls" if calls else "stop")
        if delta is not None:
            choice["message"] = {"content": None, **delta}
    return True


def _finish_reason(choice: Chunk, state: _Choice) -> bool:
    reason = choice.get("finish_reason")
    mended: str | None = None
    if reason is not None and reason != "":
        mended = _REASONS.get(str(reason), "stop")
        if mended == "stop" and state.calls:
            mended = "tool_calls"
        state.finished = True
    if "finish_reason" in choice and mended == reason:
        return False
    choice["finish_reason"] = mended
    return True


def _tool_calls(delta: Chunk, state: _Choice) -> bool:
    """Dense indexes; id, type and name once for each call, arguments always a string."""
    pieces = delta["tool_calls"]
    if not isinstance(pieces, list) or not pieces:
        del delta["tool_calls"]
        return True
    mended = [_piece(piece, state) for piece in pieces if isinstance(piece, dict)]
    changed = mended != pieces
    delta["tool_calls"] = mended
    return changed


def _piece(piece: Chunk, state: _Choice) -> Chunk:
    function = piece.get("function")
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments", "")
    if not isinstance(arguments, str):
        arguments = "" if arguments is None else msgspec.json.encode(arguments).decode()
    number = _which(piece, bool(function.get("name")), state)
    if number is not None:
        return {"index": number, "function": {"arguments": arguments}}
    call = _Call(piece.get("index"), str(piece.get("id") or f"call_{secrets.token_hex(12)}"))
    state.calls.append(call)
    return {
        **piece,
        "index": len(state.calls) - 1,
        "id": call.id,
        "type": "function",
        "function": {**function, "name": function.get("name") or "", "arguments": arguments},
    }


def _which(piece: Chunk, named: bool, state: _Choice) -> int | None:
    """The call that *piece* continues; None: it begins one.

    Backends number all calls 0, leave the index out, or repeat the id in each piece: a new call is one with a new index, or
    one that names a function under another id.
    """
    index, ident = piece.get("index"), piece.get("id")
    for number in range(len(state.calls) - 1, -1, -1):
        call = state.calls[number]
        same_index = index is None or call.index == index
        if same_index and (not ident or ident == call.id or not named):
            return number if not (index is None and named and not ident) else None
    return None if len(state.calls) < MAX_CALLS else len(state.calls) - 1
