"""Users and their keys in the database."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, RowMapping, Table, and_, delete, or_, select, true
from sqlalchemy.exc import DataError, IntegrityError

from headrace.adapters.storage import generation, schema
from headrace.adapters.storage.database import Database
from headrace.adapters.storage.upsert import insert_for
from headrace.domain.access import Scope
from headrace.domain.quota import Limits
from headrace.kernel.errors import InvalidRequest
from headrace.ports.records import Accounts, ManagedKey, User

_LIMITS = Limits.__struct_fields__


class SqlAccounts(Accounts):
    """`Accounts` over a `Database` that is open."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def users(self, *, after: str = "", limit: int | None = None) -> list[User]:
        columns = [*schema.users.c, *(column for column in schema.quotas.c if column.name not in _OF_QUOTA)]
        query = select(*columns).outerjoin_from(schema.users, schema.quotas).order_by(schema.users.c.user_id)
        query = query.where(schema.users.c.user_id > after).limit(limit)
        return await self._database.read(
            lambda connection: [_user(row) for row in connection.execute(query).mappings()]
        )

    async def save_user(self, user: User) -> None:
        """Add *user*, or replace the one with its id.

        Raises:
            InvalidRequest: its id or tier is too long; nothing was changed.
        """
        _check_length("user_id", user.user_id, schema.USER_ID_LENGTH)
        _check_length("tier", user.tier, schema.TIER_LENGTH)
        values = {
            "user_id": user.user_id,
            "name": user.name,
            "email": user.email,
            "created_at": user.created_at,
            "active": user.active,
        }

        def save(connection: Connection) -> None:
            _put(connection, schema.users, "user_id", values)
            _put(connection, schema.quotas, "user_id", _quota(user))
            generation.next_generation(connection)

        await self._change(save)

    async def delete_user(self, user_id: str) -> bool:
        def remove(connection: Connection) -> bool:
            gone = connection.execute(delete(schema.users).where(schema.users.c.user_id == user_id)).rowcount
            if gone:
                generation.next_generation(connection)
            return bool(gone)

        return await self._database.write(remove)

    async def keys(self, *, user_id: str = "", after: str = "", limit: int | None = None) -> list[ManagedKey]:
        """See the port.

        Raises:
            InvalidRequest: there is no key *after*.
        """
        table = schema.keys
        query = select(table).order_by(table.c.created_at, table.c.key_id).limit(limit)
        if user_id:
            query = query.where(table.c.user_id == user_id)

        def read(connection: Connection) -> list[ManagedKey]:
            behind = _behind(connection, after) if after else true()
            return [_key(row) for row in connection.execute(query.where(behind)).mappings()]

        return await self._database.read(read)

    async def save_key(self, key: ManagedKey) -> None:
        """Add *key*, or replace the one with its id. Its user is added where there is none.

        Raises:
            InvalidRequest: an id is too long, or another key has its digest; nothing was changed.
        """
        _check_length("user_id", key.user_id, schema.USER_ID_LENGTH)
        _check_length("key_id", key.key_id, 50)
        values = {name: getattr(key, name) for name in key.__struct_fields__ if name != "limits"}
        values["scopes"] = msgspec.json.encode(key.scopes).decode()
        values["models"] = msgspec.json.encode(key.models).decode()
        values |= msgspec.structs.asdict(key.limits)

        def save(connection: Connection) -> None:
            user = {"user_id": key.user_id, "created_at": key.created_at}
            connection.execute(
                insert_for(connection.dialect.name, schema.users).values(user).on_conflict_do_nothing()
            )
            _put(connection, schema.keys, "key_id", values)
            generation.next_generation(connection)

        await self._change(save)

    async def generation(self) -> int:
        return await generation.generation(self._database)

    async def _change(self, save: Any) -> None:
        try:
            # Writing the same row twice leaves the same row; that the generation grew twice makes others look once more.
            await self._database.write(save, repeatable=True)
        except IntegrityError as error:
            raise InvalidRequest(
                "Another key has this digest: it is the same key.", param="digest"
            ) from error
        except DataError as error:
            raise InvalidRequest("The database can't hold such a value.") from error


_OF_QUOTA = ("quota_id", "user_id")


def _behind(connection: Connection, key_id: str) -> ColumnElement[bool]:
    """Those that stand behind that key in the order of all."""
    table = schema.keys
    created_at = connection.execute(select(table.c.created_at).where(table.c.key_id == key_id)).scalar()
    if created_at is None:
        raise InvalidRequest(f"There is no key {key_id!r}.", param="after")
    later = table.c.created_at > created_at
    return or_(later, and_(table.c.created_at == created_at, table.c.key_id > key_id))


def _check_length(name: str, value: str, most: int) -> None:
    if len(value) > most or (not value and name != "tier"):
        raise InvalidRequest(f"{name} has to have 1 to {most} characters.", param=name)
    if "\0" in value:
        raise InvalidRequest(f"{name} must not contain a NUL character.", param=name)


def _put(connection: Connection, table: Table, key: str, values: dict[str, Any]) -> None:
    statement = insert_for(connection.dialect.name, table).values(values)
    changed = {name: statement.excluded[name] for name in values if name != key}
    connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=changed))


def _quota(user: User) -> dict[str, Any]:
    """The row of a user's limits: those of a month stand in the columns that the other ones override."""
    limits = msgspec.structs.asdict(user.limits)
    requests, tokens = limits.pop("requests_per_month"), limits.pop("tokens_per_month")
    return limits | {
        "user_id": user.user_id,
        "tier": user.tier,
        "reset_frequency": "monthly",
        "request_limit": requests,
        "token_limit": tokens,
        "requests_per_month": None,
        "tokens_per_month": None,
    }


def _user(values: RowMapping) -> User:
    limits = {name: values[name] for name in _LIMITS}
    period = {"daily": "day", "monthly": "month"}.get(values["reset_frequency"] or "")
    if period:
        for short, name in (("request_limit", "requests_per_"), ("token_limit", "tokens_per_")):
            if limits[name + period] is None:
                limits[name + period] = values[short]
    return User(
        user_id=values["user_id"],
        name=values["name"],
        email=values["email"],
        created_at=values["created_at"],
        active=values["active"],
        tier=values["tier"] or "",
        limits=Limits(**limits),
    )


def _key(row: RowMapping) -> ManagedKey:
    values = dict(row)
    limits = Limits(**{name: values.pop(name) for name in _LIMITS})
    scopes = msgspec.json.decode(values.pop("scopes"), type=tuple[Scope, ...])
    models = msgspec.json.decode(values.pop("models"), type=tuple[str, ...])
    return ManagedKey(**values, limits=limits, scopes=scopes, models=models)
