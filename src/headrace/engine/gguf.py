"""What a GGUF file says of itself, read without loading it: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

A hostile file costs little: counts and lengths are checked against the file's size before anything is read, nothing
is kept but the few values we use, and long arrays are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from headrace.kernel.errors import StartupError
from headrace.kernel.units import format_bytes

MAGIC = b"GGUF"
VERSIONS = (2, 3)

Value = int | float | bool | str | list[int]
"""A metadata value that we keep; other arrays than short ones of integers are skipped."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 20
_MAX_NAME_BYTES = 1 << 16
_MAX_TEXT_BYTES = 1 << 24
_MAX_STRINGS = 1 << 23
_MAX_KEPT_ITEMS = 1 << 12
_MIN_TENSOR_BYTES = 24

_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66),
    17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54),
    35: (256, 66), 39: (32, 17),
}  # fmt: skip
"""ggml type → weights in a block, bytes of a block. A type that isn't here is counted as nothing."""

_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A model file as it describes itself. Counts are 0 and texts empty where the file doesn't say.

    tensor_bytes: what the weights take. n_heads_kv: the sum over all layers. kv_width: numbers that one token keeps
    in the KV cache, all layers together. sliding_window: tokens, 0 for none. split_count: files the model is cut into.
    is_embedding: it was made for embeddings (it names a pooling or attends both ways), not for chat.
    """

    architecture: str
    name: str
    quantization: str
    n_ctx_train: int
    n_layers: int
    n_embd: int
    n_heads: int
    n_heads_kv: int
    kv_width: int
    sliding_window: int
    tensor_count: int
    tensor_bytes: int
    split_count: int
    has_chat_template: bool
    is_embedding: bool


def read_header(path: Path) -> GgufHeader:
    """Read the header of the GGUF file at *path*. Blocks on the disk; memory is bounded whatever the file claims.

    Raises:
        StartupError: there is no such file, it can't be read, it isn't a GGUF file, its version is unknown, or it is
            shorter than its own header says. The message names the file and what is wrong with it.
    """
    try:
        if path.is_dir():
            raise StartupError(f"{path} is a folder; give the path of a .gguf file in it.")
        with path.open("rb", buffering=1 << 20) as file:
            return _Reader(file, path).header()
    except FileNotFoundError:
        raise StartupError(f"There is no model file {path}.") from None
    except OSError as error:
        raise StartupError(f"The model file {path} can't be read: {error.strerror}.") from None


@dataclass(frozen=True, slots=True)
class _Tensors:
    weight_bytes: int  # of the weights
    end: int  # offset behind the last of them, from where the data begins


class _Reader:
    """One pass over a header."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = path.stat().st_size
        self._left = self._size

    def header(self) -> GgufHeader:
        self._check_magic()
        (tensor_count, key_count) = self._unpack("QQ")
        if key_count > _MAX_KEYS or tensor_count > min(_MAX_TENSORS, self._left // _MIN_TENSOR_BYTES):
            raise self._broken(f"it claims {tensor_count} tensors and {key_count} settings")
        found: dict[str, Value] = {}
        for _ in range(key_count):
            key = self._text(_MAX_NAME_BYTES)
            value = self._value(self._uint("I"))
            if value is not None:
                found[key] = value
        tensors = self._tensors(tensor_count)
        alignment = _int(found, "general.alignment", 32) or 32
        start = -(-(self._size - self._left) // alignment) * alignment
        if tensors.end and start + tensors.end > self._size:
            missing = format_bytes(start + tensors.end - self._size)
            raise self._broken(f"its header lists {missing} more than there are", "it is truncated")
        return _header(found, tensor_count, tensors.weight_bytes)

    def _check_magic(self) -> None:
        magic = self._file.read(4)
        self._left -= len(magic)
        if magic != MAGIC:
            begins = f"it begins with {magic!r}" if magic else "it is empty"
            raise StartupError(f"{self._path} is not a GGUF file ({begins}); give a model in GGUF format.")
        version = self._uint("I")
        if version not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise StartupError(
                f"{self._path} is GGUF version {version}; versions {known} (little-endian) can be read. "
                "Convert the model again with a current llama.cpp."
            )

    def _tensors(self, count: int) -> _Tensors:
        total = end = 0
        for _ in range(count):
            self._skip(self._length(_MAX_NAME_BYTES))
            dimensions = self._uint("I")
            if dimensions > 8:
                raise self._broken(f"a tensor claims {dimensions} dimensions")
            weights = 1
            for size in self._unpack("Q" * dimensions):
                weights *= size
            kind, offset = self._unpack("IQ")
            block, block_bytes = _BLOCKS.get(kind, (1, 0))
            size = -(-weights // block) * block_bytes
            total += size
            end = max(end, offset + size)
        return _Tensors(total, end)

    def _value(self, kind: int) -> Value | None:
        if kind == _STRING:
            return self._text(_MAX_TEXT_BYTES)
        if kind == _ARRAY:
            return self._array()
        scalar = _SCALARS.get(kind)
        if scalar is None:
            raise self._broken(f"a setting has the unknown type {kind}")
        (value,) = self._unpack(scalar)
        return value

    def _array(self) -> list[int] | None:
        kind, count = self._unpack("IQ")
        if kind == _STRING:
            if count > min(_MAX_STRINGS, self._left // 8):
                raise self._broken(f"a list claims {count} texts")
            for _ in range(count):
                self._skip(self._length(_MAX_TEXT_BYTES))
            return None
        scalar = _SCALARS.get(kind)
        if scalar is None:
            raise self._broken(f"a list has the unknown type {kind}")
        if count > _MAX_KEPT_ITEMS or kind in (6, 12):
            self._skip(count * struct.calcsize(scalar))
            return None
        return [int(item) for item in self._unpack(scalar * count)]

    def _text(self, most: int) -> str:
        return self._take(self._length(most)).decode("utf-8", "replace")

    def _length(self, most: int) -> int:
        length = self._uint("Q")
        if length > most:
            raise self._broken(f"a text claims {length} bytes")
        return length

    def _uint(self, form: str) -> int:
        return int(self._unpack(form)[0])

    def _unpack(self, form: str) -> tuple[int, ...]:
        form = "<" + form
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, size: int) -> bytes:
        if size > self._left:
            raise self._broken("the file ends inside it", "it is truncated")
        self._left -= size
        return self._file.read(size)

    def _skip(self, size: int) -> None:
        if size < 4096:
            self._take(size)
        elif size > self._left:
            raise self._broken("the file ends inside it", "it is truncated")
        else:
            self._left -= size
            self._file.seek(size, 1)

    def _broken(self, why: str, what: str = "its header is broken") -> StartupError:
        return StartupError(f"The model file {self._path} can't be used: {what} ({why}). Download it again.")


def _header(found: Mapping[str, Value], tensor_count: int, tensor_bytes: int) -> GgufHeader:
    architecture = _str(found, "general.architecture")

    def of(key: str, default: int = 0) -> int:
        return _int(found, f"{architecture}.{key}", default)

    n_layers, n_heads = of("block_count"), of("attention.head_count")
    per_layer = found.get(f"{architecture}.attention.head_count_kv", n_heads)
    n_heads_kv = sum(per_layer) if isinstance(per_layer, list) else _whole(per_layer, n_heads) * n_layers
    head_width = of("embedding_length") // n_heads if n_heads else 0
    latent = of("attention.kv_lora_rank")  # multi-head latent attention keeps one narrow row a layer
    kv_width = (
        n_layers * (latent + of("rope.dimension_count"))
        if latent
        else n_heads_kv * (of("attention.key_length", head_width) + of("attention.value_length", head_width))
    )
    file_type = _int(found, "general.file_type", -1)
    return GgufHeader(
        architecture=architecture,
        name=_str(found, "general.name"),
        quantization=_FILE_TYPES.get(file_type, "" if file_type < 0 else f"type {file_type}"),
        n_ctx_train=of("context_length"),
        n_layers=n_layers,
        n_embd=of("embedding_length"),
        n_heads=n_heads,
        n_heads_kv=n_heads_kv,
        kv_width=kv_width,
        sliding_window=of("attention.sliding_window"),
        tensor_count=tensor_count,
        tensor_bytes=tensor_bytes,
        split_count=_int(found, "split.count", 1) or 1,
        has_chat_template="tokenizer.chat_template" in found,
        is_embedding=of("pooling_type") > 0 or found.get(f"{architecture}.attention.causal") is False,
    )


def _int(found: Mapping[str, Value], key: str, default: int) -> int:
    return _whole(found.get(key), default)


def _whole(value: Value | None, default: int) -> int:
    """Some files have a list, one entry a layer, where others have one number: the largest stands for all."""
    if isinstance(value, list):
        return max(value, default=default)
    return int(value) if isinstance(value, int) and value >= 0 else default


def _str(found: Mapping[str, Value], key: str) -> str:
    value = found.get(key)
    return value if isinstance(value, str) else ""
