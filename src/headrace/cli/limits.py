"""The options that say how much may be used."""

from __future__ import annotations

from typing import Annotated, Any

import typer

INHERIT = "inherit"
_OPTIONS = {
    "requests_per_minute": ("--rpm", "requests in a minute"),
    "requests_per_day": ("--requests-per-day", "requests in a day (of UTC)"),
    "requests_per_month": ("--requests-per-month", "requests in a month"),
    "tokens_per_minute": ("--tpm", "tokens in a minute"),
    "tokens_per_day": ("--tokens-per-day", "tokens in a day"),
    "tokens_per_month": ("--tokens-per-month", "tokens in a month"),
    "concurrency": ("--concurrency", "requests at once"),
}


def _number(text: str) -> int | str:
    if text == INHERIT:
        return text
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a number from 0 on nor {INHERIT!r}.")
    return int(text)


def _limit(name: str, what: str, zero: str) -> tuple[Any, None]:
    text = f"At most so many {what}; {zero}."
    option = typer.Option(name, parser=_number, metavar="NUMBER", help=text)
    return Annotated[Any, option], None


def _options(zero: str) -> dict[str, tuple[Any, None]]:
    return {limit: _limit(name, what, zero) for limit, (name, what) in _OPTIONS.items()}


USER_LIMITS = _options(f"0: no limit, whatever the tier says; {INHERIT}: what the tier says")
KEY_LIMITS = _options("0: no limit of its own")


def chosen_limits(chosen: dict[str, Any]) -> dict[str, int | None]:
    """Those that were given, by the names that the API has for them; None: what stands above it is to hold."""
    return {
        name: None if chosen[name] == INHERIT else chosen[name]
        for name in _OPTIONS
        if chosen[name] is not None
    }


def told_limits(limits: dict[str, int | None]) -> str:
    """Limits in one line."""
    told = [f"{value} {name.replace('_', ' ')}" for name, value in limits.items() if value]
    return ", ".join(told) or "none"
