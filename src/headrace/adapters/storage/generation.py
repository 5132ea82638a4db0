"""The number that tells other processes to read accounts and routes again."""

from __future__ import annotations

from sqlalchemy import Connection, select

from headrace.adapters.storage import schema
from headrace.adapters.storage.database import Database
from headrace.adapters.storage.upsert import insert_for

_NAME = "accounts"


async def generation(database: Database) -> int:
    """How often users, keys or routes were changed, by whatever process."""
    query = select(schema.generations.c.value).where(schema.generations.c.name == _NAME)
    return await database.read(lambda connection: connection.execute(query).scalar() or 0)


def next_generation(connection: Connection) -> None:
    """Part of every change: it grows."""
    table = schema.generations
    statement = insert_for(connection.dialect.name, table).values(name=_NAME, value=1)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"value": table.c.value + 1})
    )
