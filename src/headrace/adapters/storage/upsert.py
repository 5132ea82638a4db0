"""Inserts that know what to do about rows that are there already: both databases have them, SQLAlchemy has them apart."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite

DIALECTS = ("sqlite", "postgresql")


def insert_for(dialect: str, table: Table) -> Any:
    """An insert into *table* with `on_conflict_do_nothing` and `on_conflict_do_update`, in *dialect*."""
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)
