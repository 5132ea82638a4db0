"""The command line of llama.cpp's server as an engine of ours. Source of its options: its own `--help`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

_PROGRAM = re.compile(r"llama-server(?:[-_.].*)?(?:\.exe)?")
_WHOLE = re.compile(r"-?\d{1,9}")
_OPTIONS = {
    **dict.fromkeys(("-m", "--model"), "model"),
    **dict.fromkeys(("-hf", "-hfr", "--hf-repo"), "repository"),
    **dict.fromkeys(("-hff", "--hf-file"), "file"),
    **dict.fromkeys(("-c", "--ctx-size"), "n_ctx"),
    **dict.fromkeys(("-np", "--parallel"), "parallel"),
    **dict.fromkeys(("-ngl", "--gpu-layers", "--n-gpu-layers"), "n_gpu_layers"),
    **dict.fromkeys(("-mg", "--main-gpu"), "main_gpu"),
    **dict.fromkeys(("-b", "--batch-size"), "n_batch"),
    **dict.fromkeys(("-t", "--threads"), "threads"),
}
_EMBEDDINGS = ("--embedding", "--embeddings")
_OURS = frozenset({"--port", "--host", "-a", "--alias", "--api-key", "--api-key-file"})
"""What Headrace says to its engines itself."""
_BOUNDS = {"n_ctx": 0, "parallel": 1, "n_gpu_layers": -1, "main_gpu": 0, "n_batch": 1, "threads": 0}
_MOST_PARALLEL = 256
_ALL_LAYERS = 999
_LONGEST_OPTION = 40


@dataclass
class Command:
    """A command that starts llama.cpp's server. left: its options that have no place here, each with the reason."""

    said: dict[str, str] = field(default_factory=dict)
    embeddings: bool = False
    left: list[tuple[str, str]] = field(default_factory=list)

    @property
    def model(self) -> str | None:
        """What an engine's `model` says; None where it can't be said: then `left` says why."""
        path, repository, file = (self.said.get(name, "") for name in ("model", "repository", "file"))
        if path.endswith(".gguf"):
            return path
        if repository and file.endswith(".gguf"):
            return f"hf:{repository.partition(':')[0]}/{file}"
        if repository:
            self.left.append(
                ("-hf", f'It names no file: write model = "hf:{repository.partition(":")[0]}/FILE.gguf".')
            )
        else:
            self.left.append(("-m", "It names no .gguf file."))
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """The engine's other settings. Where the command is silent, what that server would do: the model's whole context,
        which one request at a time can use."""
        found: dict[str, Any] = {"n_ctx": 0, "parallel": 1}
        for name, least in _BOUNDS.items():
            text = self.said.get(name)
            if text is None:
                continue
            if name == "n_gpu_layers" and text in ("auto", "all"):
                found[name] = -1 if text == "auto" else _ALL_LAYERS
            elif not _WHOLE.fullmatch(text) or int(text) < min(least, -1):
                self.left.append((name, f"{text[:20]!r} is not a number that it can have."))
            else:
                found[name] = max(int(text), least)
        found["parallel"] = min(found["parallel"], _MOST_PARALLEL)
        return found | ({"embeddings": True} if self.embeddings else {})


def parse(text: str) -> Command | None:
    """What a command says, comments and line breaks left out; None where it starts something else than llama.cpp's server."""
    try:
        words = shlex.split(_without_comments(text))
    except ValueError:
        return None
    if not words or not _PROGRAM.fullmatch(PurePosixPath(words[0].replace("\\", "/")).name):
        return None
    command = Command()
    for option, value in _options(words[1:]):
        if (name := _OPTIONS.get(option)) is not None and value is not None:
            command.said[name] = value
        elif option in _EMBEDDINGS:
            command.embeddings = True
        elif option not in _OURS:
            command.left.append((option[:_LONGEST_OPTION], "Engines have no such setting."))
    return command


def _without_comments(text: str) -> str:
    """A command of several lines as one, without the lines that begin with `#`."""
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line.removesuffix("\\").strip() for line in lines if line and not line.startswith("#"))


def _options(words: list[str]) -> Iterator[tuple[str, str | None]]:
    """Each option with its value. What follows one and begins with a dash is another, unless it is a number."""
    index = 0
    while index < len(words):
        option, equals, value = words[index].partition("=")
        index += 1
        if not option.startswith("-"):
            continue
        if equals:
            yield option, value
        elif option not in _EMBEDDINGS and index < len(words) and _is_value(words[index]):
            yield option, words[index]
            index += 1
        else:
            yield option, None


def _is_value(word: str) -> bool:
    return not word.startswith("-") or bool(re.fullmatch(r"-\d+(?:\.\d+)?", word))
