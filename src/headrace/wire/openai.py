"""OpenAI's inference requests and answers: what is checked, what is edited, how an error looks.

Source: the OpenAI API reference and the behaviour of its official Python client.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from headrace.domain.inference import Operation, estimate_tokens
from headrace.kernel.errors import InvalidRequest
from headrace.wire.members import Members, join, raw, split

MAX_CHOICES = 128
_MAX_TOKENS = 2**31 - 1
_Text = Annotated[str, Meta(max_length=1_000_000)]


class _Message(msgspec.Struct):
    """The part of a message that every backend needs; the rest is the backend's business."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _JsonSchema(msgspec.Struct):
    """llama.cpp's server takes no notice of a schema that is missing or no object: nobody would learn that it isn't kept."""

    schema: dict[str, Raw]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")] | None = None


class _ResponseFormat(msgspec.Struct):
    type: str
    json_schema: _JsonSchema | None = None


class _Check:
    """The type of one member, and how to say what it should have been."""

    __slots__ = ("_decoder", "_expected")

    def __init__(self, type_: Any, expected: str) -> None:
        self._decoder = msgspec.json.Decoder(type_)
        self._expected = expected

    def __call__(self, name: str, value: Raw) -> Any:
        try:
            return self._decoder.decode(value)
        except msgspec.ValidationError as error:
            where = str(error).rpartition(" - at `$")[2].rstrip("`") if " - at `$" in str(error) else ""
            raise InvalidRequest(
                f"Invalid value for '{name}{where}': expected {self._expected}.",
                param=name,
                code="invalid_value",
            ) from None
        except (msgspec.DecodeError, RecursionError):
            raise InvalidRequest(f"Invalid value for {name!r}.", param=name, code="invalid_value") from None


def _number(low: float, high: float) -> _Check:
    return _Check(Annotated[float, Meta(ge=low, le=high)], f"a number from {low:g} to {high:g}")


def _whole(low: int, high: int) -> _Check:
    return _Check(Annotated[int, Meta(ge=low, le=high)], f"an integer from {low} to {high}")


_OBJECT = dict[str, Raw]
_BOOLEAN = _Check(bool, "true or false")
_NON_EMPTY = Annotated[list[Raw], Meta(min_length=1)]
_COMMON = {
    "model": _Check(Annotated[str, Meta(min_length=1, max_length=512)], "the name of a model"),
    "stream": _BOOLEAN,
    "stream_options": _Check(_StreamOptions, 'an object such as {"include_usage": true}'),
    "n": _whole(1, MAX_CHOICES),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _Check(int, "an integer"),
    "stop": _Check(
        _Text | Annotated[list[_Text], Meta(max_length=4)] | None, "a string or an array of at most 4 strings"
    ),
    "logit_bias": _Check(_OBJECT, "an object"),
    "user": _Check(str, "a string"),
}
_CHECKS: dict[Operation, dict[str, _Check]] = {
    Operation.CHAT: _COMMON
    | {
        "messages": _Check(
            Annotated[list[_Message], Meta(min_length=1)],
            "a non-empty array of message objects, each with a role",
        ),
        "max_tokens": _whole(1, _MAX_TOKENS),
        "max_completion_tokens": _whole(1, _MAX_TOKENS),
        "logprobs": _BOOLEAN,
        "top_logprobs": _whole(0, 20),
        "tools": _Check(list[_OBJECT], "an array of objects"),
        "tool_choice": _Check(str | _OBJECT, "a string or an object"),
        "parallel_tool_calls": _BOOLEAN,
        "response_format": _Check(
            _ResponseFormat,
            "an object with a type; a JSON schema has an object 'schema', and a 'name' of at most 64 letters, digits, '_', '-'",
        ),
    },
    Operation.COMPLETION: _COMMON
    | {
        "prompt": _Check(str | _NON_EMPTY, "a string or a non-empty array"),
        "max_tokens": _whole(0, _MAX_TOKENS),
        "logprobs": _whole(0, 20),
        "echo": _BOOLEAN,
    },
    Operation.EMBEDDING: {
        "model": _COMMON["model"],
        "user": _COMMON["user"],
        "input": _Check(Annotated[str, Meta(min_length=1)] | _NON_EMPTY, "a non-empty string or array"),
        "encoding_format": _Check(str, '"float" or "base64"'),
        "dimensions": _whole(1, 1_000_000),
    },
}
_PROMPT = {Operation.CHAT: "messages", Operation.COMPLETION: "prompt", Operation.EMBEDDING: "input"}


class InferenceBody(msgspec.Struct):
    """A checked request body, ready to be written again for a backend.

    include_usage: the client asked for the usage chunk. prompt_tokens: estimated. max_tokens: None where the client
    set no limit. inputs: how many embeddings are asked for. dimensions: the size of each, where the client wants a certain
    one. packed: as base64.
    """

    operation: Operation
    members: Members
    model: str
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    prompt_tokens: int = 0
    max_tokens: int | None = None
    inputs: int = 1
    dimensions: int | None = None
    packed: bool = False

    def render(self, *, model: str, stream: bool, ask_usage: bool) -> bytes:
        """The body for a backend: under its name for the model, streamed or whole, asking for the usage chunk or not."""
        members = self.members.copy()
        if model != self.model:
            members["model"] = raw(model)
        if self.operation.streams:
            members["stream"] = _TRUE if stream else _FALSE
            members.pop("stream_options", None)
            if stream and ask_usage:
                members["stream_options"] = _ASK_USAGE
        return join(members)


