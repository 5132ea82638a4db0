"""What the fake engine is told to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import msgspec

Dialect = Literal["llama.cpp", "openai", "ollama", "vllm", "sglang", "tgi", "lm-studio"]


class Refuse(msgspec.Struct, frozen=True, tag="refuse"):
    """Answer at once with *status* and don't execute. `body`: None makes an error object of llama.cpp's form."""

    status: int = 503
    body: str | None = None
    headers: dict[str, str] = {}


class Hang(msgspec.Struct, frozen=True, tag="hang"):
    """Fall silent after that many events (-1: before the head) until `FakeEngine.release`, or the client leaves."""

    after_events: int = -1


class Cut(msgspec.Struct, frozen=True, tag="cut"):
    """Cut the connection after that many events (-1: before the head). A whole answer is cut in its middle."""

    after_events: int = -1


class Garbage(msgspec.Struct, frozen=True, tag="garbage"):
    """Send an event that is not JSON after that many events, then end. A whole answer is not JSON at all."""

    after_events: int = 0


class ErrorEvent(msgspec.Struct, frozen=True, tag="error_event"):
    """Report an error in the stream after that many events, and end it without `[DONE]`. A whole answer is a 500."""

    after_events: int = 0
    message: str = "the fake engine was told to fail"


Fault = Refuse | Hang | Cut | Garbage | ErrorEvent


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model makes; `arguments` is JSON text."""

    name: str
    arguments: str = "{}"


@dataclass(frozen=True, slots=True)
class Script:
    """How the engine answers. `dataclasses.replace` makes a variant.

    dialect: "openai" has `usage: null` in the chunks before the usage chunk, and no `timings`; llama.cpp has `timings`
        at the end, and the usage of a streamed text completion in its last chunk, asked for or not. The others are the
        "openai" one, beside what each product tells of itself: Ollama's `/api/…`, vLLM's `/version` and so on.
    models: what `/v1/models` lists. checks_model: others get 404; else every name is served, as llama.cpp does.
    tokens: how many are produced ("tok0 tok1 …"), fewer where the request asks for fewer.
    text, reasoning, tool_calls: say these instead of the counted tokens.
    delay_s: before the first byte; interval_s: between two tokens, streamed or not.
    usage: whether it reports usage: in whole answers, and in streams that ask for it.
    stream_options: False refuses requests that have this member with 400.
    cancels_unstreamed: whether a client's leaving stops an answer that isn't streamed; llama.cpp runs on.
    slots: requests worked on at once; the rest queue, or get 503 where `when_full` says so.
    loading: everything answers 503 "Loading model". api_key: what must come as bearer token, if set.
    load_s: in the dialects of Ollama and LM Studio, how long a model that isn't in memory takes to come there; most_loaded:
        models that have room there. pullable: names that Ollama can fetch.
    keep_alive: False closes each connection after its answer.
    fault: what goes wrong, in every request; None: nothing.
    """

    dialect: Dialect = "llama.cpp"
    models: tuple[str, ...] = ("fake",)
    checks_model: bool = False
    tokens: int = 8
    text: str | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    delay_s: float = 0.0
    interval_s: float = 0.0
    usage: bool = True
    stream_options: bool = True
    cancels_unstreamed: bool = False
    slots: int = 64
    when_full: Literal["queue", "refuse"] = "queue"
    loading: bool = False
    load_s: float = 0.0
    most_loaded: int = 1
    pullable: tuple[str, ...] = ()
    api_key: str = ""
    keep_alive: bool = True
    dimensions: int = 8
    fault: Fault | None = None

    def pieces(self) -> list[str]:
        """The tokens of the answer's text, in order; joined they are the text."""
        if self.text is not None:
            return split(self.text)
        if self.tool_calls:
            return []
        return [f"tok{number}" if number == 0 else f" tok{number}" for number in range(self.tokens)]


def split(text: str) -> list[str]:
    """Pieces of *text* that stand for its tokens: a word each, with the white space before it."""
    return re.findall(r"\s*\S+|\s+$", text)
