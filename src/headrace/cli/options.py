"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Configuration file [default: ./headrace.toml, then the data folder's].",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="HEADRACE_URL",
        metavar="URL",
        help="The gateway [default: the one configured for this machine].",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="HEADRACE_API_KEY",
        metavar="KEY",
        help="API key [default: on this machine, the configured one or the one the first start kept].",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, for scripts.")]
