"""A `headrace.toml` in the making, and what of the original it has no place for."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from headrace.settings.values import HEADER_SAFE, BackendUrl

LONGEST_S = 365 * 86400.0
_MOST_NAMED = 3
_NAME_CHARS = 64
_URL: TypeAdapter[str] = TypeAdapter(BackendUrl)


@dataclass(frozen=True)
class Secret:
    """A key of the original: its text, or the variable of the environment that it stands in. Never shown."""

    text: str = field(default="", repr=False)
    variable: str = ""


@dataclass
class UpstreamDraft:
    """One of `[[upstreams]]`. timeouts: seconds. about: comments above it."""

    name: str
    url: str
    kind: str = "openai"
    models: list[str] = field(default_factory=list)
    capacity: int | None = None
    tags: tuple[str, ...] = ()
    timeouts: Mapping[str, float] = field(default_factory=dict)
    key: Secret | None = None
    about: list[str] = field(default_factory=list)


class Leftovers:
    """What couldn't be carried over: which key, for what, and why."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = {}

    def add(self, key: str, reason: str, of: str = "") -> None:
        """*of*: the model or backend that it is about."""
        about = self._found.setdefault((key, reason), [])
        if of and of not in about:
            about.append(of)

    def rest(self, key: str, given: Mapping[str, Any], known: Mapping[str, str], of: str = "") -> None:
        """Tell each member of *given*, which stands at *key*, that has no place here. *known*: member → why it hasn't."""
        for name in given:
            where = f"{key}.{name}" if key else str(name)
            self.add(where, known.get(str(name), "Headrace has nothing like it."), of)

    @property
    def lines(self) -> list[str]:
        """One for each key and reason; free of secrets, for it holds no values, and of line breaks."""
        return [
            shown(f"{key}{f' ({_some(about)})' if about else ''}: {reason}")
            for (key, reason), about in self._found.items()
        ]


@dataclass
class Draft:
    """Engines and routes are as the settings read them. notes: comments at the top."""

    origin: str
    admin_keys: list[Secret] = field(default_factory=list)
    api_keys: list[Secret] = field(default_factory=list)
    log: dict[str, str] = field(default_factory=dict)
    engines: list[dict[str, Any]] = field(default_factory=list)
    upstreams: list[UpstreamDraft] = field(default_factory=list)
    routes: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: Leftovers = field(default_factory=Leftovers)


def shown(text: str) -> str:
    """*text* on one line, without what would break a comment or a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def unique(name: str, taken: Collection[str]) -> str:
    """A name like *name* that the settings take and that isn't *taken*."""
    made = (
        re.sub(r"[^A-Za-z0-9._:-]+", "-", name).strip("-._:")[: _NAME_CHARS - 4].rstrip("-._:") or "backend"
    )
    number, found = 1, made
    while found in taken:
        number += 1
        found = f"{made}-{number}"
    return found


def backend_url(text: object) -> str | None:
    """*text* as the settings have an address; None where it can't be one."""
    try:
        return _URL.validate_python(text, strict=True)
    except ValidationError:
        return None


def secret(text: str) -> Secret | None:
    """A key that can be sent; None where it can't."""
    return Secret(text) if HEADER_SAFE.fullmatch(text) else None


def table(value: object) -> dict[str, Any]:
    """*value* where it is a table, with its keys as text; else nothing."""
    return {str(name): each for name, each in value.items()} if isinstance(value, dict) else {}


def listed(value: object) -> list[Any]:
    """*value* where it is a list; else nothing."""
    return value if isinstance(value, list) else []


def number(value: object) -> float | None:
    """*value* where it is a number above 0, or text that says one; else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and found > 0 else None


def seconds(value: object) -> float | None:
    """A number of seconds that the settings take; None where it isn't one."""
    found = number(value)
    return min(found, LONGEST_S) if found is not None else None


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
