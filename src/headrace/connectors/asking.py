"""Asking a backend about itself: a few short questions, each bounded, and every trouble told in one sentence."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import msgspec

from headrace.core.fetch import FetchFailed, Response, fetch
from headrace.domain.fleet import ModelInfo
from headrace.domain.inference import Timeouts
from headrace.ports.backend import BackendSpec, Unwell
from headrace.ports.connector import Connector, Lost, UpstreamRequest
from headrace.wire.openai import read_error

MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_MODELS = 10_000
_LOOK_S = 5.0
_CONNECT_S = 2.0
_KEY_STATUSES = frozenset({401, 403, 407})
NOT_THERE = frozenset({404, 405, 501})
"""What a server says of a path that it doesn't have."""


class Asker:
    """Asks one backend. One question takes `limit_s` at most, less where the backend's own time limits are shorter."""

    def __init__(self, connector: Connector, spec: BackendSpec) -> None:
        own = spec.timeouts
        self.limit_s = min(_LOOK_S, own.first_byte_s)
        self._connector = connector
        self._timeouts = Timeouts(
            connect_s=min(_CONNECT_S, own.connect_s), first_byte_s=self.limit_s, idle_s=self.limit_s
        )

    async def get(self, path: str) -> Response:
        """The answer to `GET path`, whatever its status.

        Raises:
            Unwell: there is none in time, or it doesn't take our key.
        """
        request = UpstreamRequest(method="GET", path=path, timeouts=self._timeouts)
        try:
            async with asyncio.timeout(self.limit_s + self._timeouts.connect_s):
                response = await self._fetch(request)
        except FetchFailed as error:
            raise Unwell(_sentence(error.failure.reason)) from None
        except TimeoutError:
            raise Unwell(f"Its answer to {path} was not complete within {self.limit_s:g} s.") from None
        if response.status in _KEY_STATUSES:
            # Its own words are left out: they may hold part of the key.
            raise Unwell(f"It refuses our key ({response.status} to {path}).", refused_key=True)
        return response

    async def _fetch(self, request: UpstreamRequest) -> Response:
        """Ask again where the connection broke: a server that hangs up after each answer, without saying so, may have done it in
        the moment in which the next question was sent; and questions may be asked twice."""
        try:
            return await fetch(self._connector, request, max_bytes=MAX_ANSWER_BYTES)
        except FetchFailed as error:
            if not isinstance(error.failure, Lost) or error.failure.timed_out:
                raise
        return await fetch(self._connector, request, max_bytes=MAX_ANSWER_BYTES)

    async def json(self, path: str) -> dict[str, Any] | None:
        """The JSON object at *path*; None where there isn't one.

        Raises:
            Unwell: as `get`, or it is in trouble (a status from 500).
        """
        response = await self.get(path)
        if response.status >= 500 and response.status not in NOT_THERE:
            raise unwell(response, path)
        return members(response) if response.status == 200 else None


def unwell(response: Response, path: str) -> Unwell:
    """What an answer of the wrong status says."""
    message = read_error(response.body)[0][:200]
    return Unwell(
        f"It answers {response.status} to {path}" + (f": {message.rstrip('.')}." if message else ".")
    )


def members(response: Response) -> dict[str, Any] | None:
    """The body, where it is a JSON object; else None."""
    try:
        found = msgspec.json.decode(response.body)
    except (msgspec.DecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class Listed(NamedTuple):
    """A model as `/v1/models` lists it; `said`: all that stands there."""

    info: ModelInfo
    said: dict[str, Any]


def read_listing(response: Response) -> list[Listed] | None:
    """The models of an answer to `/v1/models`; None where it isn't one."""
    found = objects((members(response) or {}).get("data"))
    if found is None or not all(isinstance(item.get("id"), str) and item["id"] for item in found):
        return None
    return [
        Listed(
            ModelInfo(item["id"], whole(item.get("created")) or 0, word(item.get("owned_by")) or "headrace"),
            item,
        )
        for item in found
    ]


def objects(value: object) -> list[dict[str, Any]] | None:
    """*value*, where it is a list of JSON objects, of a bounded length; else None."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    return value[:MAX_MODELS]


def word(value: object) -> str:
    """*value* where it is text, bounded; else nothing."""
    return value[:200] if isinstance(value, str) else ""


def whole(value: object) -> int | None:
    """*value* where it is a whole number above 0."""
    return value if type(value) is int and value > 0 else None


def _sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:].rstrip(".") + "."
