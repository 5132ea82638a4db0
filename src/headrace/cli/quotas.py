"""`headrace quota`."""

from __future__ import annotations

from typing import Any

import typer

from headrace.cli.limits import USER_LIMITS, chosen_limits
from headrace.cli.moments import told_moment
from headrace.cli.office import Office, asks_the_office, segment, with_options
from headrace.cli.tables import show_table
from headrace.cli.users import UserArgument


def build() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(help="See and set how much users may use.", no_args_is_help=True, rich_markup_mode=None)
    app.command()(show)
    app.command("set")(set_)
    return app


@asks_the_office
def show(office: Office, user_id: UserArgument) -> None:
    """Show what a user and its keys have used of their limits, and when these are renewed.

    \b
    Examples:
      headrace quota show ann
      headrace quota show ann --json | jq '.windows[] | select(.remaining == 0)'
    """
    office.show(office.ask("GET", f"/users/{segment(user_id)}/quota"), _show)


@asks_the_office
@with_options("limits", USER_LIMITS, chosen_limits)
def set_(office: Office, user_id: UserArgument, limits: dict[str, int | None]) -> None:
    """Set limits of a user, over those of its tier, at once. What isn't named stays as it is.

    \b
    Examples:
      headrace quota set ann --requests-per-day 1000 --tokens-per-month 2000000
      headrace quota set ann --rpm 0 --tokens-per-day inherit
    """
    if not limits:
        raise typer.BadParameter("Name a limit, such as --rpm 60.")
    office.ask("PATCH", f"/users/{segment(user_id)}", {"limits": limits})
    office.show(office.ask("GET", f"/users/{segment(user_id)}/quota"), _show)


def _show(quota: dict[str, Any]) -> None:
    windows = quota["windows"]
    if not windows:
        typer.echo(f"{quota['user_id']} has no limits.")
        return
    columns = ("WHOSE", "WHAT", "PER", "LIMIT", "USED", "LEFT", "RENEWED")
    show_table(columns, [_row(window) for window in windows])


def _row(window: dict[str, Any]) -> tuple[object, ...]:
    period = "at once" if window["period"] == "now" else window["period"]
    counts = (window["limit"], window["used"], window["remaining"])
    return (window["subject"], window["measure"], period, *counts, told_moment(window["resets_at"]))
