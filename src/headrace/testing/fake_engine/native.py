"""What products tell of themselves beside OpenAI's API, as the fake engine tells it in each one's dialect."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.testing.fake_engine.answers import Json, error
from headrace.testing.fake_engine.script import Script

OWNERS = {
    "llama.cpp": "llamacpp",
    "vllm": "vllm",
    "lm-studio": "organization_owner",
    "ollama": "library",
    "sglang": "sglang",
}
"""Whom `/v1/models` names as the owner."""
_MODIFIED = "2026-05-04T17:37:44.706015396-07:00"
_DIGEST = "sha256:" + "0" * 64


def is_guarded(path: str) -> bool:
    """Whether products ask for the key at this path; none does for `/health`."""
    return path.startswith(("/v1/", "/api/")) or path in ("/props", "/slots")


def about(
    path: str, script: Script, ids: list[str], loaded: list[str], busy: int
) -> tuple[int, Json | list[Json]] | None:
    """The status and the JSON that the product answers with at *path*; None where it has no such path.

    ids: the models it has; loaded: those in memory; busy: slots that work.
    """
    match script.dialect, path:
        case (("llama.cpp" | "vllm" | "openai"), "/health"):
            return 200, {"status": "ok"}
        case "llama.cpp", "/props":
            return 200, {"total_slots": script.slots, "build_info": "b1-fake", "model_alias": ids[0]}
        case "llama.cpp", "/slots":
            return 200, [{"id": number, "is_processing": number < busy} for number in range(script.slots)]
        case "vllm", "/version":
            return 200, {"version": "0.1-fake"}
        case "tgi", "/info":
            return 200, {"model_id": ids[0], "version": "3.0-fake", "max_concurrent_requests": script.slots}
        case "lm-studio", "/api/v0/models":
            states = [{"id": name, "state": "loaded" if name in loaded else "not-loaded"} for name in ids]
            return 200, {"object": "list", "data": states}
        case "ollama", "/api/version":
            return 200, {"version": "0.1-fake"}
        case "ollama", "/api/tags":
            return 200, {"models": [_tag(name) for name in ids]}
        case "ollama", "/api/ps":
            return 200, {
                "models": [_tag(name) | {"expires_at": _MODIFIED, "size_vram": 0} for name in loaded]
            }
    return None


def _tag(name: str) -> Json:
    details = {"format": "gguf", "family": "fake", "parameter_size": "1M", "quantization_level": "F16"}
    return {
        "name": name,
        "model": name,
        "modified_at": _MODIFIED,
        "size": 1000,
        "digest": _DIGEST,
        "details": details,
    }


def pull_lines(*, known: bool) -> Iterator[bytes]:
    """The lines of Ollama's answer to `/api/pull`."""
    for line in (
        _pull()
        if known
        else [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}]
    ):
        yield msgspec.json.encode(line) + b"\n"


def _pull() -> Iterator[Json]:
    yield {"status": "pulling manifest"}
    for completed in (0, 400, 1000):
        yield {"status": f"pulling {_DIGEST[7:19]}", "digest": _DIGEST, "total": 1000, "completed": completed}
    yield {"status": "verifying sha256 digest"}
    yield {"status": "writing manifest"}
    yield {"status": "success"}


def refused_key() -> Json:
    """The body of a 401."""
    return error(401, "Invalid API Key", "authentication_error")
