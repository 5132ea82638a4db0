"""The settings on paper: the documentation of every key, and a run's settings as TOML. Secrets are never written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from headrace.settings import environment, fields
from headrace.settings.schema import ConfigFile, Settings
from headrace.settings.section import Section
from headrace.settings.values import InConfigFolder, StorageUrl, Unit

HIDDEN = "********"
_SIZES = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024), ("B", 1))


def show(settings: Settings) -> str:
    """The settings in force, as a `headrace.toml` that would give them again, but for the secrets."""
    lines = [
        f"# file: {settings.source or 'none'}",
        f"# data folder (HEADRACE_HOME): {settings.home}",
        f"# model cache (HEADRACE_CACHE): {settings.cache}",
    ]
    for name, _, listed in fields.sections():
        value = getattr(settings, name)
        for table in value if listed else (value,):
            lines += ["", f"[[{name}]]" if listed else f"[{name}]", *_table(table)]
    return "\n".join(lines) + "\n"


def shown(settings: Settings) -> dict[str, object]:
    """The same for machines: plain values (seconds, bytes), secrets hidden."""
    sections = {name: _plain(getattr(settings, name)) for name in ConfigFile.model_fields}
    own = ("source", "home", "cache", "unused_aliases", "warnings")
    return sections | {name: _plain(getattr(settings, name)) for name in own}


def schema() -> dict[str, Any]:
    """JSON Schema of `headrace.toml`, for editors."""
    return ConfigFile.model_json_schema() | {"title": "headrace.toml"}


def configuration_page() -> str:
    """`docs/reference/configuration.md`."""
    return "".join(f"{line}\n" for line in _page())


def _table(table: Section) -> Iterator[str]:
    for key, field in type(table).model_fields.items():
        value = getattr(table, key)
        if value is not None:
            yield f"{key} = {_toml(value, field)}"


def _toml(value: Any, field: FieldInfo) -> str:
    if isinstance(value, Section):
        return _inline(_table(value))
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item, field) for item in value) + "]"
    if isinstance(value, dict):
        return _inline(f"{_literal(key)} = {_toml(item, field)}" for key, item in value.items())
    unit = fields.mark(field, Unit)
    if unit is Unit.DURATION:
        return json.dumps(_duration(value))
    if unit is Unit.SIZE:
        return json.dumps(_size(value))
    return _literal(_plain(value))


def _inline(entries: Iterable[str]) -> str:
    text = ", ".join(entries)
    return f"{{ {text} }}" if text else "{}"


def _literal(value: object) -> str:
    """JSON's form of text, numbers and booleans is TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return {key: _plain(getattr(value, key)) for key in type(value).model_fields}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, StorageUrl):
        return str(value)  # itself without its password
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _duration(seconds: float) -> str:
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def _size(size_bytes: int) -> str:
    return next(f"{size_bytes // size}{unit}" for unit, size in _SIZES if size_bytes % size == 0)


def _page() -> Iterator[str]:
    yield from _INTRODUCTION.strip().splitlines()
    for name, model, listed in fields.sections():
        yield from ("", f"## `[[{name}]]`" if listed else f"## `[{name}]`", "")
        yield (model.__doc__ or "").strip() + (" One table for each." if listed else "")
        yield from _keys(model, environment.variable((name, 0) if listed else (name,)))
    yield from ("", "## Other names", "", *_ALIASES.strip().splitlines(), "")
    yield from ("| variable | is the same as |", "|---|---|")
    aliases = {name: ("", place) for name, place in environment.ALIASES.items()}
    aliases |= {
        name: (f" (only with `HEADRACE_COMPAT={environment.COMPAT}`)", place)
        for name, place in environment.COMPAT_ALIASES.items()
    }
    for name, (condition, place) in sorted(aliases.items()):
        yield f"| `{name}`{condition} | `{environment.variable(place)}` |"
    yield from ("", "Known, and without effect so far; a warning says so:", "")
    yield from ("| variable | why |", "|---|---|")
    yield from (f"| `{name}` | {reason} |" for name, reason in environment.UNUSED_ALIASES.items())


