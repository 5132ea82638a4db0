"""`headrace version`."""

from __future__ import annotations

import json
import platform
from importlib import metadata

import typer

from headrace import __version__
from headrace.cli.options import JsonOption


def version(as_json: JsonOption = False) -> None:
    """Say which version this is."""
    if not as_json:
        typer.echo(f"headrace {__version__}")
        return
    told = {
        "version": __version__,
        "python": platform.python_version(),
        "xllamacpp": metadata.version("xllamacpp"),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    typer.echo(json.dumps(told))
