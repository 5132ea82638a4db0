"""The entry point: the commands put together, and every error as one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from headrace.cli import (
    chat,
    config,
    db,
    doctor,
    importing,
    keys,
    models,
    nodes,
    pull,
    quotas,
    requests,
    routes,
    up,
    usage,
    users,
    version,
)
from headrace.kernel.errors import HeadraceError


def run() -> None:
    """What the `headrace` script calls."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit status: 0, 1 when it failed, 2 when it was called wrongly, 130 when it was interrupted."""
    try:
        build()(list(arguments), prog_name="headrace")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except HeadraceError as error:
        if _debugging():
            raise
        typer.echo(f"headrace: {error.message}", err=True)
        return 1
    except (
        Exception
    ) as error:  # a bug of ours, or a failing machine: the person gets a sentence, not our insides
        if _debugging():
            raise
        typer.echo(f"headrace: {type(error).__name__}: {error} (HEADRACE_DEBUG=1 shows where)", err=True)
        return 1
    return 0


def build() -> typer.Typer:
    """The command line as a typer application."""
    app = typer.Typer(
        name="headrace",
        help="One OpenAI-compatible inference service from the machines you already have.",
        epilog="Start with: headrace up, and in another terminal: headrace chat",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    for command in (up.up, chat.chat, models.models, pull.pull, doctor.doctor, version.version):
        app.command()(command)
    app.add_typer(users.build(), name="user")
    app.add_typer(keys.build(), name="key")
    app.add_typer(quotas.build(), name="quota")
    app.add_typer(routes.build(), name="route")
    app.add_typer(nodes.build(), name="node")
    app.command()(usage.usage)
    app.add_typer(requests.build(), name="requests")
    app.add_typer(config.build(), name="config")
    app.add_typer(importing.build(), name="import")
    app.add_typer(db.build(), name="db")
    return app


def _debugging() -> bool:
    return os.environ.get("HEADRACE_DEBUG", "") not in ("", "0")
