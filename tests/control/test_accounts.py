"""Users and keys: what is changed is heeded at once, and what another process changes soon after."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from headrace.control.access import KeyRing
from headrace.control.accounts import PREFIX_CHARS, AccountBook
from headrace.domain.access import Principal, Scope
from headrace.domain.inference import Priority
from headrace.domain.quota import Limits, Measure, Tier
from headrace.kernel.aio import Tasks
from headrace.kernel.errors import InvalidRequest, NotFound, Unauthenticated, Unavailable
from headrace.ports.records import ManagedKey, User
from headrace.testing import ManualClock
from headrace.testing.accounts import MemoryAccounts
from support.waiting import until

TIERS = {"gold": Tier(Limits(requests_per_day=100, tokens_per_month=5000), default_max_tokens=64)}
BRONZE = Tier(Limits(requests_per_minute=3), default_max_tokens=16)


@dataclass
class Process:
    """One process with a book and a ring, at a database that it may share with others."""

    accounts: MemoryAccounts = field(default_factory=MemoryAccounts)
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.ring = KeyRing(self.clock.now)
        self.book = AccountBook(self.accounts, self.ring, self.clock, TIERS, BRONZE)

    def who(self, key: str) -> Principal:
        return self.ring.authenticate(key.encode())

    def opens(self, key: str) -> bool:
        with contextlib.suppress(Unauthenticated):
            self.who(key)
            return True
        return False


@pytest.fixture
def process() -> Process:
    return Process()


class TestAtOnce:
    @pytest.mark.req("C29", "E25")
    async def test_a_key_opens_from_its_creation_until_it_is_revoked(self, process: Process) -> None:
        key, text = await process.book.create_key("ann")
        principal = process.who(text)
        assert (principal.id, principal.user, principal.scopes) == (
            key.key_id,
            "ann",
            frozenset({Scope.INFERENCE}),
        )
        assert not process.opens(text[:-1])
        await process.book.revoke_key(key.key_id)
        assert not process.opens(text)

    async def test_what_a_key_may_is_what_was_last_said(self, process: Process) -> None:
        key, text = await process.book.create_key("ann", models=["llama-*"], priority=1)
        assert process.who(text).priority is Priority.HIGH
        assert not process.who(text).may_use("qwen")
        await process.book.change_key(
            key.key_id, {"models": ("qwen",), "priority": -1, "scopes": (Scope.ADMIN,)}
        )
        principal = process.who(text)
        assert (principal.may_use("qwen"), principal.priority) == (True, Priority.LOW)
        assert principal.may(Scope.ADMIN)

    async def test_limits_of_key_and_user_both_bind(self, process: Process) -> None:
        limits = Limits(requests_per_day=7, concurrency=2)
        await process.book.create_user(User(user_id="ann", tier="gold", limits=limits))
        key, text = await process.book.create_key("ann", limits=Limits(tokens_per_day=9))
        principal = process.who(text)
        entry = {(window.subject, window.measure, window.limit) for window in principal.entry}
        assert entry == {("user:ann", Measure.REQUESTS, 7), ("user:ann", Measure.CONCURRENCY, 2)}
        tokens = {(window.subject, window.limit) for window in principal.tokens}
        assert tokens == {("user:ann", 5000), (f"key:{key.key_id}", 9)}
        assert principal.default_max_tokens == 64
        await process.book.change_user("ann", {"limits": {"concurrency": 0}})
        assert {window.measure for window in process.who(text).entry} == {Measure.REQUESTS}

    @pytest.mark.req("E19")
    async def test_a_users_zero_is_no_limit_over_its_tiers_and_unset_is_its_tiers(
        self, process: Process
    ) -> None:
        await process.book.create_user(User(user_id="ann", tier="gold", limits=Limits(requests_per_day=0)))
        _, text = await process.book.create_key("ann", limits=Limits(tokens_per_day=0))
        principal = process.who(text)
        assert (principal.entry, [window.limit for window in principal.tokens]) == ((), [5000])
        await process.book.change_user("ann", {"limits": {"requests_per_day": None, "tokens_per_month": 0}})
        principal = process.who(text)
        assert ([window.limit for window in principal.entry], principal.tokens) == ([100], ())
        await process.book.change_user("ann", {"tier": ""})
        assert [window.limit for window in process.who(text).entry] == [3], "what [limits] says"

    async def test_an_inactive_users_keys_open_nothing(self, process: Process) -> None:
        _, text = await process.book.create_key("ann")
        _, other = await process.book.create_key("bob")
        await process.book.change_user("ann", {"active": False})
        assert (process.opens(text), process.opens(other)) == (False, True)
        await process.book.change_user("ann", {"active": True})
        assert process.opens(text)
        await process.book.delete_user("ann")
        assert (process.opens(text), process.opens(other)) == (False, True)
        with pytest.raises(NotFound):
            await process.book.delete_user("ann")

    async def test_a_key_expires_by_itself(self, process: Process) -> None:
        _, text = await process.book.create_key("ann", expires_at=process.clock.now() + 60)
        process.clock.advance(59.9)
        assert process.opens(text)
        process.clock.advance(0.2)  # nothing is read anew
        assert not process.opens(text)
        await process.book.refresh()
        assert not process.opens(text)

    async def test_a_key_of_the_settings_stays(self, process: Process) -> None:
        process.ring.add("sk-static")
        await process.book.create_key("ann")
        await process.book.delete_user("ann")
        assert process.opens("sk-static")


class TestRefusals:
    async def test_a_tier_that_is_not_configured(self, process: Process) -> None:
        with pytest.raises(InvalidRequest, match="configured: gold") as caught:
            await process.book.create_user(User(user_id="ann", tier="platinum"))
        assert caught.value.param == "tier"
        assert await process.book.users() == []
        await process.book.create_user(User(user_id="ann"))
        with pytest.raises(InvalidRequest):
            await process.book.change_user("ann", {"tier": "platinum"})
        assert (await process.book.user("ann")).tier == ""

    async def test_a_user_whose_tier_went_away_has_the_default_and_can_be_changed(
        self, process: Process
    ) -> None:
        await process.accounts.save_user(User(user_id="ann", tier="silver"))
        _, text = await process.book.create_key("ann")
        assert [window.limit for window in process.who(text).entry] == [3]
        assert process.who(text).default_max_tokens == 16
        assert (await process.book.change_user("ann", {"name": "Ann"})).tier == "silver"

    async def test_a_second_user_of_that_id(self, process: Process) -> None:
        await process.book.create_user(User(user_id="ann", name="first"))
        with pytest.raises(InvalidRequest, match="already"):
            await process.book.create_user(User(user_id="ann"))
        assert (await process.book.user("ann")).name == "first"

    async def test_keys_that_cannot_be(self, process: Process) -> None:
        for values in ({"user_id": ""}, {"user_id": "a", "expires_at": 1.0}, {"user_id": "a", "priority": 2}):
            with pytest.raises(InvalidRequest) as caught:
                await process.book.create_key(**values)
            assert caught.value.param in values
        assert await process.book.keys() == []

    async def test_while_the_database_is_away_what_was_known_holds(self, process: Process) -> None:
        key, text = await process.book.create_key("ann")
        process.accounts.failing = True
        for work in (process.book.refresh(), process.book.revoke_key(key.key_id), process.book.users()):
            with pytest.raises(Unavailable):
                await work
        assert process.opens(text)


class TestLookup:
    async def test_a_key_is_found_by_id_and_by_prefix(self, process: Process) -> None:
        key, text = await process.book.create_key("ann")
        assert key.prefix == text[:PREFIX_CHARS]
        for name in (key.key_id, key.prefix):
            assert await process.book.key(name) == key
        for name in ("", text, key.prefix[:-1]):
            with pytest.raises(NotFound, match="no key"):
                await process.book.key(name)

    async def test_a_prefix_that_fits_several_finds_none(self, process: Process) -> None:
        key, _ = await process.book.create_key("ann")
        await process.accounts.save_key(replace(key, key_id="key_other", digest=b"x" * 32))
        with pytest.raises(NotFound, match="more than one"):
            await process.book.revoke_key(key.prefix)
        assert (await process.book.key(key.key_id)).revoked_at is None

    async def test_the_text_of_a_key_is_kept_nowhere(self, process: Process) -> None:
        key, text = await process.book.create_key("ann")
        secret = text[PREFIX_CHARS:]
        assert secret not in repr(await process.accounts.keys()) + repr(key) + repr(process.who(text))


class SlowKeys(MemoryAccounts):
    """Its first answer about keys waits, once `slow`, until it is let go; what it says is what was true when asked."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.asked, self.let_go = asyncio.Event(), asyncio.Event()

    async def keys(self, *, user_id: str = "", after: str = "", limit: int | None = None) -> list[ManagedKey]:
        """As it was when the call came."""
        keys = await super().keys(user_id=user_id, after=after, limit=limit)
        if self.slow:
            self.slow = False
            self.asked.set()
            await self.let_go.wait()
        return keys


