"""OpenAI's inference requests and answers: what is checked, what is edited, how an error looks.

Source: the OpenAI API reference and the behaviour of its official Python client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any
from zlib import crc32

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from headrace.domain.inference import Api, Operation, estimate_tokens
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

    __slots__ = ("_decoder", "_expected", "type")

    def __init__(self, type_: Any, expected: str) -> None:
        self.type = type_
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
        _Text | Annotated[list[_Text], Meta(max_length=4)], "a string or an array of at most 4 strings"
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


def _control(operation: Operation) -> type[msgspec.Struct]:
    """A struct of all the members of *operation* that are checked: one decode for a body in which all are right."""
    fields = [(name, check.type | UnsetType, UNSET) for name, check in _CHECKS[operation].items()]
    return msgspec.defstruct(f"{operation.name.title()}Control", fields)


_NAMES = {operation: frozenset(checks) for operation, checks in _CHECKS.items()}
_CONTROL = {operation: _control(operation) for operation in Operation.of(Api.OPENAI)}
_DECODE = {operation: msgspec.json.Decoder(type_).decode for operation, type_ in _CONTROL.items()}
_PROMPT = {Operation.CHAT: "messages", Operation.COMPLETION: "prompt", Operation.EMBEDDING: "input"}


class InferenceBody(msgspec.Struct):
    """A checked request body, ready to be written again for a backend.

    include_usage: the client asked for the usage chunk. prompt_tokens: estimated. max_tokens: None where the client
    set no limit. inputs: how many embeddings are asked for. dimensions: the size of each, where the client wants a certain
    one. packed: as base64. bare_logprobs: log probabilities without alternatives: for `top_logprobs` 0, llama.cpp's server
    gives none at all, and many where it isn't said, so it isn't, and what comes is taken out.
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
    bare_logprobs: bool = False

    @property
    def prompt_member(self) -> str:
        """The member that has the text."""
        return _PROMPT[self.operation]

    @property
    def prefix(self) -> int:
        """A hash of how the text begins, the same for texts that begin alike: of up to 256 bytes of its JSON."""
        return crc32(memoryview(self.members[self.prompt_member])[:_PREFIX_BYTES])

    @property
    def session(self) -> str:
        """What the client says that its prompts have in common (`prompt_cache_key`); empty without."""
        given = self.members.get("prompt_cache_key")
        if given is None:
            return ""
        try:
            return _decode_session(given)
        except msgspec.DecodeError:
            return ""

    def limit(self, max_tokens: int) -> None:
        """Set the limit that the client left open. Embeddings have none."""
        if self.max_tokens is None and self.operation.streams:
            self.max_tokens = max_tokens
            self.members["max_tokens"] = raw(max_tokens)

    def render(self, *, model: str, stream: bool, ask_usage: bool) -> bytes:
        """The body for a backend: under its name for the model, streamed or whole, asking for the usage chunk or not."""
        members = self.members.copy()
        if model != self.model:
            members["model"] = raw(model)
        if self.bare_logprobs:
            members.pop("top_logprobs", None)
        if self.operation.streams:
            members["stream"] = _TRUE if stream else _FALSE
            members.pop("stream_options", None)
            if stream and ask_usage:
                members["stream_options"] = _ASK_USAGE
        return join(members)


_PREFIX_BYTES = 256
_decode_session: Callable[[Raw], str] = msgspec.json.Decoder(Annotated[str, Meta(max_length=512)]).decode
_TRUE, _FALSE, _ASK_USAGE = Raw(b"true"), Raw(b"false"), Raw(b'{"include_usage":true}')


def decode_request(operation: Operation, body: bytes, default_model: str = "") -> InferenceBody:
    """Check a request body. *default_model* stands in where the member `model` is missing.

    Members that we don't know pass unseen; a known one that is null counts as absent.

    Raises:
        InvalidRequest: with the member's name as `param`.
    """
    members = split(body, _NAMES[operation])
    try:
        control: Any = _DECODE[operation](body)
    except msgspec.ValidationError:  # or one of them is null
        control = _one_by_one(operation, members)
    if control.model is UNSET:
        if not default_model:
            raise InvalidRequest("You must name a model.", param="model", code="missing_member")
        members["model"], control.model = raw(default_model), default_model
    prompt = members.get(_PROMPT[operation])
    if prompt is None:
        name = _PROMPT[operation]
        raise InvalidRequest(f"The member {name!r} is missing.", param=name, code="missing_member")
    read = InferenceBody(
        operation, members, control.model, prompt_tokens=estimate_tokens(len(memoryview(prompt)))
    )
    if operation is Operation.EMBEDDING:
        _read_embedding(read, control)
    else:
        _read_generation(read, control)
    return read


def _one_by_one(operation: Operation, members: Members) -> msgspec.Struct:
    """The same, for a body that has something wrong, or null: a known member that is null is taken out of *members*."""
    values: dict[str, Any] = {}
    for name, check in _CHECKS[operation].items():
        value = members.get(name)
        if value is None:
            continue
        if bytes(value) == b"null" and name != "model":
            del members[name]
        else:
            values[name] = check(name, value)
    return _CONTROL[operation](**values)


def _read_generation(read: InferenceBody, control: Any) -> None:
    """Take over what chats and completions know, and check what depends on each other."""
    read.stream = control.stream is True
    if control.stream_options is not UNSET:
        if not read.stream:
            raise InvalidRequest(
                "'stream_options' is only allowed when 'stream' is true.",
                param="stream_options",
                code="invalid_value",
            )
        read.include_usage = bool(control.stream_options.include_usage)
    if control.n is not UNSET:
        read.choices = control.n
    if control.max_tokens is not UNSET:
        read.max_tokens = control.max_tokens
    if read.operation is Operation.CHAT:
        if control.max_completion_tokens is not UNSET:
            read.max_tokens = control.max_completion_tokens
        _check_chat(control)
        read.bare_logprobs = control.logprobs is True and control.top_logprobs in (UNSET, 0)


def _check_chat(control: Any) -> None:
    if control.top_logprobs is not UNSET and control.logprobs is not True:
        raise InvalidRequest(
            "'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs", code="invalid_value"
        )
    shape = control.response_format
    if shape is not UNSET and shape.type == "json_schema" and shape.json_schema is None:
        raise InvalidRequest(
            "'response_format' of type 'json_schema' needs the member 'json_schema'.",
            param="response_format",
            code="missing_member",
        )


def _read_embedding(read: InferenceBody, control: Any) -> None:
    form = control.encoding_format
    if form is not UNSET and form not in ("float", "base64"):
        raise InvalidRequest("'encoding_format' must be 'float' or 'base64'.", param="encoding_format")
    read.packed = form == "base64"
    read.inputs = _count_inputs(control.input)
    if control.dimensions is not UNSET:
        read.dimensions = control.dimensions


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
