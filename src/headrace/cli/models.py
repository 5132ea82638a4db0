"""`headrace models`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import typer

from headrace.cli import access
from headrace.cli.options import ConfigOption, JsonOption, KeyOption, UrlOption

if TYPE_CHECKING:
    from headrace.domain.fleet import ModelInfo


def models(
    url: UrlOption = None, key: KeyOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """List the models that the gateway serves.

    \b
    Examples:
      headrace models
      headrace models --json | jq -r '.[].id'
    """
    found = asyncio.run(_list(access.find_gateway(url, key, config)))
    if as_json:
        told = [{"id": item.id, "owned_by": item.owned_by, "created": item.created} for item in found]
        typer.echo(json.dumps(told))
        return
    if not found:
        typer.echo("The gateway serves no model yet.", err=True)
    width = max((len(item.id) for item in found), default=0)
    for item in found:
        typer.echo(f"{item.id:<{width}}  {item.owned_by}".rstrip())


async def _list(gateway: access.Gateway) -> tuple[ModelInfo, ...]:
    from headrace.client import ClientError, HeadraceClient

    async with HeadraceClient(gateway.url, gateway.key) as client:
        try:
            return await client.models()
        except ClientError as error:
            raise access.advised(error) from error
