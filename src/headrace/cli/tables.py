"""Tables for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

_WIDE = 1000
"""Columns where nobody looks: what is piped on is not wrapped."""


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table to standard output. Numbers stand on the right; what would command a terminal is taken out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        number = bool(rows) and all(isinstance(row[place], int | float) for row in rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def show_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Write names and values, one below the other."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        typer.echo(f"{name:<{width}}  {plain(value)}".rstrip())


def plain(value: object) -> str:
    """*value* as text that a terminal only shows."""
    return "".join(char if char.isprintable() else "\ufffd" for char in str(value))
