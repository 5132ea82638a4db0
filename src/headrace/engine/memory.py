"""Whether a model fits into the memory that this machine, or this container, has left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from headrace.engine.gguf import GgufHeader
from headrace.kernel.errors import StartupError
from headrace.kernel.units import format_bytes

_KV_BYTES = 2  # llama.cpp keeps keys and values as 16-bit floats unless told otherwise
_BASE_BYTES = 96 << 20  # the process, its compute buffers for a small model
_SHARE = 0.05  # compute buffers grow with the model


def estimate_memory_bytes(header: GgufHeader, *, n_ctx: int) -> int:
    """About how many bytes an engine takes: weights, a KV cache for *n_ctx* tokens (of all slots together), a margin.

    Rather too low than too high, because a refusal is final and llama.cpp refuses by itself what really doesn't fit:
    where layers attend to a sliding window, half of them are taken to need no more than that. Of a model cut into
    files, all are taken to be as large as the one that was read.
    """
    tokens = n_ctx or header.n_ctx_train
    kv_bytes = header.kv_width * _KV_BYTES * tokens
    if 0 < header.sliding_window < tokens:
        kv_bytes //= 2
    weights = header.tensor_bytes * header.split_count
    return weights + kv_bytes + _BASE_BYTES + int(weights * _SHARE)


def check_fits(header: GgufHeader, available_bytes: int | None, *, n_ctx: int, model: str) -> None:
    """Return if *header*'s model fits; an unknown `available_bytes` (None) fits everything.

    Raises:
        StartupError: it doesn't fit; says how much it needs, how much there is, and what helps. Nothing was loaded.
    """
    need = estimate_memory_bytes(header, n_ctx=n_ctx)
    if available_bytes is None or need <= available_bytes:
        return
    raise StartupError(
        f"The model {model} needs about {format_bytes(need)}, and {format_bytes(max(0, available_bytes))} are free on "
        "this machine; take a smaller or more strongly quantized model, lower n_ctx, or free some memory."
    )


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that a new process can have: what the machine has left, or less where a cgroup (v1, v2) allows less.

    None where the machine doesn't tell (not Linux). *root* is where `proc` and `sys` are.
    """
    found = [_meminfo(root / "proc/meminfo"), *_cgroups(root)]
    return min((room for room in found if room is not None), default=None)


def _meminfo(path: Path) -> int | None:
    for line in _lines(path):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _cgroups(root: Path) -> Iterator[int | None]:
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            mounts: tuple[str, ...]
            mounts, names = (
                ("sys/fs/cgroup", "sys/fs/cgroup/unified"),
                ("memory.max", "memory.current", "inactive_file"),
            )
        elif "memory" in controllers.split(","):
            mounts = ("sys/fs/cgroup/memory",)
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for mount in mounts:
            for folder in _upwards(root / mount, group):
                yield _room(folder, *names)


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    """The group's folder and those above it, as any of them may set the limit; in a container often only the mount."""
    parts = [part for part in group.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _room(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    limit, usage = _number(folder / limit_name), _number(folder / usage_name)
    if limit is None or usage is None or limit >= 1 << 60:  # v1 writes a huge number for "no limit"
        return None
    cache = 0  # file pages that the kernel gives up when asked for memory
    for line in _lines(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name == cache_name:
            cache = int(value)
    return max(0, limit - usage + cache)


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
