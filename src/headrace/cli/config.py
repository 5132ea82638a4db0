"""`headrace config check`, `show` and `schema`."""

from __future__ import annotations

import json

import typer

from headrace.cli import access
from headrace.cli.options import ConfigOption, JsonOption
from headrace.kernel.errors import ConfigError


def build() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(help="Look at the configuration.", no_args_is_help=True, rich_markup_mode=None)
    for command in (check, show, schema):
        app.command()(command)
    return app


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say whether the configuration is right, and everything that is wrong with it.

    \b
    Examples:
      headrace config check
      headrace config check --config /etc/headrace.toml && systemctl restart headrace
    """
    try:
        settings = access.read_settings(config)
    except ConfigError as error:
        if not as_json:
            raise
        typer.echo(json.dumps({"ok": False, "error": error.message}))
        raise typer.Exit(1) from error
    source = str(settings.source) if settings.source else None
    if as_json:
        typer.echo(json.dumps({"ok": True, "source": source, "warnings": settings.warnings}))
        return
    access.warn(settings)
    typer.echo(f"{source or 'No configuration file: the defaults hold'}. All right.")


def show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the settings in force, defaults and environment included. Secrets are hidden.

    \b
    Examples:
      headrace config show
      headrace config show --json | jq .server.port
    """
    from headrace.settings import reference

    settings = access.read_settings(config)
    access.warn(settings)
    typer.echo(json.dumps(reference.shown(settings)) if as_json else reference.show(settings), nl=as_json)


def schema() -> None:
    """Write the JSON Schema of headrace.toml, for editors that complete and check it.

    \b
    Example:
      headrace config schema > headrace.schema.json
    """
    from headrace.settings import reference

    typer.echo(json.dumps(reference.schema(), indent=2))
