"""Models that Ollama has pulled: its manifest names the blob, which is a GGUF file; used in place, never copied."""

from __future__ import annotations

import json
import re
from pathlib import Path

from headrace.domain.fleet import near_names
from headrace.kernel.errors import StartupError

_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_MANIFEST = 1 << 20
_MAX_LISTED = 1000


def ollama_blob(name: str, store: Path) -> Path:
    """The GGUF file of Ollama's model *name* (`[[host/]namespace/]name[:tag]`) in the folder *store*.

    Raises:
        StartupError: Ollama has no such model here (near names are given), or its files are not as expected.
    """
    manifest = store / "manifests" / Path(*_manifest_parts(name))
    try:
        text = manifest.read_bytes()[:_MAX_MANIFEST]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise _unknown(name, store) from None
    except OSError as error:
        raise StartupError(f"Ollama's manifest {manifest} can't be read: {error.strerror}.") from None
    blob = store / "blobs" / _model_digest(text, manifest).replace(":", "-")
    if not blob.is_file():
        raise StartupError(
            f"Ollama's model {name} is incomplete ({blob} is missing); run: ollama pull {name}"
        )
    return blob


def ollama_names(store: Path) -> list[str]:
    """The models that Ollama has here, as one writes them."""
    names = []
    manifests = store / "manifests"
    for path in sorted(manifests.glob("*/*/*/*"))[:_MAX_LISTED]:
        host, namespace, model, tag = path.relative_to(manifests).parts
        short = (
            [host, namespace, model]
            if host != _HOST
            else [namespace, model]
            if namespace != _NAMESPACE
            else [model]
        )
        names.append("/".join(short) + ("" if tag == _TAG else f":{tag}"))
    return names


def _manifest_parts(name: str) -> list[str]:
    path, _, tag = name.partition(":")
    parts = path.split("/")
    parts = [_HOST, _NAMESPACE][: max(0, 3 - len(parts))] + parts + [tag or _TAG]
    if len(parts) != 4 or not all(_PART.fullmatch(part) for part in parts):
        raise StartupError(
            f"'ollama:{name}' is not a model name; write it like ollama:llama3.2 or ollama:llama3.2:1b."
        )
    return parts


def _model_digest(text: bytes, manifest: Path) -> str:
    try:
        layers = json.loads(text)["layers"]
        digests = [str(layer["digest"]) for layer in layers if layer["mediaType"] == _MODEL_LAYER]
    except (ValueError, KeyError, TypeError):
        raise StartupError(f"Ollama's manifest {manifest} isn't understood; pull the model again.") from None
    if not digests or not _DIGEST.fullmatch(digests[0]):
        raise StartupError(f"Ollama's manifest {manifest} names no model file; pull the model again.")
    return digests[0]


def _unknown(name: str, store: Path) -> StartupError:
    known = ollama_names(store)
    if not known:
        return StartupError(f"Ollama has no models in {store}; set OLLAMA_MODELS if they lie elsewhere.")
    near = near_names(name, known) or known[:3]
    return StartupError(
        f"Ollama has no model {name} here; it has {', '.join(near)}. Or run: ollama pull {name}"
    )
