"""The plainest form of a chat chunk: one choice, some text or its end, and nothing that would have to be looked at closer.

Most chunks have it, whatever the backend. Reading one with these types costs a fraction of reading it without; what isn't of this
form is read without, and mended.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class PlainDelta(msgspec.Struct, forbid_unknown_fields=True):
    """A piece of text, a role, or nothing."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET


class PlainChoice(msgspec.Struct, forbid_unknown_fields=True):
    """The first and only choice."""

    index: int
    delta: PlainDelta
    finish_reason: Literal["stop", "length"] | None
    logprobs: UnsetType | None = UNSET


class PlainChunk(msgspec.Struct):
    """One chunk; members that aren't named here don't matter, except for an `error`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[PlainChoice]
    usage: UnsetType | None = UNSET
    error: Any = None


_decode = msgspec.json.Decoder(PlainChunk).decode


def read_plain(data: bytes) -> PlainChunk | None:
    """*data* as a plain chunk; None where it isn't one."""
    try:
        chunk = _decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return chunk if len(chunk.choices) == 1 and not chunk.error else None
