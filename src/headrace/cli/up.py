"""`headrace up`."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli import access
from headrace.cli.options import ConfigOption
from headrace.cli.progress import Bar


def up(
    config: ConfigOption = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Listen here [default: 127.0.0.1].")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", "-p", min=0, max=65535, help="Listen on this port [default: 11435]."),
    ] = None,
) -> None:
    """Start the gateway, and what the configuration says it serves.

    Without any configuration it serves a small demo model on this machine. Ctrl-C ends it once running answers are done;
    a second Ctrl-C ends it at once.

    \b
    Examples:
      headrace up
      headrace up --config /etc/headrace.toml
      headrace up --host 0.0.0.0 --port 8000
    """
    given = {"HEADRACE_SERVER__HOST": host, "HEADRACE_SERVER__PORT": port}
    settings = access.read_settings(
        config, {name: str(value) for name, value in given.items() if value is not None}
    )
    access.warn(settings)
    from headrace.bootstrap.running import serve

    with Bar("demo model") as bar:

        def banner(text: str) -> None:
            bar.stop()
            typer.echo(text)

        status = serve(settings, banner=banner, progress=bar)
    raise typer.Exit(status)
