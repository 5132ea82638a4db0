"""`headrace import litellm` and `llama-swap`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.kernel.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.settings.importing.draft import Draft

SourceArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Its config.yaml.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="File to write [default: standard output]."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Write over FILE where it is there already.")]
SecretsOption = Annotated[
    bool,
    typer.Option(
        "--with-secrets",
        help="Put keys that stand in the original into the result; else comments say where they belong.",
    ),
]


def build() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(
        help="Make a headrace.toml of another gateway's configuration.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    app.command()(litellm)
    app.command(name="llama-swap")(llama_swap)
    return app


def litellm(
    source: SourceArgument,
    output: OutputOption = None,
    force: ForceOption = False,
    with_secrets: SecretsOption = False,
) -> None:
    """Make a headrace.toml of LiteLLM's config.yaml.

    What has no place there is told on standard error, key by key. The result is one that `headrace config check` takes.

    \b
    Examples:
      headrace import litellm config.yaml
      headrace import litellm config.yaml --output headrace.toml && headrace doctor
    """
    document = _read(source)
    from headrace.settings.importing import litellm as format_of

    _give(format_of.translate(document), output, force, with_secrets)


def llama_swap(
    source: SourceArgument,
    output: OutputOption = None,
    force: ForceOption = False,
    with_secrets: SecretsOption = False,
) -> None:
    """Make a headrace.toml of llama-swap's config.yaml.

    Models that llama.cpp's server serves become engines, other servers upstreams. What has no place there is told on standard
    error, key by key. The result is one that `headrace config check` takes.

    \b
    Examples:
      headrace import llama-swap config.yaml
      headrace import llama-swap config.yaml --output headrace.toml && headrace doctor
    """
    document = _read(source)
    from headrace.settings.importing import llama_swap as format_of

    _give(format_of.translate(document, os.environ), output, force, with_secrets)


def _read(source: Path) -> dict[str, Any]:
    try:
        from headrace.cli.importing_yaml import read_yaml
    except ImportError as error:
        raise HeadraceError(
            f"Reading YAML needs a package that isn't installed ({error.name}): pip install 'headrace[import]'."
        ) from error
    return read_yaml(source)


def _give(draft: Draft, output: Path | None, force: bool, with_secrets: bool) -> None:
    from headrace.settings.importing.writing import write

    text = write(draft, with_secrets=with_secrets)
    if output is None:
        typer.echo(text, nl=False)
    else:
        _save(text, output, force)
        typer.echo(f"{output} was written.", err=True)
    for line in draft.left.lines:
        typer.echo(f"not carried over: {line}", err=True)


def _save(text: str, output: Path, force: bool) -> None:
    """For its owner's eyes only, as it may hold keys; whole, or not at all."""
    if output.exists() and not force:
        raise HeadraceError(f"{output} is there already: nothing was written. --force writes over it.")
    draft = output.with_name(f".{output.name}.{os.getpid()}.new")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
        if force:
            draft.replace(output)
        else:
            os.link(draft, output)  # fails where somebody was first
    except OSError as error:
        raise HeadraceError(f"{output} can't be written: {error.strerror}.") from error
    finally:
        draft.unlink(missing_ok=True)
