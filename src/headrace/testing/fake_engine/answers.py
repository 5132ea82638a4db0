"""The bodies that the fake engine sends, shaped as llama.cpp's server was seen to shape them. Pure, no sockets."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.testing.fake_engine.script import Script, split

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


class BadRequest(Exception):
    """The request can't be answered; the message goes into a 400."""


@dataclass(frozen=True, slots=True)
class Ask:
    """An inference request, read. `most`: tokens that it allows, None without a bound."""

    chat: bool
    id: str
    created: int
    model: str
    stream: bool
    include_usage: bool
    n: int
    most: int | None
    logprobs: bool
    prompt_tokens: int
    script: Script

    def pieces(self) -> list[str]:
        """The tokens of the text, as far as the request allows."""
        return self.script.pieces()[: self.most]

    @property
    def finish_reason(self) -> str:
        """Why each choice ends."""
        if len(self.pieces()) < len(self.script.pieces()):
            return "length"
        return "tool_calls" if self.script.tool_calls and self.chat else "stop"

    def usage(self) -> Json:
        """The usage object."""
        said = len(self.pieces()) + len(split(self.script.reasoning)) + len(self.script.tool_calls)
        return {
            "completion_tokens": said * self.n,
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": said * self.n + self.prompt_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        }


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; `tokens`: how many it brings."""

    data: Json
    tokens: int = 0

    def encode(self) -> bytes:
        """Its bytes, blank line included."""
        return b"data: " + msgspec.json.encode(self.data) + b"\n\n"


def read_ask(path: str, body: Json, script: Script, *, number: int, created: int) -> Ask:
    """Make an `Ask` of a chat or completion body. *number* tells apart the answers of one engine.

    Raises:
        BadRequest: the body lacks what the path needs, or has what the script refuses.
    """
    chat = path.endswith("/chat/completions")
    needed = "messages" if chat else "prompt"
    if needed not in body:
        raise BadRequest(f"'{needed}' is required")
    if chat and not isinstance(body["messages"], list):
        raise BadRequest("Expected 'messages' to be an array")
    if "stream_options" in body and not script.stream_options:
        raise BadRequest("unknown field 'stream_options'")
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    return Ask(
        chat=chat,
        id=f"{'chatcmpl' if chat or script.dialect == 'llama.cpp' else 'cmpl'}-fake{number}",
        created=created,
        model=str(body.get("model") or script.models[0]),
        stream=bool(body.get("stream")),
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        n=int(body.get("n") or 1),
        most=int(most) if most is not None else None,
        logprobs=bool(body.get("logprobs")),
        prompt_tokens=count_words(body[needed]),
        script=script,
    )


def events(ask: Ask) -> Iterator[Event]:
    """The streamed answer: role, content, finish reason, and usage where it is asked for; `DONE` not included."""
    choices = range(ask.n)
    if ask.chat:
        for index in choices:
            content = None if ask.script.dialect == "llama.cpp" else ""
            yield Event(_chunk(ask, index, {"delta": {"role": "assistant", "content": content}}))
        for delta in _chat_deltas(ask):
            for index in choices:
                yield Event(_chunk(ask, index, delta), tokens=1)
    else:
        for piece in ask.pieces():
            for index in choices:
                yield Event(_chunk(ask, index, {"text": piece}), tokens=1)
    yield from _last_events(ask)


def _last_events(ask: Ask) -> Iterator[Event]:
    """Finish reasons and usage. llama.cpp puts the usage of a text completion into its last chunk, asked for or not;
    and its own `timings` into whatever comes last.
    """
    own_form = ask.script.dialect == "llama.cpp"
    in_last_chunk = own_form and not ask.chat
    extra_chunk = ask.include_usage and ask.script.usage and not in_last_chunk
    end: Json = {"delta": {}} if ask.chat else {"text": ""}
    for index in range(ask.n):
        chunk = _chunk(ask, index, end | {"finish_reason": ask.finish_reason})
        if index == ask.n - 1 and in_last_chunk and ask.script.usage:
            chunk["usage"] = ask.usage()
        if index == ask.n - 1 and own_form and not extra_chunk:
            chunk["timings"] = _timings(ask)
        yield Event(chunk)
    if extra_chunk:
        last = _envelope(ask, "chat.completion.chunk") | {"choices": [], "usage": ask.usage()}
        yield Event(last | {"timings": _timings(ask)} if own_form else last)


def whole(ask: Ask) -> Json:
    """The answer in one piece."""
    text = "".join(ask.pieces())
    content: Json = {"message": _message(ask, text)} if ask.chat else {"text": text, "logprobs": None}
    if ask.logprobs and ask.chat:
        content["logprobs"] = {"content": [_logprob(piece) for piece in ask.pieces()]}
    choices = [{"index": index, "finish_reason": ask.finish_reason} | content for index in range(ask.n)]
    answer = _envelope(ask, "chat.completion") | {"choices": choices}
    if ask.script.usage:
        answer["usage"] = ask.usage()
    if ask.script.dialect == "llama.cpp":
        answer["timings"] = _timings(ask)
    return answer


def embeddings(body: Json, script: Script) -> Json:
    """Vectors that depend on the input's length and place only, exact in 32 bits.

    Raises:
        BadRequest: there is no input.
    """
    if not body.get("input"):
        raise BadRequest("'input' is required")
    given = body["input"]
    one = isinstance(given, str) or (isinstance(given, list) and isinstance(given[0], int))
    inputs = [given] if one else given
    size = int(body.get("dimensions") or script.dimensions)
    data = []
    for index, item in enumerate(inputs):
        vector = [((len(item) + index + place) % 17 - 8) / 8 for place in range(size)]
        packed = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        embedding = packed if body.get("encoding_format") == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    tokens = sum(count_words(item) for item in inputs)
    answer: Json = {"object": "list", "model": str(body.get("model") or script.models[0]), "data": data}
    return answer | {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}} if script.usage else answer


def models(ids: list[str], created: int, owner: str = "llamacpp") -> Json:
    """The list of models."""
    listed = [{"id": name, "object": "model", "created": created, "owned_by": owner} for name in ids]
    return {"object": "list", "data": listed}


def error(status: int, message: str, kind: str) -> Json:
    """An error object of llama.cpp's form: its `code` is the status."""
    return {"error": {"code": status, "message": message, "type": kind}}


def count_words(value: object) -> int:
    """Words in all the texts of a JSON value, token ids counting one each: what stands for the prompt's tokens."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, list):
        return sum(count_words(item) for item in value)
    if isinstance(value, dict):
        return sum(count_words(value[key]) for key in ("content", "text") if key in value)
    return int(isinstance(value, int))


def _envelope(ask: Ask, kind: str) -> Json:
    return {
        "choices": None,  # its place is first; whoever makes the object sets it
        "created": ask.created,
        "id": ask.id,
        "model": ask.model,
        "system_fingerprint": "fake",
        "object": kind if ask.chat else "text_completion",
    }


def _chunk(ask: Ask, index: int, content: Json) -> Json:
    choice: Json = (
        {"finish_reason": None, "index": index} | ({} if ask.chat else {"logprobs": None}) | content
    )
    chunk = _envelope(ask, "chat.completion.chunk") | {"choices": [choice]}
    return chunk | {"usage": None} if ask.include_usage and ask.script.dialect != "llama.cpp" else chunk


def _timings(ask: Ask) -> Json:
    return {"prompt_n": ask.prompt_tokens, "predicted_n": len(ask.pieces()), "predicted_ms": 1.0}


def _chat_deltas(ask: Ask) -> Iterator[Json]:
    for piece in split(ask.script.reasoning):
        yield {"delta": {"reasoning_content": piece}}
    for piece in ask.pieces():
        content: Json = {"delta": {"content": piece}}
        yield content | {"logprobs": {"content": [_logprob(piece)]}} if ask.logprobs else content
    for index, call in enumerate(ask.script.tool_calls):
        function = {"name": call.name, "arguments": ""}
        yield {"delta": {"tool_calls": [_call(index) | {"index": index, "function": function}]}}
        middle = len(call.arguments) // 2
        for part in filter(None, (call.arguments[:middle], call.arguments[middle:])):
            yield {"delta": {"tool_calls": [{"index": index, "function": {"arguments": part}}]}}


def _message(ask: Ask, text: str) -> Json:
    message: Json = {"role": "assistant", "content": text}
    if ask.script.reasoning:
        message["reasoning_content"] = ask.script.reasoning
    if ask.script.tool_calls:
        message["content"] = text or None
        message["tool_calls"] = [
            _call(index) | {"function": {"name": call.name, "arguments": call.arguments}}
            for index, call in enumerate(ask.script.tool_calls)
        ]
    return message


def _call(index: int) -> Json:
    return {"id": f"call_{index}", "type": "function"}


def _logprob(piece: str) -> Json:
    return {"token": piece, "logprob": -0.5, "bytes": list(piece.encode()), "top_logprobs": []}
