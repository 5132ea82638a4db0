"""`headrace route`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from headrace.cli.office import Office, asks_the_office, segment
from headrace.cli.route_terms import with_terms
from headrace.cli.tables import show_fields, show_table

RouteArgument = Annotated[str, typer.Argument(metavar="ROUTE", help="A route's id.")]


def build() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(
        help="Say where requests for a model go, at once.", no_args_is_help=True, rich_markup_mode=None
    )
    app.command("list")(list_)
    app.command()(show)
    app.command()(add)
    app.command("set")(set_)
    app.command()(remove)
    app.command("test")(try_)
    return app


@asks_the_office
def list_(office: Office) -> None:
    """List the routes, those of the configuration, too.

    \b
    Examples:
      headrace route list
      headrace route list --json | jq -r '.[] | select(.static | not) | .id'
    """
    columns = ("ID", "MODEL", "SELECTOR", "STRATEGY", "TARGET", "FALLBACKS", "PRIORITY", "FROM")

    def row(route: dict[str, Any]) -> tuple[object, ...]:
        told = dict(_fields(route))
        own = {"fallbacks": len(route["fallbacks"]), "priority": route["priority"]}
        return tuple(own.get(column.lower(), told[column.lower()]) for column in columns)

    routes = office.ask_all("/routes", "id")
    office.show(routes, lambda routes: show_table(columns, [row(route) for route in routes]))


@asks_the_office
def show(office: Office, route_id: RouteArgument) -> None:
    """Show a route.

    \b
    Example:
      headrace route show llama
    """
    office.show(office.ask("GET", f"/routes/{segment(route_id)}"), _show)


@asks_the_office
@with_terms
def add(
    office: Office,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="The model that clients ask for, or a pattern: '*' is any characters, '?' one.",
        ),
    ],
    terms: dict[str, Any],
    route_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Its name; else it is made of MODEL.")
    ] = None,
) -> None:
    """Add a route, which counts at once.

    \b
    Examples:
      headrace route add 'llama-*' --selector tag:gpu --strategy prefix
      headrace route add small --target llama-3-8b
      headrace route add gpt --selector node:a --fallback 'node:hosted; model=gpt-4o-mini; when_busy'
    """
    named = {"id": route_id} if route_id else {}
    office.show(office.ask("POST", "/routes", {"model": model, **named, **terms}), _show)


@asks_the_office
@with_terms
def set_(
    office: Office,
    route_id: RouteArgument,
    terms: dict[str, Any],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="What clients ask for, or a pattern.")
    ] = None,
) -> None:
    """Change a route, at once. What isn't named stays as it is.

    \b
    Examples:
      headrace route set llama --strategy latency --idle-timeout 1m
      headrace route set llama --fallback none
    """
    changes = terms if model is None else {"model": model, **terms}
    if not changes:
        raise typer.BadParameter("Name something to change.")
    office.show(office.ask("PATCH", f"/routes/{segment(route_id)}", changes), _show)


@asks_the_office
def remove(
    office: Office,
    route_id: RouteArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Remove a route, at once. Requests that went by it may end.

    \b
    Example:
      headrace route remove llama
    """
    if not yes and sys.stdin and sys.stdin.isatty():
        typer.confirm(f"Remove the route {route_id}?", abort=True, err=True)
    gone = office.ask("DELETE", f"/routes/{segment(route_id)}")
    office.show(gone, lambda gone: typer.echo(f"The route {gone['id']} is removed."))


@asks_the_office
def try_(
    office: Office,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model that a client would ask for.")],
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="A tag that it would want; may be given several times."),
    ] = None,
) -> None:
    """Tell which route counts for a model, and where a request would go now. Nothing is executed.

    \b
    Examples:
      headrace route test llama-3-8b
      headrace route test llama-3-8b --tag gpu --json | jq '.targets[0].backends'
    """
    office.show(office.ask("POST", "/routes/test", {"model": model, "tags": tag or []}), _show_trial)


def _show(route: dict[str, Any]) -> None:
    show_fields(_fields(route))


def _fields(route: dict[str, Any]) -> list[tuple[str, str]]:
    times = [f"{name} {time:g}s" for name, time in route["timeouts"].items() if time is not None]
    return [
        ("id", route["id"]),
        ("model", route["model"]),
        *_told_target(route, route["target"]),
        ("fallbacks", " then ".join(_told_fallback(fallback) for fallback in route["fallbacks"]) or "none"),
        ("priority", str(route["priority"])),
        ("reruns", "yes" if route["reruns"] else "no"),
        ("timeouts", ", ".join(times) or "the backends' own"),
        ("from", "configuration" if route["static"] else "database"),
    ]


def _told_target(target: dict[str, Any], model: str) -> list[tuple[str, str]]:
    weights = [f"{backend}={weight:g}" for backend, weight in target["weights"].items()]
    return [
        ("selector", target["selector"]),
        ("strategy", target["strategy"]),
        ("target", model or "the same"),
        ("weights", ", ".join(weights) or "their own"),
        ("tokens per day", str(target["tokens_per_day"] or "no limit")),
    ]


def _told_fallback(fallback: dict[str, Any]) -> str:
    """As `--fallback` has it."""
    told = [fallback["selector"]]
    if fallback["model"]:
        told.append(f"model={fallback['model']}")
    told.append(f"strategy={fallback['strategy']}")
    told += ["when_busy"] if fallback["when_busy"] else []
    told += [f"tokens_per_day={fallback['tokens_per_day']}"] if fallback["tokens_per_day"] else []
    return "; ".join(told)


def _show_trial(told: dict[str, Any]) -> None:
    route = told["route"]
    typer.echo(f"Route: {route['id'] if route else 'none'}")
    columns = ("TARGET", "SELECTOR", "MODEL", "USED NOW", "BACKENDS")
    rows = [
        (
            place,
            target["selector"],
            target["model"],
            "yes" if target.get("used", place == 1) else "no",
            ", ".join(_told_backend(backend) for backend in target["backends"]) or "none",
        )
        for place, target in enumerate(told["targets"], 1)
    ]
    show_table(columns, rows)


def _told_backend(backend: dict[str, Any]) -> str:
    taken = f", {backend['busy']} of {backend['slots']} in use" if "slots" in backend else ""
    return f"{backend['id']} ({backend['state']}{taken})"
