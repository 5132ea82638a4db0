"""From a streamed answer back to a whole one.

Where a backend can't stop an unstreamed request, we ask for a stream and put the answer together here, so that a client
that leaves frees the slot at once.
"""

from __future__ import annotations

from typing import Any

_JOINED = frozenset({"content", "refusal", "reasoning_content", "reasoning", "arguments", "text"})
"""Members whose pieces follow one another; of other members the first or the last piece counts."""


class Assembler:
    """Takes the chunks of one streamed answer, in order, and gives the whole answer.

    n, logprobs, tool calls, reasoning, refusal, usage and members that we don't know are kept.
    """

    __slots__ = ("_choices", "_members")

    def __init__(self) -> None:
        self._members: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        """One more chunk, as decoded from its event."""
        for choice in chunk.get("choices") or ():
            self._add_choice(choice)
        for name, value in chunk.items():
            if name != "choices" and (value is not None or name not in self._members):
                self._members[name] = value

    def whole(self) -> dict[str, Any]:
        """The answer in the form that an unstreamed request gets."""
        members = dict(self._members)
        if isinstance(kind := members.get("object"), str):
            members["object"] = kind.removesuffix(".chunk")
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            choice.setdefault("finish_reason", None)
        return {**members, "choices": choices}

    def _add_choice(self, piece: dict[str, Any]) -> None:
        index = piece.get("index") or 0
        choice = self._choices.setdefault(index, {"index": index})
        for name, value in piece.items():
            if name == "delta":
                message = choice.setdefault("message", {"role": "assistant", "content": None})
                _merge(message, value or {})
            elif name == "logprobs":
                choice["logprobs"] = _extended(choice.get("logprobs"), value)
            elif name != "index":
                _merge_member(choice, name, value)


def _merge(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            _merge_calls(message.setdefault("tool_calls", []), value or ())
        elif name == "function_call" and isinstance(value, dict):
            _merge(message.setdefault("function_call", {}), value)
        else:
            _merge_member(message, name, value)


def _merge_member(into: dict[str, Any], name: str, value: Any) -> None:
    old = into.get(name)
    if name in _JOINED and isinstance(old, str) and isinstance(value, str):
        into[name] = old + value
    elif value is not None or name not in into:
        into[name] = value


def _merge_calls(calls: list[dict[str, Any]], pieces: Any) -> None:
    """Pieces say which call they continue by `index`; where a backend leaves it out, an `id` begins a new call."""
    for piece in pieces:
        index = piece.get("index")
        if not isinstance(index, int):
            index = len(calls) if piece.get("id") else len(calls) - 1
        index = min(max(index, 0), len(calls))
        if index == len(calls):
            calls.append({})
        for name, value in piece.items():
            if name == "function" and isinstance(value, dict):
                _merge(calls[index].setdefault("function", {}), value)
            elif name != "index":
                calls[index][name] = value


def _extended(old: Any, new: Any) -> Any:
    """Log probabilities: an object of lists, of which each piece brings the next items."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old if new is None else new
    for name, value in new.items():
        if isinstance(value, list) and isinstance(old.get(name), list):
            old[name].extend(value)
        elif value is not None or name not in old:
            old[name] = value
    return old
