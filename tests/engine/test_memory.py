from __future__ import annotations

from pathlib import Path

import pytest

from headrace.engine.gguf import GgufHeader, read_header
from headrace.engine.memory import available_memory_bytes, check_fits, estimate_memory_bytes
from headrace.kernel.errors import StartupError
from support.gguf import LLAMA, Tensor, write_gguf

GIB = 1 << 30


def header(tmp_path: Path, **settings: object) -> GgufHeader:
    changed = {f"llama.{name.replace('__', '.')}": value for name, value in settings.items()}
    return read_header(write_gguf(tmp_path / "m.gguf", settings=LLAMA | changed))


def test_the_cache_grows_with_the_context(tmp_path: Path) -> None:
    model = header(tmp_path)
    more = estimate_memory_bytes(model, n_ctx=2000) - estimate_memory_bytes(model, n_ctx=1000)
    assert more == 1000 * model.kv_width * 2
    assert estimate_memory_bytes(model, n_ctx=0) == estimate_memory_bytes(model, n_ctx=model.n_ctx_train)


def test_a_sliding_window_needs_less(tmp_path: Path) -> None:
    plain, sliding = header(tmp_path), header(tmp_path, attention__sliding_window=512)
    assert estimate_memory_bytes(sliding, n_ctx=100_000) < estimate_memory_bytes(plain, n_ctx=100_000)
    assert estimate_memory_bytes(sliding, n_ctx=100) == estimate_memory_bytes(plain, n_ctx=100)


def test_a_model_in_pieces_counts_whole(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "five.gguf", settings=LLAMA | {"split.count": 5})
    one, five = header(tmp_path), read_header(path)
    more = estimate_memory_bytes(five, n_ctx=8) - estimate_memory_bytes(one, n_ctx=8)
    assert more == pytest.approx(4 * one.tensor_bytes * 1.05, abs=5)


@pytest.mark.req("D14")
def test_a_model_that_claims_500_gb_is_refused_with_both_numbers(tmp_path: Path) -> None:
    # A sparse file as long as its header says: only the header is ever read.
    path = write_gguf(tmp_path / "big.gguf", tensors=[Tensor("a", (500 * GIB // 4,))])
    with path.open("r+b") as file:
        file.truncate(500 * GIB + 4096)
    with pytest.raises(StartupError) as caught:
        check_fits(read_header(path), 8 * GIB, n_ctx=8192, model="big.gguf")
    assert "big.gguf needs about 525.1 GiB, and 8.0 GiB are free" in caught.value.message


def test_what_fits_passes_and_so_does_everything_on_an_unknown_machine(tmp_path: Path) -> None:
    model = header(tmp_path)
    need = estimate_memory_bytes(model, n_ctx=8192)
    check_fits(model, need, n_ctx=8192, model="m")
    check_fits(model, None, n_ctx=8192, model="m")
    with pytest.raises(StartupError):
        check_fits(model, need - 1, n_ctx=8192, model="m")


def machine(root: Path, cgroup: str, **files: str) -> Path:
    content = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", "proc/self/cgroup": cgroup}
    for name, text in (content | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_memory_of_the_machine(tmp_path: Path) -> None:
    assert available_memory_bytes(machine(tmp_path, "0::/\n")) == 8000 * 1024


@pytest.mark.parametrize("group", ["/", "/a", "/a/b", "/elsewhere/on/the/host"])
def test_cgroup_2_limits_it_at_any_height(tmp_path: Path, group: str) -> None:
    at = "sys/fs/cgroup/a/" if group.startswith("/a") else "sys/fs/cgroup/"
    files = {at + "memory.max": "1000000\n", at + "memory.current": "400000\n"}
    files[at + "memory.stat"] = "anon 5\ninactive_file 100000\n"
    assert available_memory_bytes(machine(tmp_path, f"0::{group}\n", **files)) == 700_000


def test_cgroup_1_limits_it_too(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/memory/x/"
    files = {at + "memory.limit_in_bytes": "500000\n", at + "memory.usage_in_bytes": "600000\n"}
    assert available_memory_bytes(machine(tmp_path, "4:cpu,memory:/x\n0::/\n", **files)) == 0


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_no_limit_is_no_limit(tmp_path: Path, limit: str) -> None:
    one, two = "sys/fs/cgroup/memory/", "sys/fs/cgroup/"
    files = {one + "memory.limit_in_bytes": limit, one + "memory.usage_in_bytes": "1"}
    files |= {two + "memory.max": limit, two + "memory.current": "1"}
    assert available_memory_bytes(machine(tmp_path, "4:memory:/\n0::/\n", **files)) == 8000 * 1024


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path) is None
