"""The options that say what a route shall be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headrace.cli.office import with_options

_STRATEGIES = "round-robin, least-busy, latency, weighted, session or prefix"
_NONE = "none"
_TIMES = ("connect", "first_byte", "idle", "total")


def _terms(chosen: dict[str, Any]) -> dict[str, Any]:
    """What a route shall be, as the API has it."""
    plain = ("selector", "strategy", "target", "tokens_per_day", "priority", "reruns")
    terms = {name: chosen[name] for name in plain if chosen[name] is not None}
    times = {name: chosen[name] for name in _TIMES if chosen[name] is not None}
    if times:
        terms["timeouts"] = {name: None if time == _NONE else time for name, time in times.items()}
    if chosen["weight"]:
        terms["weights"] = dict(_weight(text) for text in _given(chosen["weight"]))
    if chosen["fallback"]:
        terms["fallbacks"] = [_fallback(text) for text in _given(chosen["fallback"])]
    return terms


def _given(texts: Sequence[str]) -> Sequence[str]:
    return [] if list(texts) == [_NONE] else texts


def _weight(text: str) -> tuple[str, float]:
    backend, _, number = text.rpartition("=")
    try:
        return backend, float(number)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not like box-1=2.5.", param_hint="--weight") from None


def _fallback(text: str) -> dict[str, Any]:
    """`node:hosted; model=gpt-4o-mini; when_busy`, or JSON. What its values have to be, the gateway knows."""
    if text.lstrip().startswith("{"):
        try:
            fallback: dict[str, Any] = json.loads(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not JSON.", param_hint="--fallback") from None
        return fallback
    selector, *terms = (part.strip() for part in text.split(";"))
    fallback = {"selector": selector}
    for term in filter(None, terms):
        name, mark, value = (part.strip() for part in term.partition("="))
        fallback[name.replace("-", "_")] = value if mark else True
    return fallback


def _time(what: str, name: str) -> tuple[Any, None]:
    text = f"{what}, such as 30s; none: as long as the backends' own settings say."
    return Annotated[str | None, typer.Option(name, metavar="TIME", help=text)], None


with_terms = with_options(
    "terms",
    {
        "selector": (
            Annotated[
                str | None,
                typer.Option(
                    "--selector",
                    "-s",
                    metavar="SELECTOR",
                    help="Which backends: any, tag:gpu, node:a,b, or several with '&': 'tag:gpu & node:box-*'.",
                ),
            ],
            None,
        ),
        "strategy": (
            Annotated[
                str | None,
                typer.Option("--strategy", metavar="NAME", help=f"How one of them is chosen: {_STRATEGIES}."),
            ],
            None,
        ),
        "target": (
            Annotated[
                str | None,
                typer.Option(
                    "--target", metavar="MODEL", help="The model they are asked for; '': the client's."
                ),
            ],
            None,
        ),
        "weight": (
            Annotated[
                list[str] | None,
                typer.Option(
                    "--weight",
                    metavar="BACKEND=NUMBER",
                    help="Of a backend here; may be given several times. none: their own.",
                ),
            ],
            None,
        ),
        "tokens_per_day": (
            Annotated[
                int | None,
                typer.Option(
                    "--tokens-per-day",
                    min=0,
                    metavar="NUMBER",
                    help="What they may take in a day (of UTC), fallbacks apart; 0: no limit.",
                ),
            ],
            None,
        ),
        "fallback": (
            Annotated[
                list[str] | None,
                typer.Option(
                    "--fallback",
                    metavar="FALLBACK",
                    help="Where else it goes: a selector, and after semicolons model=NAME, strategy=NAME, when_busy, "
                    "tokens_per_day=NUMBER; or JSON. May be given several times, in order. none: nowhere else.",
                ),
            ],
            None,
        ),
        "priority": (
            Annotated[
                int | None,
                typer.Option(
                    "--priority", metavar="NUMBER", help="Of several that match, the highest counts."
                ),
            ],
            None,
        ),
        "reruns": (
            Annotated[
                bool | None,
                typer.Option(
                    "--reruns/--no-reruns",
                    help="Whether a lost execution of which nothing was seen is done again.",
                ),
            ],
            None,
        ),
        "connect": _time("Time to open a connection", "--connect-timeout"),
        "first_byte": _time("Time until the answer's first byte", "--first-byte-timeout"),
        "idle": _time("Longest pause within an answer", "--idle-timeout"),
        "total": _time("Time for the whole execution", "--total-timeout"),
    },
    _terms,
)
"""For commands with a parameter `terms`: what was chosen of a route, as the API has it."""
