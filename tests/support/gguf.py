"""Writes small GGUF files, good and bad ones."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Setting = str | int | bool | float | Sequence[str] | Sequence[int]

LLAMA: dict[str, Setting] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.file_type": 3,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["<s>", "a", "b"],
    "tokenizer.chat_template": "{{ messages }}",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header lists it. kind: ggml type."""

    name: str
    shape: tuple[int, ...]
    kind: int = 0
    offset: int = 0


def gguf_bytes(
    settings: Mapping[str, Setting] = LLAMA,
    tensors: Sequence[Tensor] = (Tensor("a", (8, 4)),),
    *,
    data_bytes: int = 128,
    version: int = 3,
    magic: bytes = b"GGUF",
) -> bytes:
    """A whole file: header, padding to 32 bytes, and that many bytes of data."""
    out = magic + struct.pack("<IQQ", version, len(tensors), len(settings))
    for key, value in settings.items():
        out += _text(key) + _value(value)
    for tensor in tensors:
        out += _text(tensor.name) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + struct.pack(
            "<IQ", tensor.kind, tensor.offset
        )
    return out + bytes(-len(out) % 32) + bytes(data_bytes)


def write_gguf(path: Path, **how: object) -> Path:
    """`gguf_bytes` into a file."""
    path.write_bytes(gguf_bytes(**how))  # type: ignore[arg-type]
    return path


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Setting) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case _:
            texts = [item for item in value if isinstance(item, str)]
            if texts:
                return struct.pack("<IIQ", 9, 8, len(texts)) + b"".join(map(_text, texts))
            return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
