from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.engine.gguf import read_header
from headrace.kernel.errors import StartupError
from support.gguf import LLAMA, Tensor, gguf_bytes, write_gguf


def test_reads_what_the_file_says(tmp_path: Path) -> None:
    header = read_header(write_gguf(tmp_path / "m.gguf"))
    assert (header.architecture, header.name, header.quantization) == ("llama", "Tiny", "Q4_1")
    assert (header.n_ctx_train, header.n_embd, header.n_layers) == (2048, 64, 2)
    assert (header.n_heads, header.n_heads_kv) == (4, 4)  # two in each of two layers
    assert header.kv_width == 2 * 2 * (16 + 16)
    assert header.tensor_bytes == 8 * 4 * 4
    assert header.has_chat_template
    assert not header.is_embedding


def test_heads_may_differ_by_layer(tmp_path: Path) -> None:
    header = read_header(
        write_gguf(tmp_path / "m.gguf", settings=LLAMA | {"llama.attention.head_count_kv": [4, 0]})
    )
    assert header.n_heads_kv == 4


def test_weights_count_by_their_quantization(tmp_path: Path) -> None:
    tensors = [Tensor("a", (256, 2), kind=12), Tensor("b", (64,), kind=8, offset=288)]
    assert (
        read_header(write_gguf(tmp_path / "m.gguf", tensors=tensors, data_bytes=512)).tensor_bytes == 288 + 68
    )


@pytest.mark.parametrize(
    "change", [{"bert.attention.causal": False}, {"bert.pooling_type": 1}], ids=["attends both ways", "pools"]
)
def test_knows_a_model_made_for_embeddings(tmp_path: Path, change: dict[str, object]) -> None:
    settings = {"general.architecture": "bert", **change}
    assert read_header(write_gguf(tmp_path / "m.gguf", settings=settings)).is_embedding


def test_a_number_where_a_text_belongs_is_no_crash(tmp_path: Path) -> None:
    changed = LLAMA | {"general.name": 7, "llama.block_count": "many", "llama.attention.head_count": True}
    assert read_header(write_gguf(tmp_path / "m.gguf", settings=changed)).name == ""


BAD = {
    "not a GGUF file (it begins with b'PK\\x03\\x04')": b"PK\x03\x04" + bytes(100),
    "not a GGUF file (it is empty)": b"",
    "GGUF version 1;": gguf_bytes(version=1),
    "GGUF version 50331648;": b"GGUF" + struct.pack(">I", 3) + bytes(64),
    "truncated": gguf_bytes()[:60],
    "it is truncated (its header lists 64 B more": gguf_bytes(data_bytes=64),
    "unknown type 99": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<QcI", 1, b"k", 99) + bytes(9),
}


@pytest.mark.req("D14")
@pytest.mark.parametrize("wanted", BAD)
def test_a_bad_file_is_named_in_one_sentence(tmp_path: Path, wanted: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(BAD[wanted])
    with pytest.raises(StartupError) as caught:
        read_header(path)
    assert wanted in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.req("D14")
def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="There is no model file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(StartupError, match="is a folder"):
        read_header(tmp_path)


def huge(form: str, *values: object) -> bytes:
    return (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Qc", 1, b"k")
        + struct.pack(form, *values)
        + bytes(64)
    )


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + bytes(64),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(64),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62) + bytes(64),
        huge("<IQ", 8, 2**40),
        huge("<IIQ", 9, 8, 2**40),
        huge("<IIQ", 9, 4, 2**60),
        huge("<IIQ", 9, 9, 2),
    ],
    ids=["tensors", "settings", "key", "text", "texts", "numbers", "lists in lists"],
)
def test_a_hostile_header_allocates_nothing(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(StartupError):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 500), change=st.binary(min_size=1, max_size=9), cut=st.integers(0, 600))
def test_whatever_is_broken_only_startup_errors_come(
    tmp_path: Path, position: int, change: bytes, cut: int
) -> None:
    data = bytearray(gguf_bytes())
    data[position : position + len(change)] = change
    path = tmp_path / "m.gguf"
    path.write_bytes(data[: len(data) - cut])
    with contextlib.suppress(StartupError):
        read_header(path)
