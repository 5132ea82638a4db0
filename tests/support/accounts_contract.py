"""What `Accounts` and `Records` promise, held by each that keeps them."""

from __future__ import annotations

import msgspec
import pytest

from headrace.domain.access import Scope
from headrace.domain.quota import Limits
from headrace.kernel.errors import InvalidRequest
from headrace.ports.records import (
    LONGEST_S,
    Accounts,
    Grouping,
    ManagedKey,
    Records,
    RequestRecord,
    Selection,
    User,
)
from support.administration import NOON, record

DAY = 86_400.0
LIMITS = Limits(1, 2, 3, 4, 5, 6, 7)
ANN = User(
    user_id="ann",
    name="Ann Ö",
    email="a@b.c",
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
    models=("llama-*",),
    limits=LIMITS,
    priority=-1,
    created_at=1_700_000_001.5,
    expires_at=1_800_000_000.0,
    revoked_at=1_750_000_000.0,
)


class AccountsContract:
    """Needs a fixture `accounts`: empty ones."""

    async def test_users_come_back_as_they_were_saved_by_id(self, accounts: Accounts) -> None:
        bare = User(user_id="bob")
        await accounts.save_user(bare)
        await accounts.save_user(ANN)
        assert await accounts.users() == [ANN, bare]
        said = Limits(requests_per_day=0, requests_per_month=0, tokens_per_day=3)  # 0 isn't nothing
        changed = User(user_id="ann", name="Anna", created_at=1.0, limits=said)
        await accounts.save_user(changed)
        assert await accounts.users() == [changed, bare]

    async def test_keys_come_back_as_they_were_saved_oldest_first(self, accounts: Accounts) -> None:
        bare = ManagedKey(key_id="key_2", prefix="p", digest=b"d" * 32, user_id="ann")
        await accounts.save_key(KEY)
        await accounts.save_key(bare)
        assert await accounts.keys() == [bare, KEY]
        changed = msgspec.structs.replace(KEY, name="other", user_id="bob")
        await accounts.save_key(changed)
        assert await accounts.keys() == [bare, changed]

    async def test_users_come_in_pages(self, accounts: Accounts) -> None:
        for name in ("bob", "ann", "dan", "cid"):
            await accounts.save_user(User(user_id=name))
        assert [user.user_id for user in await accounts.users(limit=3)] == ["ann", "bob", "cid"]
        assert [user.user_id for user in await accounts.users(after="bob", limit=3)] == ["cid", "dan"]
        assert await accounts.delete_user("bob")
        assert [user.user_id for user in await accounts.users(after="bob", limit=1)] == ["cid"]
        assert [user.user_id for user in await accounts.users(after="bob")] == ["cid", "dan"]
        assert await accounts.users(after="dan") == []

    async def test_keys_come_in_pages_and_of_one_user(self, accounts: Accounts) -> None:
        """In the order of all, also where several were made at one time."""
        for name, user_id, at in (
            ("d", "ann", 1.5),
            ("a", "ann", 3.0),
            ("c", "bob", 2.25),
            ("b", "ann", 2.25),
        ):
            key = ManagedKey(key_id=name, prefix="", digest=name.encode(), user_id=user_id, created_at=at)
            await accounts.save_key(key)
        seen, after = [], ""
        while page := await accounts.keys(after=after, limit=1):
            assert len(page) == 1
            seen.append(after := page[0].key_id)
        assert seen == ["d", "b", "c", "a"]
        assert [key.key_id for key in await accounts.keys(after="d", limit=2)] == ["b", "c"]
        assert [key.key_id for key in await accounts.keys(user_id="ann")] == ["d", "b", "a"]
        assert [key.key_id for key in await accounts.keys(user_id="ann", after="c")] == ["a"]
        assert await accounts.keys(user_id="nobody") == []
        with pytest.raises(InvalidRequest, match="'e'") as refused:
            await accounts.keys(after="e")
        assert refused.value.param == "after"

    async def test_a_keys_user_is_added_where_there_is_none_only(self, accounts: Accounts) -> None:
        await accounts.save_user(ANN)
        await accounts.save_key(KEY)
        await accounts.save_key(ManagedKey(key_id="k", prefix="", digest=b"x", user_id="new", created_at=5.0))
        assert await accounts.users() == [ANN, User(user_id="new", created_at=5.0)]

    async def test_a_user_takes_its_keys_along(self, accounts: Accounts) -> None:
        other = msgspec.structs.replace(KEY, key_id="key_2", digest=b"y" * 32, user_id="bob")
        await accounts.save_key(KEY)
        await accounts.save_key(other)
        assert await accounts.delete_user("ann") is True
        assert await accounts.keys() == [other]
        assert [user.user_id for user in await accounts.users()] == ["bob"]
        assert await accounts.delete_user("ann") is False

    async def test_the_generation_grows_with_each_change_and_with_nothing_else(
        self, accounts: Accounts
    ) -> None:
        seen = [await accounts.generation()]
        await accounts.save_user(ANN)
        seen.append(await accounts.generation())
        await accounts.save_key(KEY)
        seen.append(await accounts.generation())
        assert await accounts.delete_user("nobody") is False
        assert await accounts.generation() == seen[-1]
        await accounts.delete_user("ann")
        seen.append(await accounts.generation())
        assert seen == sorted(set(seen))

    async def test_what_cannot_be_is_refused_and_changes_nothing(self, accounts: Accounts) -> None:
        await accounts.save_key(KEY)
        before = await accounts.generation()
        with pytest.raises(InvalidRequest):
            await accounts.save_user(User(user_id=""))
        with pytest.raises(InvalidRequest):
            await accounts.save_key(ManagedKey(key_id="other", prefix="", digest=KEY.digest, user_id="new"))
        assert await accounts.keys() == [KEY]
        assert [user.user_id for user in await accounts.users()] == ["ann"]
        assert await accounts.generation() == before


