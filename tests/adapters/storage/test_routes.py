"""Routes, on both databases."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, text

from headrace.adapters.storage.accounts import SqlAccounts
from headrace.adapters.storage.backend import Backend
from headrace.adapters.storage.checking import check
from headrace.adapters.storage.database import Database
from headrace.adapters.storage.routes import SqlRoutes
from headrace.adapters.storage.schema_version import Migrations
from headrace.domain.routing import Route, Target
from headrace.kernel.errors import InvalidRequest, Unavailable
from headrace.ports.records import User
from headrace.testing import ManualClock
from support.routes_contract import BARE, FULL, RoutesContract
from support.storage import IMPATIENT, Opening, WriteLock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def routes(database: Database, clock: ManualClock) -> SqlRoutes:
    return SqlRoutes(database, clock)


class TestRoutes(RoutesContract):
    pass


async def do(database: Database, *statements: str) -> None:
    def run(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement))

    await database.write(run)


@pytest.mark.req("C35")
async def test_the_table_has_what_the_requirements_name(
    routes: SqlRoutes, database: Database, clock: ManualClock
) -> None:
    began = clock.now()
    await routes.save_route(FULL)
    clock.advance(60)
    await routes.save_route(FULL)

    def look(connection: Connection) -> tuple[object, ...]:
        query = "SELECT id, model_pattern, selector, priority, created_at FROM modelroutes"
        return tuple(connection.execute(text(query)).one())

    assert await database.read(look) == ("llama", "llama-*", "tag:gpu & node:box-*,b", -3, began)


@pytest.mark.req("C35")
async def test_a_row_of_another_program_needs_no_more_than_that(
    routes: SqlRoutes, database: Database
) -> None:
    await do(
        database,
        "INSERT INTO modelroutes (id, model_pattern, selector, priority, created_at) VALUES ('a', 'm', 'any', 2, 0)",
    )
    assert await routes.routes() == [Route("a", "m", (Target(),), 2)]


async def test_users_and_routes_share_a_generation(routes: SqlRoutes, database: Database) -> None:
    accounts = SqlAccounts(database)
    await accounts.save_user(User(user_id="ann"))
    before = await routes.generation()
    assert before == await accounts.generation()
    await routes.save_route(BARE)
    assert await accounts.generation() == await routes.generation() > before


async def test_another_connection_sees_what_was_saved_when_the_call_returned(
    opening: Opening, clock: ManualClock
) -> None:
    async with opening() as database:
        await SqlRoutes(database, clock).save_route(FULL)
    async with opening() as database:
        assert await SqlRoutes(database, clock).routes() == [FULL]


async def test_while_the_database_refuses_nothing_is_changed(
    opening: Opening, write_lock: WriteLock, clock: ManualClock
) -> None:
    async with opening(IMPATIENT) as database:
        routes = SqlRoutes(database, clock)
        write_lock.take()
        with pytest.raises(Unavailable):
            await routes.save_route(BARE)
        write_lock.give_back()
        assert await routes.routes() == []


@pytest.mark.parametrize("route_id", ["", "x" * 65, "a\0b"])
async def test_an_id_that_the_table_cannot_hold_is_refused(routes: SqlRoutes, route_id: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await routes.save_route(replace(BARE, id=route_id))
    assert caught.value.param == "id"
    assert await routes.routes() == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("selector", "gpu"),
        ("strategy", "fastest"),
        ("weights", "[]"),
        ("weights", "{"),
        ("fallbacks", '[{"selector": "gpu"}]'),
        ("fallbacks", '[{"weights": 1}]'),
    ],
)
async def test_a_row_that_is_no_route_is_told_by_name_and_by_db_check(
    routes: SqlRoutes, database: Database, backend: Backend, column: str, value: str
) -> None:
    await routes.save_route(BARE)
    await routes.save_route(FULL)
    escaped = value.replace(":", "\\:")
    await do(database, f"UPDATE modelroutes SET {column} = '{escaped}' WHERE id = 'llama'")
    with pytest.raises(
        Unavailable, match=r"The row 'llama' of the table modelroutes is no route: .* Mend or"
    ):
        await routes.routes()
    found = await asyncio.to_thread(lambda: check(backend, Migrations(backend)))
    assert [problem[:49] for problem in found.problems] == [
        "The row 'llama' of the table modelroutes is no ro"
    ]
    await routes.save_route(FULL)
    found = await asyncio.to_thread(lambda: check(backend, Migrations(backend)))
    assert found.problems == ()