class TestAtTheSameTime:
    async def test_no_change_is_lost_in_another(self, process: Process) -> None:
        await process.book.create_user(User(user_id="ann"))
        names = Limits.__struct_fields__
        async with asyncio.TaskGroup() as group:
            for number, name in enumerate(names, 1):
                group.create_task(process.book.change_user("ann", {"limits": {name: number}}))
        assert (await process.book.user("ann")).limits == Limits(1, 2, 3, 4, 5, 6, 7)

    async def test_a_change_does_not_bring_back_a_key_that_is_revoked_meanwhile(
        self, process: Process
    ) -> None:
        key, text = await process.book.create_key("ann")
        async with asyncio.TaskGroup() as group:
            group.create_task(process.book.change_key(key.key_id, {"name": "a"}))
            group.create_task(process.book.revoke_key(key.key_id))
            group.create_task(process.book.change_key(key.key_id, {"name": "b"}))
        assert not process.opens(text)
        assert (await process.book.key(key.key_id)).name == "b"

    async def test_an_old_reading_that_comes_late_does_not_either(self) -> None:
        accounts = SlowKeys()
        process = Process(accounts)
        key, text = await process.book.create_key("ann")
        accounts.slow = True
        async with asyncio.TaskGroup() as group:
            group.create_task(process.book.refresh())
            await accounts.asked.wait()
            await accounts.save_key(replace(key, revoked_at=1.0))
            second = group.create_task(process.book.refresh())
            for _ in range(20):  # more turns than it needs, if it goes ahead
                await asyncio.sleep(0)
            accounts.let_go.set()
            await second
        assert not process.opens(text)

    async def test_a_reading_of_thousands_lets_others_have_their_turns(self, process: Process) -> None:
        """Streams would halt meanwhile."""
        for number in range(2000):
            key = ManagedKey(key_id=f"k{number}", prefix="", digest=b"%d" % number, user_id="ann")
            await process.accounts.save_key(key)
        turns = 0
        reading = asyncio.ensure_future(process.book.refresh())
        while not reading.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 10


