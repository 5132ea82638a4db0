"""`headrace doctor`."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import ConfigOption, JsonOption, KeyOption

if TYPE_CHECKING:
    from headrace.cli.checks_finding import Finding

_COLORS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "failed": typer.colors.RED}


def doctor(
    config: ConfigOption = None,
    stream_test: Annotated[
        str | None,
        typer.Option(
            "--stream-test",
            metavar="MODEL",
            help="Have each upstream that has MODEL generate a few words, and see whether they come one by one.",
        ),
    ] = None,
    through: Annotated[
        str | None,
        typer.Option(
            "--through",
            metavar="URL",
            help="Where clients reach the running service: see what a proxy in front of it does to streams.",
        ),
    ] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what keeps the service from working, and say what to do about it.

    One line a check: ok, warning or failed, what was found, and what to do. Changes nothing, and asks no backend for an answer
    unless you name a model. Ends with 1 when something failed. --key is an admin key, for --through only.

    \b
    Examples:
      headrace doctor
      headrace doctor --stream-test llama-3-8b
      headrace doctor --through https://llm.example.com
      headrace doctor --json | jq '.[] | select(.level == "failed")'
    """
    from headrace.cli import office
    from headrace.cli.checks import Asked, Doctor
    from headrace.cli.checks_finding import Level

    if through:
        key = office.find_gateway(through, key, config).key
    findings = Doctor(os.environ, time.time(), config, asked=Asked(stream_test, through, key)).examine()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        _print(findings)
    if any(finding.level is Level.FAILED for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        level = typer.style(f"{finding.level:<7}", fg=_COLORS[finding.level])
        advice = f" → {finding.advice}" if finding.advice else ""
        typer.echo(f"{level}  {finding.check:<{width}}  {finding.detail}{advice}")
