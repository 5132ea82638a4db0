"""The client's side of an inference, as core sees it."""

from __future__ import annotations

from typing import Protocol

from headrace.kernel.errors import RequestError
from headrace.ports.control import Grant


class Answer(Protocol):
    """The one who asked, told of the answer in OpenAI's form.

    Either `fail` alone; or `head`, `data` any number of times, then `end` or `fail`. Nothing after the client's `cancel`.
    May be told before `Inference.start` returned. Doesn't raise.
    """

    def head(self, content_type: bytes, grant: Grant) -> None:
        """The answer begins: status 200, a body of this type, from the node that *grant* names."""

    def data(self, chunk: bytes) -> None:
        """Some of the body, never empty; for a stream, whole events."""

    def end(self) -> None:
        """The body is complete."""

    def fail(self, error: RequestError) -> None:
        """There will be no (complete) answer. Before `head` this is the whole answer."""
