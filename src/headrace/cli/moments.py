"""Points in time, as people write and read them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import typer

from headrace.kernel.units import parse_seconds


def ago(option: str, text: str | None) -> float | None:
    """Seconds since the epoch of a time that is past (`7d`, `12h`), or of a date.

    Raises:
        BadParameter: it is neither.
    """
    return None if text is None else _moment(option, text, -1)


def ahead(option: str, text: str) -> float:
    """The same of a time to come.

    Raises:
        BadParameter: it is neither.
    """
    return _moment(option, text, 1)


def told_moment(seconds: float | None) -> str:
    """A time of UTC; empty for none."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _moment(option: str, text: str, sign: int) -> float:
    try:
        if text[-1:].isalpha() and "-" not in text:
            return max(0.0, time.time() + sign * parse_seconds(text))
        date = datetime.fromisoformat(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no time; write it like 12h, 7d or 2026-01-31.", param_hint=option
        ) from None
