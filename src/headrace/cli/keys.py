"""`headrace key`."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from headrace.cli.limits import KEY_LIMITS, chosen_limits, told_limits
from headrace.cli.moments import ahead, told_moment
from headrace.cli.office import Office, asks_the_office, segment, with_options
from headrace.cli.tables import show_fields, show_table

_SCOPES = ("inference", "admin")  # of domain.access, which costs every command its libraries
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="A key's id or prefix.")]


def build() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(help="Make, change and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)
    app.command()(create)
    app.command("list")(list_)
    app.command()(show)
    app.command("set")(set_)
    app.command()(revoke)
    return app


def _terms(chosen: dict[str, Any]) -> dict[str, Any]:
    """What a key shall be, as the API has it."""
    for scope in chosen["scope"] or ():
        if scope not in _SCOPES:
            raise typer.BadParameter(f"{scope!r} is not one of {', '.join(_SCOPES)}.", param_hint="--scope")
    given = {
        "name": chosen["name"],
        "scopes": chosen["scope"] or None,
        "models": chosen["model"] or None,
        "priority": chosen["priority"],
        "limits": chosen_limits(chosen) or None,
    }
    terms = {name: value for name, value in given.items() if value is not None}
    if chosen["expires"] is not None:
        never = chosen["expires"] == "never"
        terms["expires_at"] = None if never else ahead("--expires", chosen["expires"])
    return terms


_with_terms = with_options(
    "terms",
    {
        "name": (Annotated[str | None, typer.Option("--name", metavar="TEXT", help="What it is for.")], None),
        "scope": (
            Annotated[
                list[str] | None,
                typer.Option("--scope", metavar="SCOPE", help="inference or admin; several times: both."),
            ],
            None,
        ),
        "model": (
            Annotated[
                list[str] | None,
                typer.Option(
                    "--model",
                    metavar="PATTERN",
                    help="Only models of such names, such as 'llama-*'; may be given several times. '*': all.",
                ),
            ],
            None,
        ),
        "priority": (
            Annotated[
                int | None,
                typer.Option(
                    "--priority", min=-1, max=1, metavar="CLASS", help="In the queue: 1 first, 0, or -1 last."
                ),
            ],
            None,
        ),
        "expires": (
            Annotated[
                str | None,
                typer.Option(
                    "--expires",
                    metavar="TIME",
                    help="When it ends: 90d, 12h, a date such as 2027-01-31, or never.",
                ),
            ],
            None,
        ),
        **KEY_LIMITS,
    },
    _terms,
)


@asks_the_office
@_with_terms
def create(
    office: Office,
    user: Annotated[
        str, typer.Option("--user", "-u", metavar="USER", help="Whose it is; made if there is none.")
    ],
    terms: dict[str, Any],
) -> None:
    """Make a key, and show it: this once, for it is kept nowhere.

    \b
    Examples:
      headrace key create --user ann --name laptop
      headrace key create --user ci --model 'llama-*' --rpm 60 --tokens-per-day 1000000 --expires 90d
      headrace key create --user ops --scope admin --json | jq -r .key
    """
    made = office.ask("POST", "/keys", {"user_id": user, **terms})

    def shown(made: dict[str, Any]) -> None:
        show_fields([("key", made["key"]), ("id", made["key_id"]), ("user", made["user_id"])])
        typer.echo("Keep it now: it can't be shown again.")

    office.show(made, shown)


@asks_the_office
def list_(
    office: Office,
    user: Annotated[
        str | None, typer.Option("--user", "-u", metavar="USER", help="Only this user's.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Those that are revoked or expired, too.")] = False,
) -> None:
    """List the keys that open the gateway. Those of the configuration are not among them.

    \b
    Examples:
      headrace key list
      headrace key list --user ann --all
      headrace key list --json | jq -r '.[].key_id'
    """
    keys = [key for key in office.ask_all("/keys", "key_id", user=user) if every or _state(key) == "active"]
    columns = ("ID", "PREFIX", "USER", "NAME", "SCOPES", "MODELS", "LIMITS", "EXPIRES", "STATE")

    def row(key: dict[str, Any]) -> tuple[str, ...]:
        told = dict(_fields(key))
        return tuple(told[column.lower()] for column in columns)

    office.show(keys, lambda keys: show_table(columns, [row(key) for key in keys]))


@asks_the_office
def show(office: Office, key_id: KeyArgument) -> None:
    """Show what a key may do. The key itself can't be shown.

    \b
    Example:
      headrace key show sk-hr-Ab3dE
    """
    office.show(office.ask("GET", f"/keys/{segment(key_id)}"), _show)


@asks_the_office
@_with_terms
def set_(office: Office, key_id: KeyArgument, terms: dict[str, Any]) -> None:
    """Change what a key may do, at once. What isn't named stays as it is.

    \b
    Examples:
      headrace key set sk-hr-Ab3dE --rpm 120
      headrace key set sk-hr-Ab3dE --model '*' --expires never
    """
    if not terms:
        raise typer.BadParameter("Name something to change.")
    office.show(office.ask("PATCH", f"/keys/{segment(key_id)}", terms), _show)


@asks_the_office
def revoke(office: Office, key_id: KeyArgument) -> None:
    """Let a key in no more, at once and for good. Requests that it began may end.

    \b
    Example:
      headrace key revoke sk-hr-Ab3dE
    """
    revoked = office.ask("DELETE", f"/keys/{segment(key_id)}")
    office.show(revoked, lambda key: typer.echo(f"{key['key_id']} ({key['prefix']}…) is revoked."))


def _show(key: dict[str, Any]) -> None:
    show_fields(_fields(key))


def _fields(key: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("id", key["key_id"]),
        ("prefix", key["prefix"]),
        ("user", key["user_id"]),
        ("name", key["name"]),
        ("state", _state(key)),
        ("scopes", ", ".join(key["scopes"])),
        ("models", ", ".join(key["models"]) or "all"),
        ("limits", told_limits(key["limits"])),
        ("priority", str(key["priority"])),
        ("created", told_moment(key["created_at"])),
        ("expires", told_moment(key["expires_at"]) or "never"),
    ]


def _state(key: dict[str, Any]) -> str:
    if key["revoked_at"] is not None:
        return "revoked"
    return "expired" if key["expires_at"] is not None and key["expires_at"] <= time.time() else "active"
