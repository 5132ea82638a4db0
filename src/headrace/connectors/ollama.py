"""Ollama: inference through its OpenAI paths, and through its own what it has, what is loaded, and fetching models.

It holds a request back while it loads the model that it names, and says nothing meanwhile; so what is loaded is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

import msgspec

from headrace.connectors.asking import Asker, objects, word
from headrace.connectors.opening import bearer, open_http
from headrace.domain.fleet import ModelInfo
from headrace.domain.inference import Timeouts
from headrace.kernel.clock import Clock
from headrace.ports.backend import BackendKind, BackendSpec, Opened, Prober, Report, Unwell
from headrace.ports.connector import Connector, Failure, Headers, Sink, UpstreamRequest
from headrace.wire.openai import read_error

_SLOTS = 4
"""It doesn't say how many requests it works on at once. More would wait in its own queue, where leaving leaves work behind."""
_MAX_LINE_BYTES = 64 * 1024
_QUIET_S = 600.0


class OllamaKind(BackendKind):
    """What Ollama speaks."""

    name = "ollama"
    title = "Ollama"

    def open(self, spec: BackendSpec, clock: Clock) -> Opened:
        """See the port."""
        connector = open_http(spec, clock, headers=bearer(spec), cancels_unstreamed=True)
        return Opened(connector, OllamaProber(connector.plain, spec))


class OllamaProber(Prober):
    """Asks for the models on its disk and for those in memory; for its version once."""

    def __init__(self, connector: Connector, spec: BackendSpec) -> None:
        self._asker = Asker(connector, spec)
        self._version = ""

    async def look(self) -> Report:
        """See the port."""
        tags = await self._asker.json("/api/tags")
        models = _models(tags)
        if models is None:
            raise Unwell(
                "It doesn't answer /api/tags as Ollama does; for another server, set kind to 'openai'."
            )
        loaded = _models(await self._asker.json("/api/ps"))
        if not self._version:
            self._version = word((await self._asker.json("/api/version") or {}).get("version"))
        return Report(
            models=models,
            loaded=None if loaded is None else frozenset(info.id for info in loaded),
            slots=_SLOTS,
            product=f"Ollama {self._version}".strip(),
        )


def _models(answer: dict[str, Any] | None) -> tuple[ModelInfo, ...] | None:
    """The models of an answer to `/api/tags` or `/api/ps`; None where it isn't one. Ollama says null for none."""
    if answer is None or "models" not in answer:
        return None
    found = objects(answer["models"] or [])
    if found is None or not all(isinstance(item.get("name"), str) and item["name"] for item in found):
        return None
    return tuple(
        ModelInfo(item["name"], _epoch(item.get("modified_at")), _owner(item["name"])) for item in found
    )


def _owner(name: str) -> str:
    """Whose model it is, as its OpenAI paths say it."""
    return name.rpartition("/")[0].rpartition("/")[2] or "library"


def _epoch(moment: object) -> int:
    """Seconds since the epoch of a time as Go writes it; 0 where it can't be read."""
    try:
        return max(0, int(datetime.fromisoformat(word(moment)).timestamp()))
    except (ValueError, OverflowError):
        return 0


class PullProgress(msgspec.Struct, frozen=True):
    """How far a download is. `status`: Ollama's words. Bytes are those of the file that it is at, None between files."""

    status: str
    done_bytes: int | None = None
    total_bytes: int | None = None


class PullFailed(Exception):
    """Ollama couldn't fetch the model; what it has of it is kept. `message`: one sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


async def pull(connector: Connector, model: str) -> AsyncGenerator[PullProgress, None]:
    """Have Ollama fetch *model*, and follow it; ends when the model is there. Who is slow to read gets the newest news only.

    Leaving the iteration stops the download; `contextlib.aclosing` makes sure of it.

    Raises:
        PullFailed: there is no such model, or the connection broke.
    """
    follower = _Follower()
    request = UpstreamRequest(
        "POST",
        "/api/pull",
        headers=[(b"content-type", b"application/json")],
        body=msgspec.json.encode({"model": model, "stream": True}),
        timeouts=Timeouts(first_byte_s=_QUIET_S, idle_s=_QUIET_S),
    )
    exchange = connector.start(request, follower)
    try:
        while (progress := await follower.next()) is not None:
            yield progress
    finally:
        exchange.cancel()


class _Follower(Sink):
    """Reads the lines of the answer, and keeps the newest."""

    def __init__(self) -> None:
        self._status = 0
        self._rest = b""
        self._news: PullProgress | None = None
        self._done = False
        self._trouble: str | None = None
        self._changed = asyncio.Event()

    async def next(self) -> PullProgress | None:
        """The newest that wasn't told yet; None when the model is there."""
        while self._news is None and not self._done:
            self._changed.clear()
            await self._changed.wait()
        news, self._news = self._news, None
        if news is None and self._trouble is not None:
            raise PullFailed(self._trouble)
        return news

    def head(self, status: int, headers: Headers) -> None:
        """Note the status."""
        self._status = status

    def data(self, chunk: bytes) -> None:
        """Read whole lines."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            self._rest, self._trouble = b"", "Ollama sent a line that is too long."
        for line in lines:
            self._read(line)

    def end(self) -> None:
        """The answer is complete; it says of itself whether that is a success."""
        self._read(self._rest)
        if self._status != 200 and self._trouble is None:
            self._trouble = f"Ollama answered {self._status}."
        self._finish(None if self._succeeded else "Ollama ended the download without a word of success.")

    def fail(self, failure: Failure) -> None:
        """It broke off."""
        self._finish(f"{failure.reason[:1].upper()}{failure.reason[1:].rstrip('.')}.")

    _succeeded = False

    def _finish(self, trouble: str | None) -> None:
        self._trouble = self._trouble or trouble
        self._done = True
        self._changed.set()

    def _read(self, line: bytes) -> None:
        if not line.strip() or self._trouble is not None:
            return
        try:
            said = _decode_line(line)
        except (msgspec.DecodeError, RecursionError):
            self._trouble = "Ollama sent a line that isn't JSON."
            return
        if said.error or self._status != 200:
            message = said.error or read_error(line)[0]
            self._trouble = f"Ollama can't fetch it: {message.rstrip('.') or self._status}."
            return
        self._succeeded = said.status == "success"
        self._news = PullProgress(said.status, said.completed, said.total)
        self._changed.set()


class _Line(msgspec.Struct):
    status: str = ""
    error: str = ""
    completed: int | None = None
    total: int | None = None


_decode_line = msgspec.json.Decoder(_Line).decode

KIND = OllamaKind()
