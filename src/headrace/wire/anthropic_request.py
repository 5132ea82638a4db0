"""A chat request as OpenAI's clients write it, as a request to Anthropic's Messages API.

A member is translated; or it is ignored because it changes nothing of the answer (`IGNORED`); or it is refused by its name:
an answer that silently isn't what was asked for helps nobody.

Source: Anthropic's API reference and the types of its official Python library.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw

from headrace.kernel.errors import InvalidRequest
from headrace.wire.anthropic_conversation import Message, converse, refusal

PATH = "/v1/messages"
MOST_TEMPERATURE = 1.0
"""OpenAI's goes to 2: what is above is taken for this, as Anthropic's own OpenAI-compatible endpoint does."""

IGNORED = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "service_tier",
        "store",
    }
)
"""Members about OpenAI's own storage, caches and prices: the answer is the same without."""

_NEUTRAL: dict[str, Any] = {
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
}
"""Members that can't be translated, and their values that ask for nothing."""

_EFFORTS = {name: name for name in ("low", "medium", "high", "xhigh", "max")} | {"minimal": "low"}
_PATH_OF_ERROR = re.compile(r"^(.*) - at `\$\.?(.*)`$", re.DOTALL)


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _ToolFunction(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Raw] | None = None
    strict: bool | None = None


class _Tool(msgspec.Struct):
    type: str
    function: _ToolFunction | None = None


class _Named(msgspec.Struct):
    name: str


class _Choice(msgspec.Struct):
    type: str
    function: _Named | None = None


class _Schema(msgspec.Struct):
    schema: dict[str, Raw] | None = None


class _Format(msgspec.Struct):
    type: str
    json_schema: _Schema | None = None


class _Chat(msgspec.Struct):
    """The members that are translated."""

    model: str
    messages: list[Message]
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    response_format: _Format | None = None
    safety_identifier: str | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: float | None = None
    thinking: dict[str, Raw] | None = None
    tool_choice: str | _Choice | None = None
    tools: list[_Tool] | None = None
    top_k: int | None = None
    top_p: float | None = None
    user: str | None = None


class Asked(msgspec.Struct, frozen=True):
    """A translated request. `model`: that it is for. include_usage: a stream is to end with the usage chunk."""

    body: bytes
    model: str
    stream: bool
    include_usage: bool


TRANSLATED = frozenset(_Chat.__struct_fields__)
_members = msgspec.json.Decoder(dict[str, Raw]).decode
_chat = msgspec.json.Decoder(_Chat).decode


def translate(body: bytes, default_max_tokens: Callable[[str], int]) -> Asked:
    """Translate the body of a chat request. *default_max_tokens*: for a model, where the request sets no limit; there must be
    one.

    Raises:
        InvalidRequest: it isn't a chat request, or asks for what this backend can't do; `param` names the member.
    """
    try:
        _refuse_untranslatable(_members(body))
        chat = _chat(body)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise InvalidRequest("The body is not a JSON object.", code="invalid_json") from None
    stream = chat.stream is True
    system, messages = converse(chat.messages)
    limit = chat.max_completion_tokens or chat.max_tokens or default_max_tokens(chat.model)
    asked: dict[str, Any] = {"model": chat.model, "max_tokens": limit, "messages": messages, "stream": stream}
    if system:
        asked["system"] = system
    asked |= _sampling(chat) | _tools(chat) | _output(chat)
    if user := chat.safety_identifier or chat.user:
        asked["metadata"] = {"user_id": user}
    usage = stream and chat.stream_options is not None and chat.stream_options.include_usage is True
    return Asked(msgspec.json.encode(asked), chat.model, stream, usage)


def _refuse_untranslatable(members: dict[str, Raw]) -> None:
    for name, value in members.items():
        if name in TRANSLATED or name in IGNORED or bytes(value) == b"null":
            continue
        neutral = _NEUTRAL.get(name)
        if neutral is None:
            raise refusal(f"This backend knows no {name[:80]!r}: leave it out.", name[:80])
        if msgspec.json.decode(value) not in neutral:
            only = " or ".join(msgspec.json.encode(one).decode() for one in neutral)
            raise refusal(f"This backend can't do {name!r}: leave it out, or set it to {only}.", name)


