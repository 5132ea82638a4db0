"""`headrace requests`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from headrace.cli.moments import told_moment
from headrace.cli.office import Office, asks_the_office, with_options
from headrace.cli.tables import plain, show_table
from headrace.cli.tail import Tail
from headrace.cli.usage import SELECTING, selected

_MOST = 1000
_PAUSE_S = 1.0
_COLUMNS = ("TIME", "STATUS", "HTTP", "MS", "MODEL", "NODE", "USER", "KEY", "TOKENS", "ERROR")
_FILTERS = SELECTING | {
    "node": (Annotated[str | None, typer.Option("--node", metavar="ID", help="Only on this backend.")], None),
    "status": (
        Annotated[
            str | None,
            typer.Option("--status", metavar="STATUS", help="completed, cancelled, failed or refused."),
        ],
        None,
    ),
}
_with_filters = with_options("selection", _FILTERS, selected)


def build() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(
        help="See what was asked for, and what became of it.", no_args_is_help=True, rich_markup_mode=None
    )
    app.command("list")(list_)
    app.command()(tail)
    return app


@asks_the_office
@_with_filters
def list_(
    office: Office,
    selection: dict[str, Any],
    limit: Annotated[
        int,
        typer.Option(
            "--limit",
            "-n",
            min=1,
            max=_MOST,
            metavar="NUMBER",
            help="So many [default: 200].",
            show_default=False,
        ),
    ] = 200,
) -> None:
    """List the newest requests, the newest last.

    \b
    Examples:
      headrace requests list -n 20
      headrace requests list --status failed --since 12h --json | jq -r '.[].request_id'
    """
    records = office.ask("GET", "/recent", limit=limit, **selection)["data"][::-1]
    office.show(records, lambda records: show_table(_COLUMNS, [_row(record) for record in records]))


@asks_the_office
@_with_filters
def tail(
    office: Office,
    selection: dict[str, Any],
    limit: Annotated[
        int,
        typer.Option(
            "--limit",
            "-n",
            min=0,
            max=_MOST,
            metavar="NUMBER",
            help="So many that were [default: 10].",
            show_default=False,
        ),
    ] = 10,
) -> None:
    """Show the last requests, and each that ends from then on, until Ctrl-C. With --json: one object in a line.

    Requests that took more than an hour are not shown.

    \b
    Example:
      headrace requests tail --user ann
    """

    def write(record: dict[str, Any]) -> None:
        typer.echo(json.dumps(record) if office.as_json else _line(record))

    asyncio.run(_follow(office, selection, limit, write))


async def _follow(
    office: Office, selection: dict[str, Any], limit: int, write: Callable[[dict[str, Any]], None]
) -> None:
    connector = office.connect()

    async def ask(query: dict[str, Any]) -> dict[str, Any]:
        told = await office.exchange(connector, "GET", "/recent", query={**selection, **query})
        page: dict[str, Any] = json.loads(told)
        return page

    try:
        tail = Tail(ask)
        for record in await tail.begin(limit):
            write(record)
        while True:
            await asyncio.sleep(_PAUSE_S)
            for record in await tail.news():
                write(record)
            if tail.cut_short:
                typer.echo(
                    "headrace: too many requests at once: the older ones of them aren't shown.", err=True
                )
    finally:
        await connector.close()


def _row(record: dict[str, Any]) -> tuple[object, ...]:
    return (
        told_moment(record["created_at"]),
        record["status"],
        record["http_status"],
        round(record["latency_ms"]),
        record["model"],
        record["node"],
        record["user_id"],
        record["key_id"],
        record["total_tokens"],
        record["error"],
    )


def _line(record: dict[str, Any]) -> str:
    when, status, http_status, ms, *rest = _row(record)
    return f"{when}  {status:<9}  {http_status:>3}  {ms:>7} ms  " + "  ".join(
        plain(cell) or "-" for cell in rest
    )
