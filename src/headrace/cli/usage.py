"""`headrace usage`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from headrace.cli.moments import ago
from headrace.cli.office import Office, asks_the_office, with_options
from headrace.cli.tables import show_table

_SUMS = ("requests", "failed", "prompt_tokens", "completion_tokens", "total_tokens")


def _text(name: str, metavar: str, text: str) -> tuple[Any, None]:
    return Annotated[str | None, typer.Option(name, metavar=metavar, help=text)], None


SELECTING = {
    "since": _text("--since", "TIME", "Not before: 7d, 12h, or a date such as 2026-01-31 (of UTC)."),
    "until": _text("--until", "TIME", "Before that time, written the same way."),
    "user": _text("--user", "USER", "Only this user's."),
    "key_id": _text("--key-id", "ID", "Only this key's."),
    "model": _text("--model", "NAME", "Only of this model."),
}


def selected(chosen: dict[str, Any]) -> dict[str, Any]:
    """What narrows, as the API has it."""
    given = {name: value for name, value in chosen.items() if name not in ("since", "until", "key_id")}
    since, until = ago("--since", chosen["since"]), ago("--until", chosen["until"])
    return {**given, "key": chosen["key_id"], "since": since, "until": until}


@asks_the_office
@with_options("selection", SELECTING, selected)
def usage(
    office: Office,
    selection: dict[str, Any],
    by: Annotated[
        str, typer.Option("--by", metavar="WHAT", help="user, key, model, day, or several with commas.")
    ] = "user",
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV, for spreadsheets.")] = False,
) -> None:
    """Sum up requests and tokens.

    \b
    Examples:
      headrace usage --since 7d
      headrace usage --by day,model --user ann --since 30d
      headrace usage --by user,model --since 2026-01-01 --until 2026-02-01 --csv > january.csv
    """
    if as_csv and office.as_json:
        raise typer.BadParameter("It is one of --csv and --json.")
    if as_csv:
        table = office.ask_raw("GET", "/usage", by=by, format="csv", **selection)
        typer.echo(table, nl=False)
        return
    told = office.ask("GET", "/usage", by=by, **selection)
    office.show(told["data"], lambda rows: _show(told["by"], rows))


def _show(by: list[str], rows: list[dict[str, Any]]) -> None:
    columns = [name.replace("_", " ").upper() for name in (*by, *_SUMS)]
    cells: list[list[object]] = [[row[name] for name in (*by, *_SUMS)] for row in rows]
    if len(rows) > 1:
        cells.append(["all", *[""] * (len(by) - 1), *(sum(row[name] for row in rows) for name in _SUMS)])
    show_table(columns, cells)
