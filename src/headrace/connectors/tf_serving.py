"""TensorFlow Serving, over its REST API, and servers that speak it, such as OpenVINO's.

It has no list of its models: which it is asked for, the settings name. It answers a request for one that it hasn't loaded (any more)
before it begins, and works on to the end for clients that are gone.

Source: its documentation of the REST API; the messages and statuses are those of its source.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import quote

from headrace.connectors.asking import Asker, members, objects, unwell, word
from headrace.connectors.opening import bearer, open_http
from headrace.connectors.refusals import Dialect, retry_after
from headrace.core.fetch import Response
from headrace.domain.fleet import ModelInfo
from headrace.domain.inference import Api
from headrace.kernel.clock import Clock
from headrace.kernel.errors import ConfigError
from headrace.ports.backend import BackendKind, BackendSpec, Opened, Prober, Report, Unwell
from headrace.ports.connector import Busy, Connector, Failure, Headers, Loading, Lost
from headrace.wire.openai import read_error

_AT_ONCE = 8
"""Questions about models at the same time."""
_LOOK_S = 10.0
"""For all of them together."""


class TfServingKind(BackendKind):
    """What TensorFlow Serving speaks."""

    name = "tf-serving"
    title = "TensorFlow Serving, OpenVINO Model Server"

    def open(self, spec: BackendSpec, clock: Clock) -> Opened:
        """See the port."""
        if not spec.models:
            raise ConfigError(
                f"The upstream {spec.name!r} has to name its models (models = [...]): TensorFlow Serving doesn't list them."
            )
        connector = open_http(
            spec,
            clock,
            headers=bearer(spec),
            cancels_unstreamed=False,
            dialect=TfServingRefusals(),
            api=Api.PREDICTION,
        )
        return Opened(connector, TfServingProber(connector.plain, spec))


class TfServingRefusals(Dialect):
    """What it says of requests that it didn't begin."""

    def refusal(self, status: int, headers: Headers, body: bytes) -> Failure | None:
        """See `Dialect`."""
        message, _, _ = read_error(body)
        reason = f"The backend answered {status}: {message}"
        if status == 404 and message.startswith("Servable not found for request: Latest("):
            # It was there at the last look: a new version is on its way, or the next look takes it off the list.
            return Loading(reason, retry_after(headers))
        if status == 503 and "batch scheduling queue" in message:
            return Busy(reason, retry_after(headers))
        if status == 429 and message.startswith("OOM when allocating"):
            return Lost(reason)  # it had begun: the same request would exhaust it again
        return None


class _State(Enum):
    READY = "ready"
    LOADING = "loading"
    ABSENT = "absent"


_STATES = {"AVAILABLE": _State.READY, "START": _State.LOADING, "LOADING": _State.LOADING}


class _Standing(NamedTuple):
    """Where a model stands; `reason`: why it isn't there, where that is told."""

    state: _State
    reason: str = ""


class TfServingProber(Prober):
    """Asks for the status of each of the models that the settings name."""

    def __init__(self, connector: Connector, spec: BackendSpec) -> None:
        self._asker = Asker(connector, spec)
        self._names = tuple(dict.fromkeys(spec.models))

    async def look(self) -> Report:
        """See the port."""
        try:
            async with asyncio.timeout(_LOOK_S):
                found = await self._ask_all()
        except TimeoutError:
            raise Unwell(f"It didn't tell of all its models within {_LOOK_S:g} s.") from None
        absent = {name for name, standing in found.items() if standing.state is _State.ABSENT}
        if len(absent) == len(found):
            raise Unwell(_nothing_there(found))
        ready = frozenset(name for name, standing in found.items() if standing.state is _State.READY)
        return Report(
            models=tuple(ModelInfo(name) for name in self._names if name not in absent),
            loaded=ready,
            ready_in_s=None if ready else 0.0,
            product="TensorFlow Serving",
            absent=frozenset(absent),
        )

    async def _ask_all(self) -> dict[str, _Standing]:
        found: dict[str, _Standing] = {}
        left = iter(self._names)

        async def ask() -> None:
            for name in left:
                found[name] = await self._standing(name)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_AT_ONCE, len(self._names))):
                    group.create_task(ask())
        except* Unwell as troubles:
            first = troubles.exceptions[0]
            assert isinstance(first, Unwell)
            trouble = first
        else:
            return found
        raise trouble

    async def _standing(self, name: str) -> _Standing:
        path = f"/v1/models/{quote(name, safe='')}"
        response = await self._asker.get(path)
        if response.status not in (200, 404):
            raise unwell(response, path)
        about = members(response) or {}
        reason = word(about.get("error"))
        if response.status == 404 and reason:
            return _Standing(_State.ABSENT, reason)
        versions = objects(about.get("model_version_status"))
        if response.status == 404 or versions is None:
            raise _stranger(response, path)
        return _best(versions)


def _best(versions: list[dict[str, Any]]) -> _Standing:
    """Where a model stands that has these versions."""
    states = {_STATES.get(word(version.get("state")), _State.ABSENT) for version in versions}
    for state in (_State.READY, _State.LOADING):
        if state in states:
            return _Standing(state)
    told = [status for version in versions if isinstance(status := version.get("status"), dict)]
    reasons = [message for status in told if (message := word(status.get("error_message")))]
    return _Standing(_State.ABSENT, reasons[0] if reasons else "")


def _stranger(response: Response, path: str) -> Unwell:
    return Unwell(f"It doesn't answer {path} as TensorFlow Serving does (status {response.status}).")


def _nothing_there(found: dict[str, _Standing]) -> str:
    names = ", ".join(list(found)[:5])
    reason = next((standing.reason for standing in found.values() if standing.reason), "")
    return f"It has none of the models that the settings name ({names})" + (
        f": {reason.rstrip('.')}." if reason else "."
    )


KIND = TfServingKind()
