"""The environment over the file: `HEADRACE_SECTION__KEY`, and the names that the founding documents use."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.settings import fields

Location = tuple[str | int, ...]

ALIASES: dict[str, tuple[str, str]] = {
    "API_KEYS": ("auth", "api_keys"),
    "DATABASE_URL": ("storage", "url"),
    "DEFAULT_EMBED_MODEL": ("models", "default_embed"),
    "DEFAULT_MODEL": ("models", "default"),
    "LOCAL_RUNTIME_ENABLED": ("ollama", "probe"),
    "OLLAMA_BASE_URL": ("ollama", "url"),
    "RATE_LIMIT": ("limits", "requests_per_minute"),
}
"""Other names of a key. The canonical name wins over them, they win over the file."""

COMPAT = "ollabridge"
COMPAT_ALIASES: dict[str, tuple[str, str]] = {"HOST": ("server", "host"), "PORT": ("server", "port")}
"""Names that shells set by themselves: they count only with `HEADRACE_COMPAT=ollabridge`."""

UNUSED_ALIASES: dict[str, str] = {
    "ENROLLMENT_SECRET": "nodes can't enroll yet",
    "ENROLLMENT_TTL_SECONDS": "nodes can't enroll yet",
    "MODE": "this program is always a gateway",
    "OBRIDGE_NODE_ID": "there is no node agent yet",
    "OBRIDGE_PUBLIC_LINK_CMD": "there is no node agent yet",
    "RELAY_ENABLED": "nodes can't dial in yet",
}
"""Names that are known and do nothing, each with the reason."""

_PREFIX = "HEADRACE_"


@dataclass
class Said:
    """What the environment says. `document`: the file's content with it put over. `origins`: which variable set what."""

    document: dict[str, Any]
    origins: dict[Location, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unused_aliases: list[str] = field(default_factory=list)


def read(environ: Mapping[str, str], document: Mapping[str, Any]) -> Said:
    """Put the environment over *document*, which stays as it is. Empty variables count as unset."""
    said = Said(copy.deepcopy(dict(document)))
    present = {name: value for name, value in sorted(environ.items()) if value.strip()}
    for name, location in _aliases(present, said):
        _put(said, location, present[name], name)
    canonical = [name for name in present if name.startswith(_PREFIX)]
    for name in sorted(canonical, key=_by_index):
        _canonical(name, present[name], said)
    return said


def variable(location: Location) -> str:
    """The canonical variable of the key at *location*."""
    return _PREFIX + "__".join(str(step).upper() for step in location)


def _aliases(present: Mapping[str, str], said: Said) -> Iterator[tuple[str, Location]]:
    compat = present.get("HEADRACE_COMPAT")
    if compat not in (None, COMPAT):
        said.errors.append(f"HEADRACE_COMPAT: {compat!r} is not known; {COMPAT!r} is")
    known = ALIASES | (COMPAT_ALIASES if compat == COMPAT else {})
    yield from ((name, location) for name, location in known.items() if name in present)
    for name, reason in UNUSED_ALIASES.items():
        if name not in present or (name, present[name].strip()) == ("MODE", "gateway"):
            continue
        said.unused_aliases.append(name)
        said.warnings.append(f"{name} is set in the environment and has no effect: {reason}")


def _by_index(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """Whole lists first, then their items in order."""
    steps = name.split("__")
    return len(steps) > 1, [(int(step) if step.isdecimal() else -1, step) for step in steps]


def _canonical(name: str, value: str, said: Said) -> None:
    first, *rest = name.removeprefix(_PREFIX).lower().split("__")
    found = fields.section(first)
    if not rest:
        if found and found[1]:
            _whole_list(said, first, value, name)
        else:
            _warn_of_single_underscore(first, name, said)
        return
    if found is None:
        # The checker names the nearest section; the variable is in the origins for its sentence.
        _put(said, (first, *rest), value, name)
        return
    _, listed = found
    location: Location = (first, *rest)
    if listed:
        if not rest[0].isdecimal() or len(rest) < 2:
            said.errors.append(
                f"{name}: write it like {variable((first, 0))}__KEY, 0 being the first [[{first}]]"
            )
            return
        location = (first, int(rest[0]), *rest[1:])
    _put(said, location, value, name)


def _warn_of_single_underscore(rest: str, name: str, said: Said) -> None:
    """Only a warning: the platform may set such names by itself (a service called headrace-server, say)."""
    for section, model, _ in fields.sections():
        key = rest.removeprefix(section + "_")
        if key != rest and key in model.model_fields:
            said.warnings.append(f"{name} has no effect; did you mean {variable((section, key))}?")


def _whole_list(said: Said, section: str, value: str, name: str) -> None:
    try:
        items = json.loads(value)
    except ValueError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        said.errors.append(f'{name}: has to be a JSON list of objects, like [{{"key": "value"}}]')
        return
    said.document[section] = items
    said.origins[(section,)] = name


def _put(said: Said, location: Location, text: str, name: str) -> None:
    holder: Any = said.document
    for step in location[:-1]:
        if isinstance(step, int):
            if step > len(holder):
                said.errors.append(
                    f"{name}: number {len(holder)} has to be set first, they are counted from 0"
                )
                return
            if step == len(holder):
                holder.append({})
            holder = holder[step]
        else:
            holder = holder.setdefault(step, [] if fields.is_listed(step) and holder is said.document else {})
        if not isinstance(holder, (dict, list)):
            return  # the file holds something else there, which the checker tells
    if not isinstance(holder, dict):
        return
    holder[location[-1]] = _value(location, text)
    said.origins[location] = name


def _value(location: Location, text: str) -> object:
    if not fields.holds_several(location):
        return text.strip()
    if re.match(r"\s*\[", text):
        try:
            return json.loads(text)
        except ValueError:
            return text  # told as "should be a list"
    return [word.strip() for word in text.split(",") if word.strip()]
