"""What is wrong with the settings, in sentences that name the place and the nearest right thing. Never a secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from headrace.domain.fleet import near_names
from headrace.kernel.errors import ConfigError
from headrace.settings import fields
from headrace.settings.environment import Location, variable
from headrace.settings.upstreams import known_kinds

_LONGEST_QUOTE = 60
_PLAIN = {
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "int_from_float": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "dict_type": "should be a table",
    "model_type": "should be a table",
    "string_too_short": "should not be empty",
    "string_type": "should be text, in quotes",
    "tuple_type": "should be a list",
}


@dataclass(frozen=True)
class Places:
    """Where values come from: the *file*, or a variable of the environment."""

    file: str
    origins: Mapping[Location, str]

    def origin(self, location: Location) -> str | None:
        """The variable that set the value at *location*, or what holds it; None where the file did."""
        holders = (location[:length] for length in range(len(location), 0, -1))
        return next((self.origins[part] for part in holders if part in self.origins), None)

    def within(self, location: Location) -> str | None:
        """The first variable that set something inside of *location*; None where none did."""
        return next((name for part, name in self.origins.items() if part[: len(location)] == location), None)

    def table(self, location: Location) -> str:
        """The table at *location*, for a person."""
        if not location:
            return f"the top of {self.file}"
        return f"{_heading(location)} of {self.file}"

    def key(self, location: Location) -> str:
        """The key at *location*, for a person."""
        key, table = _split(location)
        name = self.origin(location) or (self.within(location) if key else None)
        if name is None:
            return f"{key!r} in {self.table(table)}" if key else self.table(table)
        inexact = key and name == self.origins.get(table[:1])
        return f"{key!r} of {_heading(table)} in {name}" if inexact else name


def sentences(error: ValidationError, places: Places) -> Iterator[str]:
    """One for each thing that pydantic found."""
    for detail in error.errors(include_url=False):
        location = tuple(detail["loc"])
        if detail["type"] == "extra_forbidden":
            yield _unknown(location, detail["input"], places)
        elif detail["type"] == "missing":
            origin = places.origin(location[:-1])
            where = f"{_heading(location[:-1])} in {origin}" if origin else places.table(location[:-1])
            yield f"{location[-1]!r} is missing in {where}"
        else:
            yield f"{places.key(location)} {_reason(location, detail)}"


def duplicates(document: Mapping[str, Any], places: Places) -> Iterator[str]:
    """Engines or routes of one id, upstreams or tiers of one name."""
    for section, key in (("engines", "id"), ("upstreams", "name"), ("routes", "id"), ("tiers", "name")):
        seen: dict[str, Location] = {}
        items = document.get(section)
        for number, item in enumerate(items if isinstance(items, list) else ()):
            name = item.get(key) if isinstance(item, dict) else None
            if not isinstance(name, str):
                continue
            first = seen.setdefault(name, (section, number))
            if first != (section, number):
                here = places.key((section, number, key))
                yield f"{here} is {name!r}, which {_heading(first)} is called already; give it another"


def unknown_kinds(document: Mapping[str, Any], places: Places) -> Iterator[str]:
    """Upstreams of a kind that no installed package brings."""
    items = document.get("upstreams")
    named = [
        (number, item["kind"])
        for number, item in enumerate(items if isinstance(items, list) else ())
        if isinstance(item, dict) and isinstance(item.get("kind"), str)
    ]
    known = known_kinds() if named else frozenset()
    for number, kind in named:
        if kind not in known:
            near = near_names(kind, known, most=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            yield f"{places.key(('upstreams', number, 'kind'))} is {kind[:_LONGEST_QUOTE]!r}, which nothing here speaks; {hint}"


def gathered(told: Sequence[str]) -> ConfigError:
    """One error for all of it."""
    if len(told) == 1:
        return ConfigError(told[0][0].upper() + told[0][1:] + ("" if told[0].endswith("?") else "."))
    lines = "".join(f"\n  - {sentence}" for sentence in told)
    return ConfigError(f"{len(told)} things are wrong with the settings:{lines}")


def _heading(location: Location) -> str:
    """`[server]`, `[[upstreams]] number 2`, `[timeouts] of [[upstreams]] number 2`, `fallbacks number 1 of [[routes]] number 2`."""
    match location:
        case (str() as section, int() as number):
            return f"[[{section}]] number {number + 1}"
        case (str(), int(), *_, str() as inner):
            return f"[{inner}] of {_heading(location[:2])}"
        case (str(), int(), *_, str() as inner, int() as number):
            return f"{inner} number {number + 1} of {_heading(location[:2])}"
        case _:
            return "[" + ".".join(str(step) for step in location) + "]"


def _split(location: Location) -> tuple[str, Location]:
    """The key of a value and its table; what lies inside the value is left off."""
    for length in range(len(location), 0, -1):
        table, step = location[: length - 1], location[length - 1]
        if isinstance(step, str) and step in fields.keys_at(table) and not fields.keys_at((*table, step)):
            return step, table
    return "", location


def _unknown(location: Location, value: object, places: Places) -> str:
    key, table = str(location[-1]), location[:-1]
    near = near_names(key, fields.keys_at(table), most=1)
    variables = [name for place, name in places.origins.items() if place[: len(location)] == location]
    if variables:
        right = variable((*table, near[0])) + ("" if table else "__...") if near else ""
        return f"unknown variable {variables[0]}" + (f"; did you mean {right}?" if near else _known(table))
    if not table:
        return _unknown_at_top(key, value, near, places)
    origin = places.origin(location)
    where = f"{_heading(table)} in {origin}" if origin else places.table(table)
    return f"unknown key {key!r} in {where}" + (f"; did you mean {near[0]!r}?" if near else _known(table))


def _unknown_at_top(key: str, value: object, near: Sequence[str], places: Places) -> str:
    if isinstance(value, (dict, list)):
        hint = f"; did you mean [{near[0]}]?" if near else _known(())
        return f"unknown section [{key}] in {places.file}{hint}"
    homes = [name for name, model, listed in fields.sections() if key in model.model_fields and not listed]
    hint = f"; did you mean {key!r} in [{homes[0]}]?" if homes else _known(())
    return f"unknown key {key!r} at the top of {places.file}{hint}"


def _known(table: Location) -> str:
    known = ", ".join(fields.keys_at(table))
    return f"; known are {known}" if known else ""


def _reason(location: Location, detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind == "value_error":
        return f"is wrong: {detail['ctx']['error']}"
    if kind == "tuple_type" and fields.is_listed(str(location[-1])):
        return f"should be written as [[{location[-1]}]], once for each"
    text = _PLAIN.get(kind) or detail["msg"].replace("Input should", "should")
    value = detail["input"]
    secret = any(step in ("api_key", "api_keys") for step in location)
    if secret or not isinstance(value, (str, int, float)) or len(repr(value)) > _LONGEST_QUOTE:
        return text
    return f"{text}; it is {value!r}"
