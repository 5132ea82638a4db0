"""A backend's streamed answer, made strict and counted: a byte scan for what is clean, a parse for the rest.

Most chunks of an answer differ from the one before in the text that they carry, and in nothing else. So once a chunk
was parsed and found right, its bytes before and after the text serve as a template: a chunk that begins and ends like it,
with a valid piece of a JSON string between, is right as well, and isn't parsed.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import msgspec
from msgspec import UNSET

from headrace.core.mending import Mender, drop_alternatives
from headrace.core.metering import usage_member, usage_of
from headrace.core.plain import PlainChunk, read_plain
from headrace.domain.inference import Operation, Usage
from headrace.kernel.errors import UpstreamFailed
from headrace.wire.openai import read_error
from headrace.wire.sse import DONE, data_event, data_of, events

MAX_TEMPLATES = 4
"""Kept for each answer: text and reasoning, of a choice or two."""

_STRING_PIECE = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.encode


class _Template:
    """The bytes around the text in a chunk that was found right; `sent` is what goes out around it."""

    __slots__ = ("end", "sent_end", "sent_start", "start")

    def __init__(self, start: bytes, end: bytes, sent_start: bytes, sent_end: bytes) -> None:
        self.start = start
        self.end = end
        self.sent_start = sent_start
        self.sent_end = sent_end


class ChunkStream:
    """Follows one streamed answer: passes on strict chunks, sees its usage, adds what the backend forgot.

    ask_usage: the client wants the usage chunk; to others it isn't shown. prompt_tokens: estimated, for a backend that
    doesn't report usage. choices: how many were asked for. bare_logprobs: set it where alternatives weren't.
    """

    __slots__ = (
        "_ask_usage",
        "_choices",
        "_counted",
        "_mender",
        "_prompt_tokens",
        "_reported",
        "_templates",
        "_usage_event",
        "bare_logprobs",
        "done",
    )

    def __init__(
        self,
        operation: Operation,
        model: str,
        *,
        created: int,
        ask_usage: bool,
        prompt_tokens: int,
        choices: int = 1,
    ) -> None:
        self._mender = Mender(operation, model, created)
        self._ask_usage = ask_usage
        self._choices = choices
        self._prompt_tokens = prompt_tokens
        self._counted = 0
        self._reported: Usage | None = None
        self._usage_event = b""
        self._templates: list[_Template] = []
        self.bare_logprobs = False
        self.done = False

    @property
    def usage(self) -> Usage:
        """What the backend reported; until it did, the prompt's estimate and one token for each chunk that carried any."""
        return self._reported or Usage(self._prompt_tokens, self._counted, estimated=True)

    def feed(self, block: bytes) -> bytes:
        """What of a block of whole events is to be passed on.

        Raises:
            UpstreamFailed: the backend sent an error, or what isn't a chunk; nothing of the block is to be passed on.
        """
        if self.done:
            return b""
        if block.find(b"\n\n") == len(block) - 2:
            return self._event(block)
        return b"".join([self._event(event) for event in events(block)])

    def finish(self) -> bytes:
        """What is still to be sent when the backend ended its stream.

        Raises:
            UpstreamFailed: it ended in the middle.
        """
        if self.done:
            return b""
        if self._mender.unfinished():
            raise UpstreamFailed("The backend ended its answer without finishing it.")
        return self._close()

    def _event(self, event: bytes) -> bytes:
        for template in self._templates:
            if event.startswith(template.start) and event.endswith(template.end):
                start, end = len(template.start), len(event) - len(template.end)
                if start <= end and _STRING_PIECE.fullmatch(event, start, end):
                    self._counted += 1
                    if template.sent_start is template.start:
                        return event
                    return template.sent_start + event[start:end] + template.sent_end
        return self._inspect(event)

    def _inspect(self, event: bytes) -> bytes:
        data = data_of(event)
        if data is None or self.done:
            return b""
        if data == b"[DONE]":
            return self._close()
        plain = read_plain(data)
        if plain is not None and (sent := self._pass_plain(event, data, plain)):
            return sent
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise UpstreamFailed("The backend sent an event that is not a JSON object.") from None
        if chunk.get("error"):
            message, _, _ = read_error(data)
            raise UpstreamFailed(f"The backend broke off: {message or 'it gave no reason'}")
        return self._chunk(event, chunk)

    def _pass_plain(self, event: bytes, data: bytes, chunk: PlainChunk) -> bytes:
        """A chunk of the plainest form, as it came where it is right; empty where it has to be looked at."""
        sent = event
        if self._ask_usage:
            if chunk.usage is UNSET:
                sent = event[:-3] + b',"usage":null}\n\n'
        elif chunk.usage is None:
            return b""
        one_line = event.startswith(b"data: ") and len(event) == len(data) + 8 and data.endswith(b"}")
        if not one_line or not self._mender.passes(chunk):
            return b""
        [choice] = chunk.choices
        if choice.delta.content:
            self._counted += 1
        if choice.finish_reason is not None:
            self._templates.clear()
        elif choice.delta.role is UNSET and isinstance(choice.delta.content, str):
            self._keep_template(event, sent, "content")
        return sent

    def _chunk(self, event: bytes, chunk: dict[str, Any]) -> bytes:
        changed = self._take_usage(event, chunk)
        changed |= self._mender.mend(chunk)
        if self.bare_logprobs:
            changed |= drop_alternatives(chunk)
        if not chunk["choices"]:
            return b""
        if any(choice["finish_reason"] for choice in chunk["choices"]):
            self._templates.clear()
        openers = b"".join([self._own(opener) for opener in self._mender.openers(chunk)])
        if any(_carries(choice) for choice in chunk["choices"]):
            self._counted += 1
        one_line = event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2
        sent = event if one_line and not changed else data_event(_encode(chunk))
        self._learn(event, chunk, sent)
        return openers + sent

    def _take_usage(self, event: bytes, chunk: dict[str, Any]) -> bool:
        """Note the usage, wherever it stands; it goes out in one chunk at the end, to those who asked. For them it is null
        in all chunks before."""
        told = chunk.get("usage")
        if told is not None:
            self._note_usage(event, chunk)
        if ("usage" in chunk) is self._ask_usage and told is None:
            return False
        if self._ask_usage:
            chunk["usage"] = None
        else:
            del chunk["usage"]
        return True

    def _note_usage(self, event: bytes, chunk: dict[str, Any]) -> None:
        """The last report counts; but llama.cpp reports on each of n choices in a usage chunk of its own."""
        before = self._reported
        self._reported = usage_of(chunk, self.usage)
        if chunk.get("choices") != []:
            return
        if self._usage_event and before is not None and self._choices > 1 and not self._reported.estimated:
            completion = before.completion_tokens + self._reported.completion_tokens
            self._reported = Usage(self._reported.prompt_tokens, completion)
        self._usage_event = event

    def _learn(self, event: bytes, chunk: dict[str, Any], sent: bytes) -> None:
        """Make a template of a chunk that carries one piece of text and nothing else that may change."""
        [choice, *others] = chunk["choices"]
        delta = choice.get("delta", choice)
        name = "text" if "text" in choice else next(iter(delta), "")
        if (
            others
            or choice["finish_reason"]
            or (delta is not choice and len(delta) != 1)
            or choice.get("logprobs")
        ):
            return
        if not isinstance(delta.get(name), str):
            return
        self._keep_template(event, sent, name)

    def _keep_template(self, event: bytes, sent: bytes, name: str) -> None:
        around = _around(event, name)
        sent_around = around if sent is event else _around(sent, name)
        if around is None or sent_around is None:
            return
        self._templates.insert(0, _Template(*around, *sent_around))
        del self._templates[MAX_TEMPLATES:]

    def _close(self) -> bytes:
        """Everything that has to stand at the end: finish reasons, the usage chunk, `[DONE]`."""
        closing = [self._own(chunk) for chunk in self._mender.closers()]
        self.done = True
        self._templates.clear()  # they would let through what comes behind the end
        if self._ask_usage:
            closing.append(self._usage_chunk())
        return b"".join(closing) + DONE

    def _own(self, chunk: dict[str, Any]) -> bytes:
        """A chunk that the backend didn't send, as an event."""
        return data_event(_encode({**chunk, "usage": None} if self._ask_usage else chunk))

    def _usage_chunk(self) -> bytes:
        chunk: dict[str, Any] = {}
        if self._usage_event:
            with contextlib.suppress(msgspec.DecodeError):
                chunk = _decode(data_of(self._usage_event) or b"{}")
        counted = usage_member(self.usage)
        told = chunk.get("usage")
        chunk["usage"] = {**(told if isinstance(told, dict) else {}), **counted}
        if chunk["usage"] == told and all(chunk.get(name) == v for name, v in self._mender.shared.items()):
            return self._usage_event
        return data_event(_encode({**self._mender.shared, "choices": [], **chunk, **self._mender.shared}))


def _carries(choice: dict[str, Any]) -> bool:
    """Whether it brings something that was generated."""
    if choice.get("text"):
        return True
    return any(value for name, value in choice.get("delta", {}).items() if name != "role")


def _around(event: bytes, name: str) -> tuple[bytes, bytes] | None:
    """The bytes before and after the text of the member *name*, where it occurs once; None where that isn't plain."""
    for opening in (b'"%b":"' % name.encode(), b'"%b": "' % name.encode()):
        if event.count(opening) == 1 and event.count(opening[:-1]) == 1:
            start = event.index(opening) + len(opening)
            piece = _STRING_PIECE.match(event, start)
            end = piece.end() if piece else start
            if event[end : end + 1] == b'"' and event.startswith(b"data: "):
                return event[:start], event[end:]
    return None