def _invalid(error: msgspec.ValidationError) -> InvalidRequest:
    """msgspec's complaint, with the member's name."""
    match = _PATH_OF_ERROR.match(str(error))
    reason, path = (match[1], match[2]) if match else (str(error), "")
    param = re.split(r"[.\[]", path)[0] or None
    where = f" for {path[:80]!r}" if path else ""
    return InvalidRequest(f"Invalid value{where}: {reason[:200]}.", param=param, code="invalid_value")


def _sampling(chat: _Chat) -> dict[str, Any]:
    """What is as it would be anyway is left out: some models refuse these members with any value but that one."""
    said: dict[str, Any] = {}
    if chat.temperature is not None and chat.temperature < MOST_TEMPERATURE:
        said["temperature"] = chat.temperature
    if chat.top_p is not None and chat.top_p < 1:
        said["top_p"] = chat.top_p
    if chat.top_k is not None:
        said["top_k"] = chat.top_k
    stop = [chat.stop] if isinstance(chat.stop, str) else chat.stop
    if stop:
        said["stop_sequences"] = stop
    return said


def _tools(chat: _Chat) -> dict[str, Any]:
    choice = _choice(chat)
    if not chat.tools:
        if choice is not None and choice["type"] in ("any", "tool"):
            raise refusal("'tool_choice' asks for a tool, and there are no 'tools'.", "tool_choice")
        return {}
    if chat.parallel_tool_calls is False:
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    said: dict[str, Any] = {"tools": [_tool(tool) for tool in chat.tools]}
    if choice is not None:
        said["tool_choice"] = choice
    return said


def _tool(tool: _Tool) -> dict[str, Any]:
    function = tool.function
    if tool.type != "function" or function is None:
        raise refusal(f"This backend knows tools of type 'function' only, not {tool.type[:40]!r}.", "tools")
    schema: dict[str, Any] = {"type": "object", **(function.parameters or {"properties": {}})}
    said: dict[str, Any] = {"name": function.name, "input_schema": schema}
    if function.description:
        said["description"] = function.description
    if function.strict:
        said["strict"] = True
    return said


_CHOICES = {"none": "none", "auto": "auto", "required": "any"}


def _choice(chat: _Chat) -> dict[str, Any] | None:
    given = chat.tool_choice
    if given is None:
        return None
    if isinstance(given, str):
        if given in _CHOICES:
            return {"type": _CHOICES[given]}
    elif given.type == "function" and given.function is not None:
        return {"type": "tool", "name": given.function.name}
    raise refusal("'tool_choice' is 'none', 'auto', 'required', or names a function.", "tool_choice")


def _output(chat: _Chat) -> dict[str, Any]:
    """The form of the answer, and how much thought goes into it."""
    said: dict[str, Any] = {} if chat.thinking is None else {"thinking": chat.thinking}
    config: dict[str, Any] = {}
    effort = chat.reasoning_effort
    if effort == "none":
        said.setdefault("thinking", {"type": "disabled"})
    elif effort is not None:
        if effort not in _EFFORTS:
            known = ", ".join(["none", "minimal", *list(_EFFORTS)[:-1]])
            raise refusal(f"'reasoning_effort' is one of {known}.", "reasoning_effort")
        config["effort"] = _EFFORTS[effort]
    if (schema := _schema(chat.response_format)) is not None:
        config["format"] = {"type": "json_schema", "schema": schema}
    return said | ({"output_config": config} if config else {})


def _schema(form: _Format | None) -> dict[str, Raw] | None:
    if form is None or form.type == "text":
        return None
    if form.type != "json_schema" or form.json_schema is None or form.json_schema.schema is None:
        raise refusal(
            "This backend answers in text, or in JSON after a schema ('json_schema'); it has no 'json_object'.",
            "response_format",
        )
    return form.json_schema.schema