class TestOtherProcesses:
    @pytest.fixture
    async def other(self, process: Process) -> AsyncIterator[Process]:
        """Another one at the same database, which follows."""
        other = Process(process.accounts, process.clock)
        tasks = Tasks()
        await other.book.refresh()
        tasks.spawn(other.book.follow(), name="follow")
        yield other
        await tasks.close()

    @pytest.mark.req("C29", "E25")
    async def test_what_one_changes_the_others_heed(self, process: Process, other: Process) -> None:
        key, text = await process.book.create_key("ann")
        await until(lambda: other.opens(text))
        await process.book.change_key(key.key_id, {"models": ("a",)})
        await until(lambda: other.who(text).models == ("a",))
        await process.book.change_user("ann", {"active": False})
        await until(lambda: not other.opens(text))
        await process.book.change_user("ann", {"active": True})
        await until(lambda: other.opens(text))
        await process.book.revoke_key(key.key_id)
        await until(lambda: not other.opens(text))

    async def test_a_database_that_was_away_is_followed_again(self, process: Process, other: Process) -> None:
        key, text = await process.book.create_key("ann")
        await until(lambda: other.opens(text))
        process.accounts.failing = True
        refused = process.accounts.refused
        await until(lambda: process.accounts.refused > refused)
        assert other.opens(text)
        process.accounts.failing = False
        await process.book.revoke_key(key.key_id)
        await until(lambda: not other.opens(text))
