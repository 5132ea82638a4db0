"""Strict embeddings from careless backends: one for each input, in their order, in the form and of the size asked for.

OpenAI's clients ask for base64 and some decode whatever comes; callers match vectors to inputs by their place. So what comes as
a list, or out of order, is put right here, and a missing vector is a failure, not a shift of all that follow.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Any

from headrace.kernel.errors import InvalidRequest, UpstreamFailed
from headrace.wire.openai import InferenceBody

_FLOAT_BYTES = 4


def mend_embeddings(answer: dict[str, Any], body: InferenceBody) -> bool:
    """Bring *answer* to the letter, in place; whether anything was changed.

    Raises:
        UpstreamFailed: a vector is missing, or isn't one.
        InvalidRequest: the vectors haven't the dimensions that were asked for: the model has no choice of them.
    """
    data = answer.get("data")
    if not isinstance(data, list) or len(data) != body.inputs or not all(isinstance(i, dict) for i in data):
        count = len(data) if isinstance(data, list) else 0
        raise UpstreamFailed(f"The backend returned {count} embeddings for {body.inputs} inputs.")
    changed = _order(data)
    for item in data:
        changed |= _form(item, packed=body.packed)
        changed |= _set(item, "object", "embedding")
        if body.dimensions is not None:
            _check_dimensions(item["embedding"], body.dimensions)
    changed |= _set(answer, "object", "list")
    return changed | (not isinstance(answer.get("model"), str) and _set(answer, "model", body.model))


def _order(data: list[dict[str, Any]]) -> bool:
    """By index, where each item has one of its own; else they are taken to be in order."""
    indexes = [item.get("index") for item in data]
    if indexes == list(range(len(data))):
        return False
    if set(map(repr, indexes)) == set(map(repr, range(len(data)))):
        data.sort(key=lambda item: int(item["index"]))
    for index, item in enumerate(data):
        item["index"] = index
    return True


def _form(item: dict[str, Any], *, packed: bool) -> bool:
    """Base64 of little-endian 32-bit floats, or a list of numbers, as was asked."""
    vector = item.get("embedding")
    if not isinstance(vector, str | list) or not vector:
        raise UpstreamFailed("The backend returned an embedding that is no vector.")
    if isinstance(vector, str) is packed:
        return False
    try:
        item["embedding"] = _pack(vector) if isinstance(vector, list) else _unpack(vector)
    except (struct.error, binascii.Error, OverflowError):
        raise UpstreamFailed("The backend returned an embedding that is no vector.") from None
    return True


def _pack(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _unpack(vector: str) -> list[float]:
    raw = base64.b64decode(vector, validate=True)
    return list(struct.unpack(f"<{len(raw) // _FLOAT_BYTES}f", raw))


def _set(item: dict[str, Any], name: str, value: str) -> bool:
    if item.get(name) == value:
        return False
    item[name] = value
    return True


def _check_dimensions(vector: str | list[float], wanted: int) -> None:
    size = len(vector) * 3 // (4 * _FLOAT_BYTES) if isinstance(vector, str) else len(vector)
    if size != wanted:
        raise InvalidRequest(
            f"This model's embeddings have {size} dimensions, and no others.",
            param="dimensions",
            code="unsupported",
        )
