"""From options to a gateway: which settings hold, where it is, and which key opens it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from headrace.kernel.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.client import ClientError
    from headrace.settings import Settings

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True)
class Gateway:
    """Where it is, and the key to present (None: there is none to be had)."""

    url: str
    key: str | None


def read_settings(config: Path | None, overrides: Mapping[str, str] | None = None) -> Settings:
    """The settings that hold for this command; *overrides* are variables that beat the environment.

    Raises:
        ConfigError: something in them is wrong.
    """
    from headrace.settings import load

    return load(config, os.environ | dict(overrides or {}))


def find_gateway(url: str | None, key: str | None, config: Path | None) -> Gateway:
    """The gateway that the options mean; what they leave open, the settings say.

    Raises:
        ConfigError: the settings are needed, and something in them is wrong.
    """
    if url and key:
        return Gateway(url, key)
    settings = read_settings(config)
    url = url or gateway_url(settings)
    return Gateway(url, key or own_key(settings, url))


def gateway_url(settings: Settings) -> str:
    """Where this machine's gateway listens, as a client on this machine says it."""
    from headrace.settings import Server

    server = settings.server
    host = _ANY_ADDRESS.get(server.host, server.host)
    port = server.port or Server().port
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def own_key(settings: Settings, url: str) -> str | None:
    """A key that this machine's gateway accepts, for *url* on this machine only."""
    from headrace.client.credentials import is_loopback, kept_key

    if not is_loopback(url):
        return None
    keys = settings.auth.api_keys
    return keys[0].get_secret_value() if keys else kept_key(settings.home)


def advised(error: ClientError) -> HeadraceError:
    """The error with what to do about it."""
    hint = ""
    if error.code == "unreachable":
        hint = " Start the gateway with 'headrace up', or name another with --url."
    elif error.status == 401:
        hint = " Give a key with --key or HEADRACE_API_KEY."
    asked = f" (request {error.request_id})" if error.request_id and (error.status or 0) >= 500 else ""
    return HeadraceError(f"{error.message}{hint}{asked}")


def warn(settings: Settings) -> None:
    """Tell on standard error what in the environment has no effect."""
    for warning in settings.warnings:
        typer.echo(f"warning: {warning}", err=True)
