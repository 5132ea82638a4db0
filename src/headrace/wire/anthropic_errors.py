"""What Anthropic's errors mean, and how they are told to OpenAI's clients.

Source: Anthropic's API reference ("Errors", "Rate limits") and the types of its official Python library.
"""

from __future__ import annotations

import re
from enum import Enum, auto

import msgspec

from headrace.wire.openai import MAX_MESSAGE_CHARS, error_envelope


class Meaning(Enum):
    """What an error says about the request, the backend and us."""

    BUSY = auto()  # not now; nothing was begun
    KEY = auto()  # our key isn't taken
    ACCOUNT = auto()  # our account can't pay
    REFUSED = auto()  # the request itself is at fault
    FAILED = auto()  # the backend broke


class _Details(msgspec.Struct):
    error_code: str = ""


class ApiError(msgspec.Struct):
    """An error as the backend says it; all is empty where it said nothing that we can read."""

    type: str = ""
    message: str = ""
    details: _Details | None = None


class _Envelope(msgspec.Struct):
    error: ApiError


_BUSY_TYPES = frozenset({"overloaded_error", "rate_limit_error"})
_KEY_TYPES = frozenset({"authentication_error", "permission_error"})
_KEY_STATUSES = frozenset({401, 403, 407})
# Of accounts without money some answers are plain 400s, known by their words alone.
_NO_MONEY = re.compile(r"credit balance is too low|reached your specified .{0,20}usage limits", re.IGNORECASE)
_TOO_LONG = re.compile(r"prompt is too long|exceeds? (the )?context (limit|window)", re.IGNORECASE)
_BLAMED = re.compile(r"`?([a-z_]+)(?:\.([a-z_]+))?[`:.]")
_PARAMS = {
    "max_tokens": "max_tokens",
    "messages": "messages",
    "metadata": "user",
    "model": "model",
    "stop_sequences": "stop",
    "system": "messages",
    "temperature": "temperature",
    "thinking": "thinking",
    "tool_choice": "tool_choice",
    "tools": "tools",
    "top_k": "top_k",
    "top_p": "top_p",
}
_decode = msgspec.json.Decoder(_Envelope).decode


def read_api_error(body: bytes) -> ApiError:
    """The error in an answer's body; an empty one where there is none that we know the form of."""
    try:
        return _decode(body).error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return ApiError()


def meaning(status: int, error: ApiError) -> Meaning:
    """What an answer of *status* with *error* means. In a stream the status is 200, and the error's type is all there is."""
    code = error.details.error_code if error.details is not None else ""
    if status == 402 or error.type == "billing_error" or code.endswith("spend_limit_reached"):
        return Meaning.ACCOUNT
    if status in (429, 529) or error.type in _BUSY_TYPES:
        return Meaning.BUSY
    if status in _KEY_STATUSES or error.type in _KEY_TYPES:
        return Meaning.KEY
    if 400 <= status < 500:
        return Meaning.ACCOUNT if _NO_MONEY.search(error.message) else Meaning.REFUSED
    return Meaning.FAILED


def refused_envelope(error: ApiError) -> bytes:
    """A refusal of the request itself as OpenAI's clients expect it, with the member of *their* request that is at fault."""
    message = error.message[:MAX_MESSAGE_CHARS] or "The backend refused the request."
    param, code = _blamed(message), None
    if _TOO_LONG.search(message):
        param, code = "messages", "context_length_exceeded"
    elif error.type == "not_found_error" and param == "model":
        code = "model_not_found"
    return error_envelope(message, type_="invalid_request_error", param=param, code=code)


def _blamed(message: str) -> str | None:
    """Messages about a member begin with where it is, as `messages.0.content: …` or as a name between back-ticks."""
    match = _BLAMED.match(message)
    if match is None:
        return None
    if match[1] == "output_config":
        return "reasoning_effort" if match[2] == "effort" else "response_format"
    return _PARAMS.get(match[1])