_TRUE, _FALSE, _ASK_USAGE = Raw(b"true"), Raw(b"false"), Raw(b'{"include_usage":true}')


def decode_request(operation: Operation, body: bytes, default_model: str = "") -> InferenceBody:
    """Check a request body. *default_model* stands in where the member `model` is missing.

    Members that we don't know pass unseen; a known one that is null counts as absent.

    Raises:
        InvalidRequest: with the member's name as `param`.
    """
    checks = _CHECKS[operation]
    members = split(body, checks)
    values: dict[str, Any] = {}
    for name in tuple(members):
        if check := checks.get(name):
            if bytes(members[name]) == b"null" and name != "model":
                del members[name]
            else:
                values[name] = check(name, members[name])
    if "model" not in values:
        if not default_model:
            raise InvalidRequest("You must name a model.", param="model", code="missing_member")
        members["model"], values["model"] = raw(default_model), default_model
    return _checked(operation, members, values)


def _checked(operation: Operation, members: Members, values: dict[str, Any]) -> InferenceBody:
    prompt = _PROMPT[operation]
    if prompt not in values:
        raise InvalidRequest(f"The member {prompt!r} is missing.", param=prompt, code="missing_member")
    stream = values.get("stream", False)
    options = values.get("stream_options")
    if options is not None and not stream:
        raise InvalidRequest(
            "'stream_options' is only allowed when 'stream' is true.",
            param="stream_options",
            code="invalid_value",
        )
    if "top_logprobs" in values and not values.get("logprobs"):
        raise InvalidRequest(
            "'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs", code="invalid_value"
        )
    shape = values.get("response_format")
    if shape is not None and shape.type == "json_schema" and shape.json_schema is None:
        raise InvalidRequest(
            "'response_format' of type 'json_schema' needs the member 'json_schema'.",
            param="response_format",
            code="missing_member",
        )
    if values.get("encoding_format", "float") not in ("float", "base64"):
        raise InvalidRequest("'encoding_format' must be 'float' or 'base64'.", param="encoding_format")
    return InferenceBody(
        operation=operation,
        members=members,
        model=values["model"],
        stream=stream,
        include_usage=bool(options and options.include_usage),
        choices=values.get("n", 1),
        prompt_tokens=estimate_tokens(len(memoryview(members[prompt]))),
        max_tokens=values.get("max_completion_tokens", values.get("max_tokens")),
        inputs=_count_inputs(values["input"]) if operation is Operation.EMBEDDING else 1,
        dimensions=values.get("dimensions"),
        packed=values.get("encoding_format") == "base64",
    )


def _count_inputs(given: str | list[Raw]) -> int:
    """A string is one input, and so is an array with numbers in it: they are tokens."""
    if isinstance(given, str) or any(memoryview(item)[0] in b"-0123456789" for item in given):
        return 1
    return len(given)


def error_envelope(message: str, *, type_: str, param: str | None = None, code: str | None = None) -> bytes:
    """The body of every error, as OpenAI's clients expect it."""
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": param, "code": code}})


def model_object(model: str, created: int, owned_by: str) -> dict[str, object]:
    """One model, as `/v1/models` lists it."""
    return {"id": model, "object": "model", "created": created, "owned_by": owned_by}


def read_error(body: bytes) -> tuple[str, str | None, str | None]:
    """(message, code, param) of a backend's error body; the message is empty where it says nothing we can read."""
    try:
        error = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return "", None, None
    if isinstance(error, dict):
        error = error.get("error", error)
    if isinstance(error, str):
        return error[:MAX_MESSAGE_CHARS], None, None
    if not isinstance(error, dict):
        return "", None, None
    message = error.get("message") or error.get("detail") or ""
    code, param = error.get("code"), error.get("param")
    if error.get("type") == "exceed_context_size_error":  # llama.cpp's name for it
        code, param = "context_length_exceeded", "messages"
    return (
        str(message)[:MAX_MESSAGE_CHARS],
        code if isinstance(code, str) else None,
        param if isinstance(param, str) else None,
    )


def blamed(message: str, members: Members) -> str | None:
    """The member that a backend's refusal is about, where it gives no `param` but names one member of the request."""
    if "JSON schema" in message:  # llama.cpp's word for both
        return "response_format" if "response_format" in members else "tools" if "tools" in members else None
    named = [name for name in members if "_" in name and name in message]
    return named[0] if len(named) == 1 else None


def llama_refusal(message: str) -> InvalidRequest | None:
    """What is wrong with a request that llama.cpp answered with a 500, as if it had broken; None where it did break."""
    if "is too large to process" in message:
        return InvalidRequest(message, param="input", code="context_length_exceeded")
    if "input is not supported" in message:
        return InvalidRequest(message, param="messages", code="unsupported")
    return None


MAX_MESSAGE_CHARS = 2000
"""How much of a backend's error message is passed on."""