SOME = (
    record(1),
    record(2, user_id="bob", key_id="k", model="m", node="n", status="failed", total_tokens=11),
    record(3, status="refused", http_status=429),
    record(4, created_at=NOON + DAY / 2 - 0.001),  # the last moment of that day
    record(5, created_at=NOON + DAY / 2, completed_at=NOON + DAY),
)


class RecordsContract:
    """Needs a fixture `records`: those that keep `SOME`."""

    async def test_the_newest_come_first(self, records: Records) -> None:
        assert await records.recent(9) == [SOME[4], SOME[3], SOME[2], SOME[1], SOME[0]]
        assert await records.recent(2) == [SOME[4], SOME[3]]
        assert records.dropped == 0

    async def test_those_of_one_time_stand_by_id(self, records: Records) -> None:
        twin = record(6, created_at=SOME[4].created_at)
        records.add(twin)
        assert await records.recent(2) == [twin, SOME[4]]

    async def test_one_that_is_there_already_changes_nothing(self, records: Records) -> None:
        found = await records.recent(9)
        records.add(SOME[2])
        assert await records.recent(9) == found

    @pytest.mark.parametrize(
        ("selection", "numbers"),
        [
            (Selection(user_id="bob"), [2]),
            (Selection(key_id="k"), [2]),
            (Selection(model="m"), [2]),
            (Selection(node="n"), [2]),
            (Selection(status="refused"), [3]),
            (Selection(since=NOON + 2, until=NOON + 3), [2]),
            (Selection(since=NOON + DAY / 2), [5]),
            (Selection(user_id="ann", model="m"), []),
        ],
    )
    async def test_a_selection_narrows(
        self, records: Records, selection: Selection, numbers: list[int]
    ) -> None:
        found = await records.recent(9, selection)
        assert [one.request_id for one in found] == [f"req_{number:05}" for number in numbers]
        assert sum(row.requests for row in await records.usage([Grouping.USER], selection)) == len(numbers)

    async def test_they_come_in_pages(self, records: Records) -> None:
        """In the order of all, also where several came at one time, whatever they are narrowed to."""
        twins = [record(number, created_at=SOME[4].created_at) for number in (6, 7, 8)]
        for twin in twins:
            records.add(twin)
        seen: list[RequestRecord] = []
        while page := await records.recent(1, after=seen[-1].request_id if seen else ""):
            seen += page
        assert seen == await records.recent(9) == [*twins[::-1], *SOME[::-1]]
        assert await records.recent(2, after=SOME[3].request_id) == [SOME[2], SOME[1]]
        narrowed = Selection(user_id="ann", until=NOON + 3)
        assert await records.recent(9, narrowed, after=SOME[4].request_id) == [SOME[0]]
        with pytest.raises(InvalidRequest, match="'req_none'") as refused:
            await records.recent(9, after="req_none")
        assert refused.value.param == "after"

    async def test_what_ended_lately_is_found_though_it_began_long_ago(self, records: Records) -> None:
        slow = record(6, created_at=NOON - 3000.0, completed_at=NOON + DAY)
        slower = record(7, created_at=NOON + DAY - LONGEST_S - 1, completed_at=NOON + DAY)
        slowest = record(8, created_at=NOON + DAY - LONGEST_S, completed_at=NOON + DAY)
        for one in (slow, slower, slowest):
            records.add(one)
        assert await records.recent(9, Selection(ended_since=NOON + DAY)) == [slowest]
        assert slow in await records.recent(9, Selection(ended_since=NOON + 600))
        assert SOME[0] not in await records.recent(9, Selection(ended_since=NOON + 1.75))
        assert SOME[1] in await records.recent(9, Selection(ended_since=NOON + 1.75))

    async def test_usage_is_summed_by_group_in_their_order(self, records: Records) -> None:
        by_user = await records.usage([Grouping.USER])
        assert [(row.group, row.requests, row.failed, row.total_tokens) for row in by_user] == [
            (("ann",), 4, 0, 60),
            (("bob",), 1, 1, 11),
        ]
        both = await records.usage([Grouping.DAY, Grouping.KEY])
        assert [(row.group, row.requests) for row in both] == [
            (("2023-11-15", "k"), 1),
            (("2023-11-15", "key_1"), 3),
            (("2023-11-16", "key_1"), 1),
        ]
        (all_of_it,) = await records.usage([])
        assert (all_of_it.group, all_of_it.requests, all_of_it.prompt_tokens) == ((), 5, 50)
        assert await records.usage([], Selection(user_id="nobody")) == []

    async def test_what_was_completed_before_is_pruned(self, records: Records) -> None:
        assert await records.prune(SOME[2].completed_at) == 2
        assert await records.recent(9) == [SOME[4], SOME[3], SOME[2]]
        assert await records.prune(SOME[2].completed_at) == 0
