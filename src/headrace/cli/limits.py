"""The options that say how much may be used."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def _limit(what: str, *names: str) -> tuple[Any, None]:
    text = f"At most so many {what}; 0: no limit of its own."
    return Annotated[int | None, typer.Option(*names, min=0, metavar="NUMBER", help=text)], None


LIMIT_OPTIONS = {
    "requests_per_minute": _limit("requests in a minute", "--rpm"),
    "requests_per_day": _limit("requests in a day (of UTC)", "--requests-per-day"),
    "requests_per_month": _limit("requests in a month", "--requests-per-month"),
    "tokens_per_minute": _limit("tokens in a minute", "--tpm"),
    "tokens_per_day": _limit("tokens in a day", "--tokens-per-day"),
    "tokens_per_month": _limit("tokens in a month", "--tokens-per-month"),
    "concurrency": _limit("requests at once", "--concurrency"),
}


def chosen_limits(chosen: dict[str, Any]) -> dict[str, int]:
    """Those that were given, by the names that the API has for them."""
    return {name: chosen[name] for name in LIMIT_OPTIONS if chosen[name] is not None}


def told_limits(limits: dict[str, int]) -> str:
    """Limits in one line."""
    told = [f"{value} {name.replace('_', ' ')}" for name, value in limits.items() if value]
    return ", ".join(told) or "none"
