"""Routes in the database."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, delete, select
from sqlalchemy.exc import DataError

from headrace.adapters.storage import generation, schema
from headrace.adapters.storage.database import Database
from headrace.adapters.storage.upsert import insert_for
from headrace.domain.routing import Route, Selector, Strategy, Target, TimeLimits
from headrace.kernel.clock import Clock
from headrace.kernel.errors import InvalidRequest, Unavailable
from headrace.ports.records import Routes

_TABLE = schema.modelroutes
_LIMITS = TimeLimits.__struct_fields__


class SqlRoutes(Routes):
    """`Routes` over a `Database` that is open."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def routes(self) -> list[Route]:
        """All of them, by id.

        Raises:
            Unavailable: the database can't be asked, or another program has written what is no route.
        """
        rows = await self._database.read(_rows)
        try:
            return sorted(
                (_route(row) for row in rows), key=lambda route: route.id
            )  # databases sort as they like
        except _NO_ROUTE:
            raise Unavailable(f"{_unreadable(rows)[0]} Mend or remove it.") from None

    async def save_route(self, route: Route) -> None:
        """Add *route*, or replace the one with its id.

        Raises:
            InvalidRequest: its id is too long, or the database can't hold a value; nothing was changed.
        """
        if not 1 <= len(route.id) <= schema.ROUTE_ID_LENGTH or "\0" in route.id:
            raise InvalidRequest(f"id has to have 1 to {schema.ROUTE_ID_LENGTH} characters.", param="id")
        values = _values(route)
        created_at = self._clock.now()

        def save(connection: Connection) -> None:
            statement = insert_for(connection.dialect.name, _TABLE).values(
                values | {"created_at": created_at}
            )
            changed = {name: statement.excluded[name] for name in values if name != "id"}
            connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changed))
            generation.next_generation(connection)

        try:
            # As with accounts: that the generation may grow twice makes others look once more.
            await self._database.write(save, repeatable=True)
        except DataError as error:
            raise InvalidRequest("The database can't hold such a route.") from error

    async def delete_route(self, route_id: str) -> bool:
        def remove(connection: Connection) -> bool:
            gone = connection.execute(delete(_TABLE).where(_TABLE.c.id == route_id)).rowcount
            if gone:
                generation.next_generation(connection)
            return bool(gone)

        if "\0" in route_id:  # PostgreSQL refuses to be asked
            return False
        return await self._database.write(remove)

    async def generation(self) -> int:
        return await generation.generation(self._database)


def unreadable_routes(connection: Connection) -> list[str]:
    """The rows that are no routes, a sentence each."""
    return _unreadable(_rows(connection))


class _Fallback(msgspec.Struct):
    """A target as it is kept."""

    selector: str = "any"
    model: str = ""
    strategy: Strategy = Strategy.LEAST_BUSY
    weights: dict[str, float] = {}
    when_busy: bool = False
    tokens_per_day: int = 0

    @classmethod
    def of(cls, target: Target) -> _Fallback:
        return cls(**msgspec.structs.asdict(target) | {"selector": str(target.selector)})

    def target(self) -> Target:
        return Target(**msgspec.structs.asdict(self) | {"selector": Selector.parse(self.selector)})


_NO_ROUTE = (ValueError, msgspec.MsgspecError)


def _rows(connection: Connection) -> list[RowMapping]:
    return list(connection.execute(select(_TABLE)).mappings())


def _unreadable(rows: list[RowMapping]) -> list[str]:
    told = []
    for row in rows:
        try:
            _route(row)
        except _NO_ROUTE as error:
            told.append(f"The row {row['id']!r} of the table modelroutes is no route: {error}.")
    return told


def _values(route: Route) -> dict[str, Any]:
    first, *others = route.targets
    return {
        "id": route.id,
        "model_pattern": route.model,
        "selector": str(first.selector),
        "priority": route.priority,
        "strategy": first.strategy.value,
        "target": first.model,
        "weights": _json(first.weights),
        "tokens_per_day": first.tokens_per_day,
        "fallbacks": _json([_Fallback.of(target) for target in others]),
        "reruns": route.reruns,
        **{f"{name}_s": getattr(route.time_limits, name) for name in _LIMITS},
    }


def _route(row: RowMapping) -> Route:
    first = Target(
        Selector.parse(row["selector"]),
        row["target"],
        Strategy(row["strategy"]),
        msgspec.json.decode(row["weights"], type=dict[str, float]),
        tokens_per_day=row["tokens_per_day"],
    )
    others = msgspec.json.decode(row["fallbacks"], type=list[_Fallback])
    return Route(
        row["id"],
        row["model_pattern"],
        (first, *(other.target() for other in others)),
        row["priority"],
        row["reruns"],
        TimeLimits(**{name: row[f"{name}_s"] for name in _LIMITS}),
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
