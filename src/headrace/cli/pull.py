"""`headrace pull`."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from headrace.cli import access
from headrace.cli.options import ConfigOption, JsonOption
from headrace.cli.progress import Bar


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="'demo', hf:owner/repo/file.gguf, or the id of a configured engine."
        ),
    ],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model now, so that the first start doesn't have to.

    Interrupted, it goes on next time where it stopped. Prints where the model is.

    \b
    Examples:
      headrace pull demo
      headrace pull hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q4_k_m.gguf
    """
    from headrace.engine.catalog import Catalog

    settings = access.read_settings(config)
    source = next((engine.model for engine in settings.effective_engines if engine.id == model), model)
    catalog = Catalog.from_environment(settings.cache, os.environ)
    with Bar(source) as bar:
        path = catalog.resolve(source, bar)
    size_bytes = path.stat().st_size
    typer.echo(
        json.dumps({"source": source, "path": str(path), "size_bytes": size_bytes}) if as_json else str(path)
    )
