"""What is asked of a model, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, IntEnum

import msgspec

CHARS_PER_TOKEN = 4
"""How many characters one token is taken for where nobody counted (X41)."""


class Operation(Enum):
    """An OpenAI inference operation; the value is its path below the API's root."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    EMBEDDING = "/v1/embeddings"

    @property
    def path(self) -> str:
        """The request path on an OpenAI-compatible server."""
        return self.value

    @property
    def streams(self) -> bool:
        """Whether the API knows a streamed form of it."""
        return self is not Operation.EMBEDDING


class Priority(IntEnum):
    """The class in which a request waits for its place: higher ones get more of what there is, none gets nothing."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request. `estimated`: the backend didn't say, so we counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


def estimate_tokens(chars: int) -> int:
    """Tokens in a text of *chars* characters, rounded up (X41)."""
    return -(-chars // CHARS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a backend may take. `first_byte` counts from the request's last byte; `idle` between two reads; `total`
    from the request's start to the answer's end."""

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 600.0
    total_s: float = math.inf
