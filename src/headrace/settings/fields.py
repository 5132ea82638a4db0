"""Looking into the schema: what its sections are, and what a key may hold."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from headrace.settings.schema import ConfigFile
from headrace.settings.section import Section


def sections() -> Iterator[tuple[str, type[Section], bool]]:
    """Each section's name, its model, and whether it is a list (`[[name]]`)."""
    for name, field in ConfigFile.model_fields.items():
        listed = get_origin(field.annotation) is tuple
        model: Any = get_args(field.annotation)[0] if listed else field.annotation
        yield name, model, listed


def section(name: str) -> tuple[type[Section], bool] | None:
    """The model of the section of that name, and whether it is a list; None where there is no such section."""
    return next(((model, listed) for known, model, listed in sections() if known == name), None)


def nested(field: FieldInfo) -> type[Section] | None:
    """The model of a field that is a table of its own; None where it is a plain value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def nested_list(field: FieldInfo) -> type[Section] | None:
    """The model of a field that is a list of tables; None where it isn't one."""
    kind: Any = get_args(field.annotation)[0] if is_list(field) else None
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def is_list(field: FieldInfo) -> bool:
    """Whether the field holds several values."""
    return get_origin(field.annotation) is tuple


def is_listed(section_name: str) -> bool:
    """Whether the section of that name is a list of tables."""
    found = section(section_name)
    return found is not None and found[1]


def keys_at(location: tuple[str | int, ...]) -> tuple[str, ...]:
    """The keys that are known in the table at *location* (as pydantic names places); empty where there is none."""
    model = _model_at(location)
    return tuple(model.model_fields) if model else ()


def holds_several(location: tuple[str | int, ...]) -> bool:
    """Whether the key at *location* holds a list of plain values."""
    model = _model_at(location[:-1])
    field = model.model_fields.get(str(location[-1])) if model else None
    return field is not None and is_list(field)


def _model_at(location: tuple[str | int, ...]) -> type[Section] | None:
    model: type[Section] = ConfigFile
    for step in location:
        if isinstance(step, int):
            continue
        field = model.model_fields.get(step)
        kind: Any = field.annotation if field else None
        kind = get_args(kind)[0] if get_origin(kind) is tuple else kind
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            return None
        model = kind
    return model


def mark(field: FieldInfo, kind: type) -> Any:
    """The annotation of class *kind* on a field, also inside `… | None`; None where it hasn't one."""
    found: Any = next((item for item in field.metadata if isinstance(item, kind)), None)
    if found is None and get_origin(field.annotation) in (Union, UnionType):
        metadata = (item for part in get_args(field.annotation) for item in getattr(part, "__metadata__", ()))
        found = next((item for item in metadata if isinstance(item, kind)), None)
    return found


def marked(section_name: str, kind: type) -> list[str]:
    """The keys of a section that carry an annotation of class *kind*."""
    found = section(section_name)
    return [name for name, field in found[0].model_fields.items() if mark(field, kind)] if found else []


def options(field: FieldInfo) -> tuple[str, ...]:
    """The words that the field may hold; empty where it isn't a choice."""
    kind = field.annotation
    return (
        tuple(str(item.value) for item in kind) if isinstance(kind, type) and issubclass(kind, Enum) else ()
    )