def _keys(model: type[Section], prefix: str) -> Iterator[str]:
    plain = {key: field for key, field in model.model_fields.items() if not fields.nested(field)}
    yield ""
    yield from _rows(plain)
    example = next(iter(plain))
    yield from ("", f"In the environment: `{prefix}__{example.upper()}` and so on.")
    for key, field in model.model_fields.items():
        inner = fields.nested(field)
        if inner:
            yield from ("", f"### `{key} = {{ … }}`", "", (inner.__doc__ or "").strip())
            yield from _keys(inner, f"{prefix}__{key.upper()}")
        if several := fields.nested_list(field):
            yield from (
                "",
                f"### `{key} = [{{ … }}]`",
                "",
                (several.__doc__ or "").strip() + " One table for each.",
                "",
            )
            yield from _rows(several.model_fields)


def _rows(table: Mapping[str, FieldInfo]) -> Iterator[str]:
    yield from ("| key | kind | default | what it is |", "|---|---|---|---|")
    for key, field in table.items():
        yield f"| `{key}` | {_kind(field)} | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "unset" if field.default is None else f"`{_toml(field.default, field)}`"


def _kind(field: FieldInfo) -> str:
    text = str(field.annotation)
    options = fields.options(field)
    if options:
        return " or ".join(f"`{option}`" for option in options)
    if fields.nested_list(field):
        return "list of tables, as JSON in the environment"
    if fields.is_list(field):
        return "list of keys" if "SecretStr" in text else "list of text"
    if get_origin(field.annotation) is dict:
        return "table of numbers"
    if unit := fields.mark(field, Unit):
        return str(unit.value)
    if fields.mark(field, InConfigFolder):
        return "path, relative to the file it stands in"
    if "SecretStr" in text:
        return "secret"
    names = {bool: "true or false", int: "whole number", float: "number"}
    # Of `int | None`, too: that it may be unset stands in the next column.
    return next(
        (names[part] for part in (field.annotation, *get_args(field.annotation)) if part in names), "text"
    )


_INTRODUCTION = """
# Configuration

*Generated from the code by `scripts/generate_reference.py`; a test compares them.*

Headrace runs without any configuration. What is to be different goes into one TOML file:

1. the file that `--config FILE` names, or else
2. `headrace.toml` in the working folder, or else
3. `headrace.toml` in the data folder.

Every key is also an environment variable, `HEADRACE_SECTION__KEY` (two underscores), which wins over the file. An empty
variable counts as unset. Lists are written with commas or as JSON: `HEADRACE_AUTH__API_KEYS=one,two`. Tables of a list are
counted from 0: `HEADRACE_UPSTREAMS__0__API_KEY`; or all of them are given as JSON: `HEADRACE_ENGINES='[{"id": "a", …}]'`.

Durations are written `500ms`, `30s`, `15m`, `2h`, `1d`; a bare number is seconds. Sizes are written `512KiB`, `10MiB` (powers
of 1024) or `2GB` (of 1000); a bare number is bytes. Keys that don't exist are errors, so a slip of the pen can't go unseen:
`headrace config check` tells all of them, `headrace config show` what is in force, `headrace config schema` what an editor wants.

Without any `[[engines]]` and `[[upstreams]]` the demo model is served, as if there were an engine with `id = "smollm2"` and
`model = "demo"`.

| variable | what it is | default |
|---|---|---|
| `HEADRACE_HOME` | the data folder | the platform's folder for a user's data |
| `HEADRACE_CACHE` | where models are kept | the platform's folder for a user's cache |
| `HEADRACE_API_KEY` | the key that `headrace chat` and other clients present | the key that the first start kept |
| `HEADRACE_URL` | the gateway that `headrace chat` and other clients talk to | the one that is configured here |
| `HEADRACE_DEBUG` | `1`: errors come with their traceback | unset |
"""

_ALIASES = """
These variables mean the same as a key; `HEADRACE_SECTION__KEY` wins over them.
"""
