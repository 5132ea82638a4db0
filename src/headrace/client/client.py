"""The gateway's operations, as methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from headrace.client.answer import Answer
from headrace.client.errors import ClientError, from_failure, from_response
from headrace.client.inbox import Inbox
from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint, Tls
from headrace.core.fetch import FetchFailed, fetch
from headrace.domain.fleet import ModelInfo
from headrace.domain.inference import Operation, Timeouts
from headrace.kernel.clock import SystemClock
from headrace.kernel.errors import ConfigError
from headrace.ports.connector import Connector, UpstreamRequest

DEFAULT_URL = "http://127.0.0.1:11435"


@dataclass(frozen=True, slots=True)
class Health:
    """What a gateway says of itself. `ok`: requests are welcome."""

    ok: bool
    status: str
    mode: str
    default_model: str | None
    detail: str


class HeadraceClient:
    """A gateway at *url* (with or without `/v1`), as the owner of *key*. Use it as an async context manager, in one event
    loop.

    ca_file: certificates to trust for https instead of the system's. connector: another way to the gateway than HTTP to
    *url*; who gives one gives the credentials with it.

    Raises:
        ConfigError: *url* or *key* can't be one.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        key: str | None = None,
        *,
        ca_file: Path | None = None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        connector: Connector | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._timeouts = timeouts
        self._connector = connector or _direct(self.url, key, ca_file)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cut what is open. Idempotent."""
        await self._connector.close()

    async def health(self) -> Health:
        """Whether the gateway takes requests. Needs no key.

        Raises:
            ClientError: it can't be reached, or something else answers there (`invalid_answer`).
        """
        told = await self._get("/health", accepted=(200, 503))
        if not isinstance(told.get("status"), str) or not isinstance(told.get("mode"), str):
            raise ClientError(f"What answers at {self.url} is not a Headrace gateway.", code="invalid_answer")
        default = told.get("default_model")
        return Health(
            ok=told["status"] == "ok",
            status=told["status"],
            mode=told["mode"],
            default_model=default if isinstance(default, str) else None,
            detail=str(told.get("detail", "")),
        )

    async def version(self) -> str:
        """The gateway's version. Needs no key.

        Raises:
            ClientError: it can't be reached or doesn't tell.
        """
        told = await self._get("/version")
        if not isinstance(told.get("version"), str):
            raise ClientError(f"What answers at {self.url} doesn't tell a version.", code="invalid_answer")
        return str(told["version"])

    async def models(self) -> tuple[ModelInfo, ...]:
        """The models that can be asked for.

        Raises:
            ClientError: it can't be reached, or the key is not accepted.
        """
        told = await self._get("/v1/models")
        data = told.get("data")
        if not isinstance(data, list):
            raise ClientError(f"What answers at {self.url} doesn't list models.", code="invalid_answer")
        return tuple(
            _model(item) for item in data if isinstance(item, dict) and isinstance(item.get("id"), str)
        )

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        stream: bool = True,
        **options: Any,
    ) -> Answer:
        """Ask. *options* are further members of the request, as OpenAI's API has them.

        Nothing is sent before the answer is iterated over; closing the iterator, or cancelling its task, cancels the work.
        """
        body: dict[str, Any] = {"messages": list(messages), "stream": stream, **options}
        if model is not None:
            body["model"] = model
        if stream:
            body.setdefault("stream_options", {"include_usage": True})
        request = UpstreamRequest(
            "POST",
            Operation.CHAT.path,
            [(b"content-type", b"application/json"), (b"accept", b"text/event-stream, application/json")],
            msgspec.json.encode(body),
            self._timeouts,
        )
        return Answer(partial(Inbox, self._connector, request), self.url)

    async def _get(self, path: str, accepted: tuple[int, ...] = (200,)) -> dict[str, Any]:
        request = UpstreamRequest("GET", path, [(b"accept", b"application/json")], timeouts=self._timeouts)
        try:
            response = await fetch(self._connector, request)
        except FetchFailed as failed:
            raise from_failure(failed.failure, self.url) from None
        if response.status not in accepted:
            raise from_response(response.status, response.headers, response.body)
        try:
            told = msgspec.json.decode(response.body)
        except (msgspec.DecodeError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise ClientError(f"What answers at {self.url} is not a Headrace gateway.", code="invalid_answer")
        return told


def _direct(url: str, key: str | None, ca_file: Path | None) -> DirectConnector:
    headers = []
    if key is not None:
        if not key.isascii() or not key.isprintable() or " " in key or not key:
            raise ConfigError("A key is one word of visible ASCII characters.")
        headers.append((b"authorization", b"Bearer " + key.encode()))
    return DirectConnector(
        Endpoint.parse(url, tls=Tls(ca_file)),
        clock=SystemClock(),
        headers=headers,
    )


def _model(item: dict[str, Any]) -> ModelInfo:
    created, owner = item.get("created"), item.get("owned_by")
    return ModelInfo(
        item["id"], created if isinstance(created, int) else 0, owner if isinstance(owner, str) else ""
    )
