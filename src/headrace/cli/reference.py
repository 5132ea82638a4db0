"""`docs/reference/cli.md`, written from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from headrace.cli.main import build

_INTRODUCTION = """
# Command line

*Generated from the code by `scripts/generate_reference.py`; a test compares them.*

Every command tells what went wrong in one sentence on standard error, and ends with 1 when it failed, 2 when it was called
wrongly, 130 when Ctrl-C ended it. `HEADRACE_DEBUG=1` adds the traceback. With `--json` a command writes one JSON value on
standard output, and nothing else there.
"""


def page() -> str:
    """The whole page."""
    command = typer.main.get_command(build())
    lines = [*_INTRODUCTION.strip().splitlines(), "", "| command | what it does |", "|---|---|"]
    commands = list(_commands(command, "headrace"))
    lines += [f"| [`{name}`](#{name.replace(' ', '-')}) | {_text(each)[0]} |" for name, each in commands]
    for name, each in commands:
        lines += _section(name, each)
    return "\n".join(lines) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for key, each in command.commands.items():
        if hasattr(each, "commands"):
            yield from _commands(each, f"{name} {key}")
        else:
            yield f"{name} {key}", each


def _section(name: str, command: Any) -> Iterator[str]:
    first, *rest = _text(command)
    yield from ("", f"## {name}", "", first)
    for paragraph in rest:
        title, _, body = paragraph.partition("\n")
        if title in ("Example:", "Examples:"):
            yield from ("", "```sh", *(line.strip() for line in body.splitlines()), "```")
        else:
            yield from ("", paragraph)
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    options = [item for item in command.params if item.param_type_name == "option" and item.name != "help"]
    if not arguments and not options:
        return
    yield from ("", "| argument or option | what it is |", "|---|---|")
    for item in arguments:
        yield f"| `{item.metavar}` | {item.help} |"
    for item in options:
        names = ", ".join(sorted(item.opts, key=len))
        value = "" if item.is_flag else f" {item.metavar or 'NUMBER'}"
        variable = f" Also `{item.envvar}`." if item.envvar else ""
        yield f"| `{names}{value}` | {item.help}{variable} |"


def _text(command: Any) -> list[str]:
    """The paragraphs of a command's help."""
    return [
        paragraph.removeprefix("\b\n") for paragraph in inspect.cleandoc(command.help or "").split("\n\n")
    ]
