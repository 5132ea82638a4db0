"""An answer that remembers what it was told, and chunks as a backend sends them."""

from __future__ import annotations

import json
from typing import Any

from headrace.core.answer import Answer
from headrace.kernel.errors import RequestError
from headrace.ports.control import Grant


class RecordedAnswer(Answer):
    """Remembers every call."""

    def __init__(self) -> None:
        self.content_type: bytes | None = None
        self.body = b""
        self.error: RequestError | None = None
        self.ended = False
        self.calls: list[str] = []

    def head(self, content_type: bytes, grant: Grant) -> None:
        """Remember it."""
        self.calls.append("head")
        self.content_type = content_type

    def data(self, chunk: bytes) -> None:
        """Remember it."""
        assert chunk, "data is never empty"
        self.calls.append("data")
        self.body += chunk

    def end(self) -> None:
        """Remember it."""
        self.calls.append("end")
        self.ended = True

    def fail(self, error: RequestError) -> None:
        """Remember it."""
        self.calls.append("fail")
        self.error = error

    @property
    def events(self) -> list[Any]:
        """The JSON of each event, and "[DONE]"."""
        datas = [event.removeprefix(b"data: ") for event in self.body.split(b"\n\n") if event]
        return ["[DONE]" if data == b"[DONE]" else json.loads(data) for data in datas]

    @property
    def json(self) -> Any:
        """The whole answer."""
        return json.loads(self.body)


def chunk(delta: dict[str, Any] | None = None, *, finish: str | None = None, **members: Any) -> bytes:
    """One chat chunk as an event."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    body = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
        **members,
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def usage_chunk(prompt: int, completion: int) -> bytes:
    """The usage chunk as an event."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return chunk(choices=[], usage=usage)


DONE = b"data: [DONE]\n\n"
