"""Users, their quotas and their keys, on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, select, text

from headrace.adapters.storage import schema
from headrace.adapters.storage.accounts import SqlAccounts
from headrace.adapters.storage.database import Database
from headrace.domain.access import Scope
from headrace.domain.quota import Limits
from headrace.kernel.errors import InvalidRequest, Unavailable
from headrace.ports.records import ManagedKey, User
from support.storage import IMPATIENT, Opening, WriteLock

LIMITS = Limits(1, 2, 3, 4, 5, 6, 7)
ANN = User(
    user_id="ann",
    name="Ann Ö",
    email="ann@example.com",
    created_at=1_700_000_000.25,
    active=False,
    tier="gold",
    limits=LIMITS,
)
KEY = ManagedKey(
    key_id="key_1",
    prefix="sk-hr-abc",
    digest=bytes(range(32)),
    user_id="ann",
    name="laptop",
    scopes=(Scope.INFERENCE, Scope.ADMIN),
    models=("llama-*", 'a "b", c'),
    limits=LIMITS,
    priority=-3,
    created_at=1_700_000_001.5,
    expires_at=1_800_000_000.0,
    revoked_at=1_750_000_000.0,
)


@pytest.fixture
def accounts(database: Database) -> SqlAccounts:
    return SqlAccounts(database)


@pytest.mark.req("E18", "E19")
async def test_users_come_back_as_they_were_saved(accounts: SqlAccounts) -> None:
    bare = User(user_id="bob")
    await accounts.save_user(bare)
    await accounts.save_user(ANN)
    assert await accounts.users() == [ANN, bare]
    changed = User(user_id="ann", name="Anna", created_at=1.0, limits=Limits(tokens_per_day=9))
    await accounts.save_user(changed)
    assert await accounts.users() == [changed, bare]


async def test_keys_come_back_as_they_were_saved_oldest_first(accounts: SqlAccounts) -> None:
    bare = ManagedKey(key_id="key_2", prefix="p", digest=b"d" * 32, user_id="ann")
    await accounts.save_key(KEY)
    await accounts.save_key(bare)
    assert await accounts.keys() == [bare, KEY]
    changed = ManagedKey(key_id="key_1", prefix="q", digest=b"e" * 32, user_id="bob", created_at=1.0)
    await accounts.save_key(changed)
    assert await accounts.keys() == [bare, changed]


async def test_a_keys_user_is_added_where_there_is_none_and_left_alone_where_there_is(
    accounts: SqlAccounts,
) -> None:
    await accounts.save_user(ANN)
    await accounts.save_key(KEY)
    await accounts.save_key(ManagedKey(key_id="k", prefix="", digest=b"x", user_id="new", created_at=5.0))
    assert await accounts.users() == [ANN, User(user_id="new", created_at=5.0)]


async def test_deleting_a_user_takes_its_keys_and_quota_along(
    accounts: SqlAccounts, database: Database
) -> None:
    await accounts.save_user(ANN)
    await accounts.save_key(KEY)
    assert await accounts.delete_user("ann") is True
    assert (await accounts.users(), await accounts.keys()) == ([], [])
    assert await database.read(lambda connection: connection.execute(select(schema.quotas)).all()) == []
    assert await accounts.delete_user("ann") is False


async def test_each_change_is_seen_in_the_generation(accounts: SqlAccounts) -> None:
    seen = [await accounts.generation()]
    assert seen == [0]
    await accounts.save_user(ANN)
    seen.append(await accounts.generation())
    await accounts.save_key(KEY)
    seen.append(await accounts.generation())
    assert await accounts.delete_user("nobody") is False
    assert await accounts.generation() == seen[-1]
    await accounts.delete_user("ann")
    seen.append(await accounts.generation())
    assert seen == sorted(set(seen))


async def test_another_connection_sees_what_was_saved_when_the_call_returned(opening: Opening) -> None:
    async with opening() as database:
        await SqlAccounts(database).save_user(ANN)
    async with opening() as database:
        assert await SqlAccounts(database).users() == [ANN]


@pytest.mark.req("E19")
@pytest.mark.parametrize(
    ("frequency", "others", "limits"),
    [
        ("monthly", "NULL, NULL", Limits(requests_per_month=100, tokens_per_month=5000)),
        ("daily", "NULL, NULL", Limits(requests_per_day=100, tokens_per_day=5000)),
        ("daily", "7, NULL", Limits(requests_per_day=7, tokens_per_day=5000)),
        ("daily", "7, 0", Limits(requests_per_day=7, tokens_per_day=0)),
        ("monthly", "7, 8", Limits(None, 7, 100, None, 8, 5000)),
    ],
)
async def test_reset_frequency_says_which_period_the_limits_bind(
    accounts: SqlAccounts, database: Database, frequency: str, others: str, limits: Limits
) -> None:
    def insert(connection: Connection) -> None:
        connection.execute(text("INSERT INTO users (user_id, created_at) VALUES ('ann', 0)"))
        connection.execute(
            text(
                "INSERT INTO quotas (user_id, request_limit, token_limit, reset_frequency, requests_per_day, tokens_per_day) "
                f"VALUES ('ann', 100, 5000, '{frequency}', {others})"
            )
        )

    await database.write(insert)
    assert await accounts.users() == [User(user_id="ann", limits=limits)]


@pytest.mark.req("E18", "E19")
async def test_the_tables_have_what_the_requirements_name(accounts: SqlAccounts, database: Database) -> None:
    await accounts.save_user(ANN)

    def look(connection: Connection) -> list[tuple[object, ...]]:
        user = connection.execute(text("SELECT user_id, name, email, created_at, active FROM users")).one()
        quota = connection.execute(
            text(
                "SELECT user_id, request_limit, token_limit, tier, reset_frequency FROM quotas WHERE quota_id > 0"
            )
        ).one()
        return [tuple(user), tuple(quota)]

    assert await database.read(look) == [
        ("ann", "Ann Ö", "ann@example.com", 1_700_000_000.25, False),
        ("ann", 3, 6, "gold", "monthly"),
    ]


async def test_a_user_without_quota_or_of_another_programs_making_is_read(
    accounts: SqlAccounts, database: Database
) -> None:
    def insert(connection: Connection) -> None:
        connection.execute(text("INSERT INTO users (user_id, created_at) VALUES ('ann', 0)"))

    await database.write(insert)
    assert await accounts.users() == [User(user_id="ann")]


async def test_what_the_database_could_not_hold_is_refused_and_changes_nothing(
    accounts: SqlAccounts,
) -> None:
    await accounts.save_key(KEY)
    before = await accounts.generation()
    for user in (
        User(user_id=""),
        User(user_id="x" * 51),
        User(user_id="a\0b"),
        User(user_id="a", tier="t" * 21),
    ):
        with pytest.raises(InvalidRequest):
            await accounts.save_user(user)
    with pytest.raises(InvalidRequest) as caught:
        await accounts.save_key(ManagedKey(key_id="other", prefix="", digest=KEY.digest, user_id="new"))
    assert caught.value.param == "digest"
    assert [key.key_id for key in await accounts.keys()] == ["key_1"]
    assert [user.user_id for user in await accounts.users()] == ["ann"]
    assert await accounts.generation() == before


async def test_while_the_database_refuses_nothing_is_changed(opening: Opening, write_lock: WriteLock) -> None:
    async with opening(IMPATIENT) as database:
        accounts = SqlAccounts(database)
        write_lock.take()
        with pytest.raises(Unavailable):
            await accounts.save_user(ANN)
        write_lock.give_back()
        assert await accounts.users() == []
        await accounts.save_user(ANN)
        assert await accounts.users() == [ANN]
