"""What is asked of a model, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, IntEnum

import msgspec

CHARS_PER_TOKEN = 4
"""How many characters one token is taken for where nobody counted (X41)."""


class Api(Enum):
    """A family of operations: a backend speaks one, and is asked for no other's."""

    OPENAI = "openai"
    PREDICTION = "prediction"  # TensorFlow Serving's


class Operation(Enum):
    """What can be asked of a model; the value is its path below the API's root, with `{model}` where that names the model.

    api: the family that it is of.
    """

    _value_: str
    api: Api

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    EMBEDDING = "/v1/embeddings"
    PREDICT = "/v1/models/{model}:predict", Api.PREDICTION
    CLASSIFY = "/v1/models/{model}:classify", Api.PREDICTION
    REGRESS = "/v1/models/{model}:regress", Api.PREDICTION
    METADATA = "/v1/models/{model}/metadata", Api.PREDICTION
    STATUS = "/v1/models/{model}", Api.PREDICTION

    def __new__(cls, path: str, api: Api = Api.OPENAI) -> Operation:
        """The member for *path*; of OpenAI's API unless another is named."""
        member = object.__new__(cls)
        member._value_ = path
        member.api = api
        return member

    @classmethod
    def of(cls, api: Api) -> tuple[Operation, ...]:
        """All of one family."""
        return tuple(operation for operation in cls if operation.api is api)

    @property
    def path(self) -> str:
        """The request path on a server that speaks its API."""
        return self._value_

    @property
    def streams(self) -> bool:
        """Whether the API knows a streamed form of it."""
        return self is Operation.CHAT or self is Operation.COMPLETION


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
