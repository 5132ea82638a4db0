"""`headrace db upgrade`, `backup` and `check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import access
from headrace.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from headrace.adapters.storage.backend import Backend


def build() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(help="Look after the database.", no_args_is_help=True, rich_markup_mode=None)
    for command in (check, backup, upgrade):
        app.command()(command)
    return app


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look whether the database is whole: its schema, its structure, and whether the quota adds up.

    Changes nothing, and may be used while the gateway runs. Ends with 1 when something is wrong.

    \b
    Examples:
      headrace db check
      headrace db check --json | jq -r '.problems[]'
    """
    from headrace.adapters.storage import checking
    from headrace.adapters.storage.schema_version import Migrations

    backend = _backend(config)
    report = checking.check(backend, Migrations(backend))
    if as_json:
        found = {name: getattr(report, name) for name in report.__struct_fields__}
        typer.echo(json.dumps({"ok": not report.problems} | found))
    else:
        typer.echo(f"{report.database} (schema {report.schema or 'none'})")
        for problem in report.problems:
            typer.echo(f"  {problem}")
        if not report.problems:
            typer.echo("All right.")
    if report.problems:
        raise typer.Exit(1)


def backup(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="File to write; it must not exist yet.")],
    config: ConfigOption = None,
) -> None:
    """Copy the database into one file, also while the gateway runs.

    To go back to it: stop the gateway, and put the file in the place of headrace.db (without headrace.db-wal and headrace.db-shm).
    A PostgreSQL database is backed up with its own tools.

    \b
    Example:
      headrace db backup /backups/headrace-$(date +%F).db
    """
    backend = _backend(config)
    if backend.file is None:
        typer.echo(
            f"headrace: {backend.shown} is backed up with its own tools, for instance: pg_dump --format=custom --file={target} DATABASE",
            err=True,
        )
        raise typer.Exit(2)
    backend.save_copy(target)
    typer.echo(f"{backend.shown} was copied to {target}.")


def upgrade(config: ConfigOption = None) -> None:
    """Bring the database's schema up to date, as the gateway does when it starts.

    A database in a file is copied beside itself first. Ends with 1 when a gateway is using that file.

    \b
    Example:
      headrace db upgrade
    """
    from headrace.adapters.storage.schema_version import Migrations

    backend = _backend(config)
    backend.hold()
    try:
        before, now = Migrations(backend).upgrade()
    finally:
        backend.let_go()
    if before == now:
        typer.echo(f"{backend.shown} has schema {now} already.")
    else:
        typer.echo(f"{backend.shown} has schema {now} now (before: {before or 'none'}).")


def _backend(config: Path | None) -> Backend:
    from headrace.adapters.storage.backend import choose
    from headrace.observe.logging import configure_logging

    configure_logging("warning", as_json=False)  # what matters, the command itself says
    settings = access.read_settings(config)
    access.warn(settings)
    return choose(settings.storage.url.get_secret_value(), settings.home)
