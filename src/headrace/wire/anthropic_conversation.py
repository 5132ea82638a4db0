"""A conversation as OpenAI writes it, as Anthropic's Messages API wants it.

There are two roles there, each turn is a list of blocks, the system prompt stands apart, and the results of tools come first
in the turn that follows their calls. An empty text is no block.

Source: Anthropic's API reference and the types of its official Python library.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from headrace.kernel.errors import InvalidRequest

Block = dict[str, Any]

_ID = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_IMAGE_TYPES = {
    "image/jpeg": "image/jpeg",
    "image/jpg": "image/jpeg",
    "image/png": "image/png",
    "image/gif": "image/gif",
    "image/webp": "image/webp",
}
_SYSTEM_ROLES = frozenset({"system", "developer"})
_arguments = msgspec.json.Decoder(dict[str, Raw]).decode


class Image(msgspec.Struct):
    """Where an image is: a `data:` URL, or one to fetch."""

    url: str


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Image | None = None


class Function(msgspec.Struct):
    """What a tool call calls."""

    name: str
    arguments: str = ""


class Call(msgspec.Struct):
    """A tool call that the model made."""

    id: str
    type: str = "function"
    function: Function | None = None


class Message(msgspec.Struct):
    """One message of a chat; members that aren't named here can't be passed on, and say nothing to a model."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    function_call: Any = None
    audio: Any = None


class Conversation(NamedTuple):
    """system: empty where there is none. messages: the members `role` and `content`, roles taking turns."""

    system: str
    messages: list[Block]


def converse(messages: list[Message]) -> Conversation:
    """Translate *messages*.

    Raises:
        InvalidRequest: something in them can't be said there; `param` is "messages".
    """
    system: list[str] = []
    turns: list[tuple[str, list[Block]]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message.role in _SYSTEM_ROLES:
            system += [block["text"] for block in _texts(message, where)]
            continue
        role, blocks = _turn(message, where)
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        elif blocks:
            turns.append((role, blocks))
    if not turns:
        raise refusal("A message of the user's is missing: those of the system alone can't be answered.")
    return Conversation("\n\n".join(system), [_message(role, blocks) for role, blocks in turns])


def refusal(message: str, param: str = "messages") -> InvalidRequest:
    """The error of what this backend can't be asked for."""
    return InvalidRequest(message, param=param, code="unsupported")


def _turn(message: Message, where: str) -> tuple[str, list[Block]]:
    if message.role == "user":
        return "user", [_user_block(part, where) for part in _parts(message.content)]
    if message.role == "tool":
        return "user", [_result(message, where)]
    if message.role == "assistant":
        return "assistant", _assistant(message, where)
    raise refusal(f"{where}: this backend knows no messages of the role {message.role[:40]!r}.")


def _message(role: str, blocks: list[Block]) -> Block:
    """Results of tools come first, or the backend misses them."""
    blocks.sort(key=lambda block: bool(block["type"] != "tool_result"))
    if len(blocks) == 1 and blocks[0]["type"] == "text":
        return {"role": role, "content": blocks[0]["text"]}
    return {"role": role, "content": blocks}


def _parts(content: str | list[Part] | None) -> Iterable[Part]:
    """The parts that say something."""
    if content is None or isinstance(content, str):
        return [Part("text", content)] if content else []
    return [part for part in content if part.type != "text" or part.text]


def _texts(message: Message, where: str) -> list[Block]:
    return [_text_block(part, where) for part in _parts(message.content)]


def _text_block(part: Part, where: str) -> Block:
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in ("text", "refusal") or not text:
        raise refusal(f"{where}: a message of this role can't have content of type {part.type[:40]!r} here.")
    return {"type": "text", "text": text}


def _user_block(part: Part, where: str) -> Block:
    if part.type == "image_url" and part.image_url is not None:
        return {"type": "image", "source": _source(part.image_url.url, where)}
    if part.type != "text":
        raise refusal(f"{where}: this backend takes text and images, not content of type {part.type[:40]!r}.")
    return {"type": "text", "text": part.text}


def _source(url: str, where: str) -> Block:
    scheme = url[:8].lower()
    if scheme.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    head, comma, data = url.partition(",")
    kind, *parameters = head[len("data:") :].lower().split(";")
    if not scheme.startswith("data:") or not comma or "base64" not in parameters:
        raise refusal(f"{where}: an image is an http(s) URL, or a data: URL in base64.")
    if kind not in _IMAGE_TYPES:
        raise refusal(f"{where}: an image is a JPEG, PNG, GIF or WebP.")
    return {"type": "base64", "media_type": _IMAGE_TYPES[kind], "data": data}


def _result(message: Message, where: str) -> Block:
    if not message.tool_call_id:
        raise refusal(f"{where}: a tool's message needs the member 'tool_call_id'.")
    block: Block = {"type": "tool_result", "tool_use_id": _tool_id(message.tool_call_id)}
    blocks = [_user_block(part, where) for part in _parts(message.content)]
    if len(blocks) == 1 and blocks[0]["type"] == "text":
        block["content"] = blocks[0]["text"]
    elif blocks:
        block["content"] = blocks
    return block


def _assistant(message: Message, where: str) -> list[Block]:
    if message.function_call is not None or message.audio is not None:
        raise refusal(f"{where}: this backend knows neither 'function_call' nor 'audio'; use 'tool_calls'.")
    blocks = _texts(message, where)
    if message.refusal:
        blocks.append({"type": "text", "text": message.refusal})
    return blocks + [_use(call, where) for call in message.tool_calls or ()]


def _use(call: Call, where: str) -> Block:
    if call.type != "function" or call.function is None:
        raise refusal(f"{where}: this backend knows calls of functions only, not of type {call.type[:40]!r}.")
    return {
        "type": "tool_use",
        "id": _tool_id(call.id),
        "name": call.function.name,
        "input": _input(call.function.arguments, where),
    }


def _input(arguments: str, where: str) -> Raw:
    """The arguments as they were said, once they are known to be an object."""
    text = arguments.strip() or "{}"
    try:
        _arguments(text)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(
            f"{where}: the arguments of a tool call must be a JSON object.",
            param="messages",
            code="invalid_value",
        ) from None
    return Raw(text)


def _tool_id(given: str) -> str:
    """The id of a call, the same for its result. One that another backend gave may have what this one doesn't take."""
    if _ID.fullmatch(given):
        return given
    return f"toolu_{hashlib.sha256(given.encode(errors='surrogatepass')).hexdigest()[:24]}"
