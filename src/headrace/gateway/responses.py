"""Sending the few kinds of response that aren't streams."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.types import Send

from headrace.gateway.problems import Problem

_JSON = {b"content-type": b"application/json"}


async def send_head(send: Send, status: int, headers: Mapping[bytes, bytes]) -> None:
    """The status and headers of a response."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})


async def send_body(send: Send, status: int, headers: Mapping[bytes, bytes], body: bytes) -> None:
    """A whole response."""
    await send_head(send, status, {**headers, b"content-length": str(len(body)).encode()})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, value: object, status: int = 200) -> None:
    """*value* as JSON."""
    await send_body(send, status, _JSON, msgspec.json.encode(value))


async def send_problem(send: Send, problem: Problem) -> None:
    """An error, in the envelope."""
    headers = {**_JSON, **problem.headers}
    if problem.closes:
        headers[b"connection"] = b"close"
    await send_body(send, problem.status, headers, problem.body)
