"""The administration of a running gateway, asked over HTTP, and the options that say where it is."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import typer

from headrace.cli import access
from headrace.cli.options import ConfigOption, JsonOption, KeyOption, UrlOption
from headrace.kernel.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from headrace.connectors.direct import DirectConnector

Command = Callable[..., None]
_MOST_BYTES = 64 * 1024 * 1024
PAGE = 1000
"""Entries that are asked for at once: as many as the gateway gives."""


@dataclass(frozen=True)
class Office:
    """A gateway's `/admin`, and how its answers are shown."""

    gateway: access.Gateway
    as_json: bool

    def ask(self, method: str, path: str, body: object = None, **query: object) -> Any:
        """The JSON that *path* below `/admin` answers. What is None in *query* is left out.

        Raises:
            HeadraceError: the gateway can't be reached, or refuses; it says why, and what to do.
        """
        return json.loads(self.ask_raw(method, path, body, **query))

    def ask_raw(self, method: str, path: str, body: object = None, **query: object) -> bytes:
        """The same, as it comes."""
        return asyncio.run(self._ask_once(method, path, body, query))

    def ask_all(self, path: str, id_name: str, **query: object) -> list[dict[str, Any]]:
        """All that *path* lists, page by page; each entry's id is its *id_name*. What is None in *query* is left out.

        Raises:
            HeadraceError: the gateway can't be reached, or refuses; it says why, and what to do.
        """
        return asyncio.run(self._ask_pages(path, id_name, {**query, "limit": PAGE}))

    async def _ask_pages(self, path: str, id_name: str, query: dict[str, object]) -> list[dict[str, Any]]:
        connector, found = self.connect(), []
        try:
            while True:
                page = json.loads(await self.exchange(connector, "GET", path, query=query))
                found += page["data"]
                if not page["has_more"]:
                    return found
                query["after"] = found[-1][id_name]
        finally:
            await connector.close()

    async def _ask_once(self, method: str, path: str, body: object, query: Mapping[str, object]) -> bytes:
        connector = self.connect()
        try:
            return await self.exchange(connector, method, path, body, query)
        finally:
            await connector.close()

    def connect(self) -> DirectConnector:
        """A way to the gateway; close it.

        Raises:
            ConfigError: its URL or the key can't be one.
        """
        from headrace.connectors.direct import DirectConnector
        from headrace.connectors.endpoint import Endpoint
        from headrace.kernel.clock import SystemClock

        key = self.gateway.key
        if key is not None and (not key.isascii() or not key.isprintable() or " " in key or not key):
            raise ConfigError("A key is one word of visible ASCII characters.")
        headers = [(b"authorization", b"Bearer " + key.encode())] if key else []
        url = self.gateway.url.rstrip("/").removesuffix("/v1")
        return DirectConnector(Endpoint.parse(url), clock=SystemClock(), headers=headers)

    async def exchange(
        self,
        connector: DirectConnector,
        method: str,
        path: str,
        body: object = None,
        query: Mapping[str, object] | None = None,
    ) -> bytes:
        """One exchange over *connector*, as `ask_raw` says."""
        from headrace.client.errors import from_failure, from_response
        from headrace.core.fetch import FetchFailed, fetch
        from headrace.ports.connector import UpstreamRequest

        given = {name: value for name, value in (query or {}).items() if value is not None}
        target = f"/admin{path}" + (f"?{urlencode(given)}" if given else "")
        data = b"" if body is None else json.dumps(body).encode()
        request = UpstreamRequest(
            method, target, [(b"content-type", b"application/json")] if data else [], data
        )
        try:
            answer = await fetch(connector, request, max_bytes=_MOST_BYTES)
        except FetchFailed as failed:
            error = from_failure(failed.failure, self.gateway.url)
            raise access.advised(error) from None
        if answer.status >= 300:
            refusal = from_response(answer.status, answer.headers, answer.body)
            hint = " Give an admin key with --key or HEADRACE_API_KEY." if answer.status == 403 else ""
            raise HeadraceError(f"{access.advised(refusal).message}{hint}")
        return answer.body

    def show(self, value: Any, shown: Callable[[Any], None]) -> None:
        """*value* as JSON, if that was asked for; otherwise as *shown* does it."""
        if self.as_json:
            typer.echo(json.dumps(value))
        else:
            shown(value)


def segment(name: str) -> str:
    """*name* as it stands in a path.

    Raises:
        BadParameter: it can't stand there.
    """
    if name in ("", ".", ".."):
        raise typer.BadParameter(f"{name!r} is no name.")
    return quote(name, safe="")


def with_options(
    parameter: str, options: Mapping[str, tuple[Any, Any]], make: Callable[[dict[str, Any]], object]
) -> Callable[[Command], Command]:
    """Give a command *options* (name → annotation and default) in the place of its *parameter*, which is made of them.

    So commands share options without repeating them.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(**given: Any) -> None:
            chosen = {name: given.pop(name) for name in options}
            command(**given, **{parameter: make(chosen)})

        own = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values() if p.name != parameter]
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in options.items()
        ]
        run.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        run.__annotations__ = {}
        return run

    return decorate


def _office(chosen: dict[str, Any]) -> Office:
    gateway = find_gateway(chosen["url"], chosen["key"], chosen["config"])
    return Office(gateway, chosen["as_json"])


def find_gateway(url: str | None, key: str | None, config: Path | None) -> access.Gateway:
    """As for other commands, but on this machine the key that the first start kept comes before the configured ones, which
    don't have the scope `admin`.

    Raises:
        ConfigError: the settings are needed, and something in them is wrong.
    """
    if url and key:
        return access.Gateway(url, key)
    from headrace.client.credentials import is_loopback, kept_key

    settings = access.read_settings(config)
    url = url or access.gateway_url(settings)
    kept = kept_key(settings.home) if not key and is_loopback(url) else None
    return access.Gateway(url, key or kept or access.own_key(settings, url))


asks_the_office = with_options(
    "office",
    {
        "url": (UrlOption, None),
        "key": (KeyOption, None),
        "config": (ConfigOption, None),
        "as_json": (JsonOption, False),
    },
    _office,
)
"""For commands with a parameter `office`: gives them the options that lead to it."""
