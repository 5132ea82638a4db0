"""What a backend's refusal says about the work: nothing but its own words tell whether it had begun.

A 503 counts as lost, for it may have been executed; where the product is known to say these words before it begins, trying
again is free, and the sink hears `Busy` or `Loading` instead. Only answers of 400 and above are looked at: with the head of any
other the connection is handed the sink itself, so that no token costs anything.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import msgspec

from headrace.connectors.direct import DirectConnector
from headrace.connectors.exchange import DirectExchange
from headrace.ports.connector import (
    Busy,
    Connector,
    Exchange,
    Failure,
    Headers,
    Loading,
    Sink,
    UpstreamRequest,
)
from headrace.wire.openai import read_error

MAX_REFUSAL_BYTES = 64 * 1024
"""A longer answer isn't a refusal that we know."""
_TOO_MANY, _UNAVAILABLE, _OVERLOADED = 429, 503, 529
_LOADING = re.compile(
    r"^loading model\b|\bis (?:currently |still )?loading\b|\bis being loaded\b", re.IGNORECASE
)
_FULL = re.compile(
    r"\brequest queue is full\b"  # SGLang
    r"|\bmaximum pending requests exceeded\b"  # Ollama
    r"|\bno slot\b"  # llama.cpp
    r"|\boverloaded\b",  # TGI, hosted services
    re.IGNORECASE,
)
_NOT_BEGUN = frozenset(
    {"no_healthy_backend", "queue_full", "no_free_slot", "too_many_connections", "quota_unavailable"}
)
"""What a gateway like ours says of requests that it didn't begin."""
_LONGEST_WAIT_S = 3600.0


class Dialect(Protocol):
    """Reads what a backend says when it refuses."""

    def refusal(self, status: int, headers: Headers, body: bytes) -> Failure | None:
        """What it means for the exchange; None where this is an answer like any other, which core judges."""


class KnownRefusals(Dialect):
    """The words of the products that we know, of OpenAI's API and of Ollama's own."""

    def refusal(self, status: int, headers: Headers, body: bytes) -> Failure | None:
        """See `Dialect`."""
        if status not in (_TOO_MANY, _UNAVAILABLE, _OVERLOADED):
            return None
        message, code, _ = read_error(body)
        wait_s = retry_after(headers)
        reason = f"The backend answered {status}" + (f": {message}" if message else ".")
        if status == _UNAVAILABLE and _LOADING.search(message):
            return Loading(reason, wait_s if wait_s is not None else _estimated_time(body))
        if (
            status != _UNAVAILABLE
            or _FULL.search(message)
            or code in _NOT_BEGUN
            or _kind(body) == "unavailable_error"
        ):
            return Busy(reason, wait_s)
        return None


class Judging(Connector):
    """A connector whose refusals are read in the backend's dialect. `plain`: the same without, for questions to the backend."""

    def __init__(self, connector: DirectConnector, dialect: Dialect) -> None:
        self.traits = connector.traits
        self.plain = connector
        self._dialect = dialect

    def start(self, request: UpstreamRequest, sink: Sink) -> Exchange:
        """See the port."""
        judged = Judged(sink, self._dialect)
        judged.exchange = exchange = self.plain.start(request, judged)
        return exchange

    async def close(self) -> None:
        """See the port."""
        await self.plain.close()


class Judged:
    """A Sink that passes on what another is to hear, but for a refusal that the dialect knows, which becomes a failure.

    An answer of 400 and above is held back until it is complete or longer than a refusal. What comes of it then comes at once,
    whether or not the exchange is paused.
    """

    __slots__ = ("_dialect", "_head", "_held", "_sink", "exchange")

    exchange: DirectExchange

    def __init__(self, sink: Sink, dialect: Dialect) -> None:
        self._sink = sink
        self._dialect = dialect
        self._head: tuple[int, Headers] | None = None
        self._held = b""

    def head(self, status: int, headers: Headers) -> None:
        """Hold back what may be a refusal; let the sink itself hear anything else."""
        if status < 400:
            self.exchange.hand_over(self._sink)
            self._sink.head(status, headers)
        else:
            self._head = status, headers

    def data(self, chunk: bytes) -> None:
        """Some of what may be a refusal."""
        self._held += chunk
        if len(self._held) > MAX_REFUSAL_BYTES:
            self._pass_on()

    def end(self) -> None:
        """Judge what was held back."""
        assert self._head is not None
        failure = self._dialect.refusal(*self._head, self._held)
        if failure is not None:
            self._sink.fail(failure)
        else:
            self._pass_on()
            self._sink.end()

    def fail(self, failure: Failure) -> None:
        """It broke off."""
        self._sink.fail(failure)

    def _pass_on(self) -> None:
        assert self._head is not None
        held, self._held = self._held, b""
        self.exchange.hand_over(self._sink)
        self._sink.head(*self._head)
        if held and not self.exchange.cancelled:
            self._sink.data(held)


def retry_after(headers: Headers) -> float | None:
    """The seconds in the field Retry-After; None without one, or where it names a date."""
    value = dict(headers).get(b"retry-after", b"")
    return min(float(value), _LONGEST_WAIT_S) if value.isdigit() and len(value) < 9 else None


def _members(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _kind(body: bytes) -> object:
    """The member `type` of the error. llama.cpp's `unavailable_error` is only ever said before the work."""
    error = _members(body).get("error")
    return error.get("type") if isinstance(error, dict) else None


def _estimated_time(body: bytes) -> float | None:
    """Seconds until it is loaded, as hosts of models on demand say it."""
    value = _members(body).get("estimated_time")
    return min(max(0.0, float(value)), _LONGEST_WAIT_S) if isinstance(value, (int, float)) else None
