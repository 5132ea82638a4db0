"""`headrace node`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from headrace.cli.office import Office, asks_the_office, segment
from headrace.cli.tables import show_fields, show_table

NodeArgument = Annotated[
    str, typer.Argument(metavar="NODE", help="A node's id, as `headrace node list` has it.")
]
_MOST_MODELS = 3


def build() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(
        help="See what serves models, and how it is.", no_args_is_help=True, rich_markup_mode=None
    )
    app.command("list")(list_)
    app.command()(show)
    return app


@asks_the_office
def list_(office: Office) -> None:
    """List engines, upstreams and nodes, and how each of them is.

    \b
    Examples:
      headrace node list
      headrace node list --json | jq -r '.[] | select(.healthy | not) | .id'
    """
    columns = (
        "NAME", "KIND", "STATE", "BREAKER", "BUSY", "FIRST TOKEN", "BETWEEN TOKENS", "MODELS", "LAST ERROR",
    )  # fmt: skip
    nodes = office.ask_all("/runtimes", "id")
    office.show(nodes, lambda nodes: show_table(columns, [_row(node) for node in nodes]))


@asks_the_office
def show(office: Office, node_id: NodeArgument) -> None:
    """Show a node: where it stands, what it runs, what it holds, and what went wrong.

    \b
    Examples:
      headrace node show local/smollm2
      headrace node show gpu-box --json | jq .breaker
    """
    office.show(office.ask("GET", f"/runtimes/{segment(node_id)}"), _show)


def _row(node: Mapping[str, Any]) -> tuple[str, ...]:
    latencies = node["latencies"].values()
    names = [model["id"] for model in node["models"]]
    more = [f"+{len(names) - _MOST_MODELS}"] if len(names) > _MOST_MODELS else []
    return (
        node["id"],
        _kind(node),
        node["state"],
        node["breaker"]["state"],
        f"{node['busy']}/{node['slots']}",
        _range([latency["first_token_s"] for latency in latencies]),
        _range([latency["between_tokens_s"] for latency in latencies]),
        ", ".join([*names[:_MOST_MODELS], *more]),
        node["last_error"],
    )


def _show(node: Mapping[str, Any]) -> None:
    show_fields(_fields(node))
    rows = [
        (model["id"], _told_loaded(model["loaded"]), *_told_latency(node["latencies"].get(model["id"])))
        for model in node["models"]
    ]
    if rows:
        typer.echo("")
        show_table(("MODEL", "LOADED", "FIRST TOKEN", "BETWEEN TOKENS"), rows)


def _fields(node: Mapping[str, Any]) -> list[tuple[str, object]]:
    failures = [f"{count} {kind.replace('_', ' ')}" for kind, count in node["failures"].items()]
    ready_in_s = node["ready_in_s"]
    return [
        ("id", node["id"]),
        ("kind", _kind(node)),
        ("state", f"{node['state']} since {_told(node['since'])}" if node["since"] else node["state"]),
        ("detail", node["detail"]),
        ("ready in", "" if ready_in_s is None else _seconds(ready_in_s)),
        ("breaker", _told_breaker(node["breaker"])),
        ("busy", f"{node['busy']} of {node['slots']} slots now, {node['capacity']} when all is well"),
        ("tags", ", ".join(node["tags"])),
        ("weight", f"{node['weight']:g}"),
        ("executions", node["executions"]),
        ("failures", ", ".join(failures) or "none"),
        (
            "last error",
            f"{_told(node['last_error_at'])} {node['last_error']}" if node["last_error"] else "none",
        ),
    ]


def _kind(node: Mapping[str, Any]) -> str:
    """What it speaks; an engine of this machine is just that."""
    return str(node["kind"] if node["connector"] == "direct" else node["connector"])


def _told_breaker(breaker: Mapping[str, Any]) -> str:
    told = [breaker["state"]]
    if breaker["changes_in_s"] is not None:
        told.append(f"changes in {_seconds(breaker['changes_in_s'])}")
    if breaker["failures"]:
        told.append(f"{breaker['failures']} failures in a row")
    if breaker["openings"]:
        told.append(f"left alone {breaker['openings']} times")
    return ", ".join(told)


def _told_loaded(loaded: bool | None) -> str:
    return "unknown" if loaded is None else "yes" if loaded else "no"


def _told_latency(latency: Mapping[str, Any] | None) -> tuple[str, str]:
    if latency is None:
        return "", ""
    return _range([latency["first_token_s"]]), _range([latency["between_tokens_s"]])


def _told(moment: str) -> str:
    """A time of the API, to the second."""
    return f"{moment[:10]} {moment[11:19]}Z"


def _range(values: list[float | None]) -> str:
    """The least and the greatest of *values*; empty without any."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    ends = dict.fromkeys((_seconds(min(known)), _seconds(max(known))))
    return " to ".join(ends)


def _seconds(value: float) -> str:
    return (
        f"{value * 1000:.3g} ms" if value < 0.9995 else f"{value:.3g} s" if value < 1000 else f"{value:.0f} s"
    )
