"""`docs/reference/database.md`, written from the tables."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, LargeBinary, Table

from headrace.adapters.storage.schema import METADATA

_INTRODUCTION = """
# Database

*Generated from the code by `scripts/generate_reference.py`; a test compares them.*

One schema on SQLite and on PostgreSQL. Times are seconds since the epoch (UTC). `headrace up` brings an older schema up to date by
itself; a file is copied beside itself before that, as `headrace.db.OLD-SCHEMA.TIME.bak`. `headrace db check` looks whether everything is
whole, `headrace db backup FILE` copies it while it is in use. Prompts and answers are in no table, and neither are keys.

`users`, `quotas`, `keys` and `modelroutes` may be changed by other programs; whoever does so raises `value` in the row `accounts` of
`generations`, which is what makes gateways read them again.
"""
_KINDS = ((Boolean, "boolean"), (BigInteger, "whole number"), (Integer, "whole number"))
_MORE_KINDS = ((Double, "number"), (LargeBinary, "bytes"))


def page() -> str:
    """The whole page."""
    lines = list(_INTRODUCTION.strip().splitlines())
    for table in METADATA.tables.values():
        lines += ["", f"## {table.name}", "", str(table.comment), "", *_columns(table), *_indexes(table)]
    return "\n".join(lines) + "\n"


def _columns(table: Table) -> Iterator[str]:
    yield from ("| column | kind | what it is |", "|---|---|---|")
    for column in table.columns:
        yield f"| `{column.name}` | {', '.join(_traits(column))} | {column.comment} |"


def _traits(column: Column[object]) -> Iterator[str]:
    length = getattr(column.type, "length", None)
    kind = next((name for kind, name in (*_KINDS, *_MORE_KINDS) if isinstance(column.type, kind)), "text")
    yield f"{kind} of {length} at most" if length else kind
    if column.primary_key:
        yield "primary key"
    if column.unique:
        yield "unique"
    yield from (f"of [{key.column.table.name}](#{key.column.table.name})" for key in column.foreign_keys)


def _indexes(table: Table) -> Iterator[str]:
    found = sorted(", ".join(f"`{column.name}`" for column in index.columns) for index in table.indexes)
    if found:
        yield from ("", "Indexes: " + "; ".join(found) + ".")
