"""`headrace user`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from headrace.cli.limits import USER_LIMITS, chosen_limits, told_limits
from headrace.cli.moments import told_moment
from headrace.cli.office import Office, asks_the_office, segment, with_options
from headrace.cli.tables import show_fields, show_table

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="A user's id.")]


def build() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(help="Keep the users whom keys belong to.", no_args_is_help=True, rich_markup_mode=None)
    app.command()(add)
    app.command("list")(list_)
    app.command()(show)
    app.command("set")(set_)
    app.command()(remove)
    return app


def _traits(chosen: dict[str, Any]) -> dict[str, Any]:
    given = {name: chosen[name] for name in ("name", "email", "tier", "active")}
    given["limits"] = chosen_limits(chosen) or None
    return {name: value for name, value in given.items() if value is not None}


_with_traits = with_options(
    "traits",
    {
        "name": (Annotated[str | None, typer.Option("--name", metavar="TEXT", help="Who it is.")], None),
        "email": (
            Annotated[str | None, typer.Option("--email", metavar="ADDRESS", help="For people.")],
            None,
        ),
        "tier": (
            Annotated[
                str | None,
                typer.Option(
                    "--tier", metavar="NAME", help="A configured tier, whose limits hold; '': none."
                ),
            ],
            None,
        ),
        "active": (
            Annotated[
                bool | None,
                typer.Option("--active/--inactive", help="Whether the keys open anything, or all rest."),
            ],
            None,
        ),
        **USER_LIMITS,
    },
    _traits,
)


@asks_the_office
@_with_traits
def add(office: Office, user_id: UserArgument, traits: dict[str, Any]) -> None:
    """Add a user. Limits of its own go over those of its tier; where it has none, the tier's hold.

    \b
    Examples:
      headrace user add ann --name "Ann Example" --email ann@example.com
      headrace user add batch --tpm 100000 --concurrency 4
    """
    office.show(office.ask("POST", "/users", {"user_id": user_id, **traits}), _show)


@asks_the_office
def list_(office: Office) -> None:
    """List the users.

    \b
    Examples:
      headrace user list
      headrace user list --json | jq -r '.[] | select(.active | not) | .user_id'
    """
    columns = ("USER", "NAME", "EMAIL", "TIER", "LIMITS", "ACTIVE", "CREATED")

    def row(user: dict[str, Any]) -> tuple[str, ...]:
        told = dict(_fields(user))
        return tuple(told[column.lower()] for column in columns)

    users = office.ask_all("/users", "user_id")
    office.show(users, lambda users: show_table(columns, [row(user) for user in users]))


@asks_the_office
def show(office: Office, user_id: UserArgument) -> None:
    """Show a user.

    \b
    Example:
      headrace user show ann
    """
    office.show(office.ask("GET", f"/users/{segment(user_id)}"), _show)


@asks_the_office
@_with_traits
def set_(office: Office, user_id: UserArgument, traits: dict[str, Any]) -> None:
    """Change a user, at once. What isn't named stays as it is.

    \b
    Examples:
      headrace user set ann --inactive
      headrace user set ann --tier gold --rpm inherit
    """
    if not traits:
        raise typer.BadParameter("Name something to change.")
    office.show(office.ask("PATCH", f"/users/{segment(user_id)}", traits), _show)


@asks_the_office
def remove(
    office: Office,
    user_id: UserArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Remove a user and its keys, at once. The records of its requests stay.

    \b
    Example:
      headrace user remove ann
    """
    if not yes and sys.stdin and sys.stdin.isatty():
        typer.confirm(f"Remove {user_id} and its keys?", abort=True, err=True)
    gone = office.ask("DELETE", f"/users/{segment(user_id)}")
    office.show(gone, lambda gone: typer.echo(f"{gone['user_id']} and its keys are removed."))


def _show(user: dict[str, Any]) -> None:
    show_fields(_fields(user))


def _fields(user: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("user", user["user_id"]),
        ("name", user["name"]),
        ("email", user["email"]),
        ("active", "yes" if user["active"] else "no"),
        ("tier", user["tier"] or "none"),
        ("limits", told_limits(user["effective_limits"])),
        ("created", told_moment(user["created_at"])),
    ]
