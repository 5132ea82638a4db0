"""`headrace doctor`."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import TYPE_CHECKING

import typer

from headrace.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from headrace.cli.checks import Finding

_COLORS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}


def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look for what keeps the gateway from working, and say what to do about it.

    Changes nothing. Ends with 1 when something can't work.

    \b
    Examples:
      headrace doctor
      headrace doctor --json | jq '.[] | select(.level == "fail")'
    """
    from headrace.cli.checks import Doctor, Level

    findings = Doctor(os.environ, time.time(), config).examine()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings]))
    else:
        _print(findings)
    if any(finding.level is Level.FAIL for finding in findings):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        level = typer.style(f"{finding.level.upper():<4}", fg=_COLORS[finding.level])
        typer.echo(f"{level}  {finding.check:<{width}}  {finding.detail}")
        if finding.advice:
            typer.echo(f"{'':<6}{'':<{width}}  → {finding.advice}")
