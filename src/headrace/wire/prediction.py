"""TensorFlow Serving's REST API: what is asked of a model that predicts, and where.

Source: the RESTful API page of TensorFlow Serving's documentation, and the paths and statuses in its server's source. A backend reads
the model's name and a label from its path with `%` escapes undone; neither holds a slash or a colon there.
"""

from __future__ import annotations

import re
from urllib.parse import quote

import msgspec

from headrace.domain.inference import Operation
from headrace.kernel.errors import InvalidRequest
from headrace.wire.members import Members, split

MOST_NAME_CHARS = 512
_NOT_FINITE = re.compile(rb"NaN|Infinity")
_VERSION = re.compile(r"(?P<model>.+)/(?P<part>(?:versions/[0-9]{1,19}|labels/[^/:]+))")
_NO_NAMES: frozenset[str] = frozenset()
_ASKING = (Operation.METADATA, Operation.STATUS)


class Prediction(msgspec.Struct):
    """One request about a model that predicts.

    part: which of its versions, as `versions/3` or `labels/stable`; empty: the newest. raw: the body, passed on as it came;
    empty where there is none. members: those of the body.
    """

    operation: Operation
    model: str
    part: str = ""
    raw: bytes = b""
    members: Members = {}

    @property
    def prompt_tokens(self) -> int:
        """None: what predictions are made of has no tokens."""
        return 0

    @property
    def prompt_member(self) -> str:
        """The member that is too long where a request is."""
        return "instances"

    @property
    def method(self) -> str:
        """How it is asked."""
        return "GET" if self.operation in _ASKING else "POST"

    def path(self, model: str) -> str:
        """Where a backend that knows the model as *model* is asked."""
        where = "/".join(quote(name, safe="") for name in (model, *self.part.split("/", 1)) if name)
        return self.operation.path.replace("{model}", where)


def read_prediction(operation: Operation, target: str, raw: bytes = b"") -> Prediction:
    """A request about the model that *target* names, as it stands in the path: `name`, `name/versions/3`, `name/labels/stable`.

    The model's name may have slashes and colons. Nothing in the body is looked at but that it is a JSON object, in which numbers
    may be NaN and Infinity, as TensorFlow Serving takes them.

    Raises:
        InvalidRequest: the name is too long, or the body isn't a JSON object.
    """
    if len(target) > MOST_NAME_CHARS:
        raise InvalidRequest("The name of the model is too long.", param="model", code="invalid_value")
    match = _VERSION.fullmatch(target)
    model, part = match.group("model", "part") if match else (target, "")
    if operation in _ASKING:
        return Prediction(operation, model, part)
    return Prediction(operation, model, part, raw, split(_NOT_FINITE.sub(b"0", raw), _NO_NAMES))
