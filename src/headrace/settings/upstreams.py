"""`[[upstreams]]` and `[ollama]`: endpoints that already serve models."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Self

from pydantic import Field, model_validator

from headrace.kernel.errors import ConfigError
from headrace.settings.section import Section
from headrace.settings.values import (
    HEADER_SAFE,
    BackendUrl,
    ConfiguredPath,
    Name,
    OptionalKey,
    OptionalSeconds,
    Seconds,
)

KINDS = "headrace.backends"
"""The entry-point group whose names `kind` accepts; the same as `ports.backend.GROUP`, which is on our own floor."""


def known_kinds() -> frozenset[str]:
    """The kinds of backends that the installed packages bring. Reads their metadata, and loads none of them."""
    return frozenset(point.name for point in entry_points(group=KINDS))


class UpstreamTimeouts(Section):
    """How long an upstream may take."""

    connect: Seconds = Field(default=5.0, gt=0, description="Time to open a connection.")
    first_byte: Seconds = Field(
        default=600.0, gt=0, description="Time from the request's last byte to the answer's first."
    )
    idle: Seconds = Field(default=600.0, gt=0, description="Longest pause within an answer.")
    total: OptionalSeconds = Field(
        default=None,
        gt=0,
        description="Time from sending a request to the end of its answer; unset: no limit.",
    )


class Upstream(Section):
    """An endpoint that already serves models."""

    name: Name = Field(description="Its name here; unique.")
    url: BackendUrl = Field(description="Its address, `http://host:port`; a trailing `/v1` is dropped.")
    kind: str = Field(
        default="openai",
        description="What it speaks: `openai` (vLLM, llama.cpp's server, TGI, SGLang, LM Studio, LocalAI, hosted services), "
        "`ollama`, `anthropic`, `tf-serving` (TensorFlow Serving), or a kind that another installed package brings.",
    )
    models: tuple[str, ...] = Field(
        default=(), description="Models to use of it; empty: it is asked, which `tf-serving` can't be."
    )
    capacity: int | None = Field(
        default=None, ge=1, description="Requests it takes at once; unset: what it says itself, else 64."
    )
    weight: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="How much of the work it gets, beside others, where a route divides by weight.",
    )
    cancels_unstreamed: bool | None = Field(
        default=None,
        description="Whether a client's leaving stops its unstreamed answers, too (vLLM and SGLang: yes; llama.cpp: no). If "
        "not, whole answers are asked for as streams and put together here. Unset: yes for Ollama, else no.",
    )
    tags: tuple[Name, ...] = Field(default=(), description="Words to select it by.")
    api_key: OptionalKey = Field(
        default=None,
        description="The key it asks for. Better in `api_key_file` or the environment than in a file.",
    )
    api_key_file: ConfiguredPath = Field(
        default=None, description="File that holds the key, and nothing else."
    )
    ca_file: ConfiguredPath = Field(
        default=None, description="Certificates (PEM) to trust for `https`, instead of the system's."
    )
    timeouts: UpstreamTimeouts = UpstreamTimeouts()

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key and self.api_key_file:
            raise ValueError("has both api_key and api_key_file; keep one of them")
        return self

    def read_api_key(self) -> str | None:
        """The key to present, from the settings or from `api_key_file`; None where there is none.

        Raises:
            ConfigError: the file can't be read, or doesn't hold one word.
        """
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        if self.api_key_file is None:
            return None
        where = f"api_key_file of the upstream {self.name!r} ({self.api_key_file})"
        try:
            text = self.api_key_file.read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(f"The {where} can't be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"The {where} is not a text file.") from error
        if not HEADER_SAFE.fullmatch(text):
            raise ConfigError(f"The {where} has to hold one key and nothing else.")
        return text


class Ollama(Section):
    """An Ollama on this machine, which is used when it is there."""

    probe: bool = Field(default=True, description="Look for it, and serve its models.")
    url: BackendUrl = Field(default="http://127.0.0.1:11434", description="Where to look.")
