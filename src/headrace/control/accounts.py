"""Users and managed keys: what is changed is kept in the database, and heeded at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from msgspec.structs import replace

from headrace.control.access import KeyRing, digest
from headrace.domain.access import Principal, Scope
from headrace.domain.inference import Priority
from headrace.domain.quota import NO_TIER, UNLIMITED, Limits, Tier, Window, entry_and_tokens
from headrace.kernel.clock import Clock
from headrace.kernel.errors import InvalidRequest, NotFound, RequestError
from headrace.kernel.ids import RandomIds, api_key
from headrace.ports.records import Accounts, ManagedKey, User

log = structlog.get_logger(__name__)

FOLLOW_S = 0.5
"""How often the database is asked whether another process changed something."""
PREFIX_CHARS = 11
"""Of a key, kept in the clear to tell keys apart."""
_AT_ONCE = 200
_PRIORITIES = {1: Priority.HIGH, 0: Priority.NORMAL, -1: Priority.LOW}


class AccountBook:
    """The users and keys of the database, and the ring that they open.

    *tiers*: by name; a user of no tier, or of one that isn't configured any more, has the limits of *default*. What this
    object changes, it changes one after the other: no change is lost in another, and no key comes back that was revoked.
    """

    def __init__(
        self,
        accounts: Accounts,
        ring: KeyRing,
        clock: Clock,
        tiers: Mapping[str, Tier] | None = None,
        default: Tier = NO_TIER,
    ) -> None:
        self._accounts = accounts
        self._ring = ring
        self._clock = clock
        self._tiers = tiers or {}
        self._default = default
        self._key_ids = RandomIds("key_")
        self._generation = -1
        self._changing = asyncio.Lock()
        self._reading = asyncio.Lock()  # or one that was slow could put back what a later one had taken out

    async def refresh(self) -> None:
        """Read everything anew, and heed it.

        Raises:
            Unavailable: the database can't be asked; what was known stays in force.
        """
        async with self._reading:
            await self._refresh()

    async def _refresh(self) -> None:
        generation = await self._accounts.generation()
        users = {user.user_id: user for user in await self._accounts.users()}
        now = self._clock.now()
        managed = {}
        for place, key in enumerate(await self._accounts.keys(), 1):
            user = users.get(key.user_id)
            ended = key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now)
            if not ended and (user is None or user.active):
                managed[key.digest] = self._principal(key, user)
            if place % _AT_ONCE == 0:
                await asyncio.sleep(0)  # thousands of keys take so long that streams would halt
        self._ring.replace_managed(managed)
        self._generation = generation

    async def follow(self) -> None:
        """Heed what other processes change, for ever."""
        stale = False  # told once, not twice a second
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                if await self._accounts.generation() != self._generation:
                    await self.refresh()
            except RequestError as error:
                if not stale:
                    log.warning("keys can't be read anew", action="accounts.stale", reason=error.message)
                stale = True
            else:
                if stale:
                    log.info("keys can be read anew", action="accounts.fresh")
                stale = False

    async def users(self, *, after: str = "", limit: int | None = None) -> list[User]:
        """Users by id: all, or the first *limit* of those behind *after*."""
        return await self._accounts.users(after=after, limit=limit)

    async def user(self, user_id: str) -> User:
        """One user.

        Raises:
            NotFound: there is none of that id.
        """
        for user in await self._accounts.users():
            if user.user_id == user_id:
                return user
        raise NotFound(f"There is no user {user_id!r}.")

    async def create_user(self, user: User) -> User:
        """Add a user, effective at once.

        Raises:
            InvalidRequest: there is one of that id already, or its tier isn't configured; nothing was changed.
        """
        async with self._changing:
            if any(known.user_id == user.user_id for known in await self._accounts.users()):
                raise InvalidRequest(
                    f"There is a user {user.user_id!r} already.", param="user_id", code="already_exists"
                )
            return await self._save_user(replace(user, created_at=self._clock.now()))

    async def change_user(self, user_id: str, changes: Mapping[str, Any]) -> User:
        """Set the named fields of a user, effective at once. Of `limits`, a mapping, those that are named.

        Raises:
            NotFound: there is none of that id.
            InvalidRequest: its new tier isn't configured; nothing was changed.
        """
        async with self._changing:
            user = await self.user(user_id)
            changed = replace(user, **_merged(user.limits, changes))
            return await self._save_user(changed, check_tier=changed.tier != user.tier)

    async def save_user(self, user: User) -> User:
        """Add or replace a user, effective at once.

        Raises:
            InvalidRequest: its tier isn't configured; nothing was changed.
        """
        async with self._changing:
            return await self._save_user(
                user if user.created_at else replace(user, created_at=self._clock.now())
            )

    async def delete_user(self, user_id: str) -> None:
        """Remove a user and its keys, effective at once; its records stay.

        Raises:
            NotFound: there is none of that id.
        """
        async with self._changing:
            if not await self._accounts.delete_user(user_id):
                raise NotFound(f"There is no user {user_id!r}.")
            await self.refresh()

    async def keys(self, *, user_id: str = "", after: str = "", limit: int | None = None) -> list[ManagedKey]:
        """Managed keys, revoked ones too, oldest first: all or those of one user, the first *limit* of those behind *after*.

        Raises:
            InvalidRequest: there is no key *after*.
        """
        return await self._accounts.keys(user_id=user_id, after=after, limit=limit)

    async def key(self, key_id: str) -> ManagedKey:
        """One key, by its id or its prefix.

        Raises:
            NotFound: there is none, or the prefix fits several.
        """
        keys = await self._accounts.keys()
        fits = [key for key in keys if key.key_id == key_id] or [key for key in keys if key.prefix == key_id]
        if len(fits) != 1:
            raise NotFound(f"There is {'no' if not fits else 'more than one'} key {key_id!r}.")
        return fits[0]

    async def create_key(
        self,
        user_id: str,
        *,
        name: str = "",
        scopes: Sequence[Scope] = (Scope.INFERENCE,),
        models: Sequence[str] = (),
        limits: Limits = UNLIMITED,
        priority: int = 0,
        expires_at: float | None = None,
    ) -> tuple[ManagedKey, str]:
        """A new key and its text, which is shown this once and kept nowhere. Effective at once.

        Raises:
            InvalidRequest: it has no user, or would have expired already.
        """
        if not user_id:
            raise InvalidRequest("A key belongs to a user: name one.", param="user_id")
        if expires_at is not None and expires_at <= self._clock.now():
            raise InvalidRequest("The key would have expired already.", param="expires_at")
        text = api_key()
        key = ManagedKey(
            key_id=self._key_ids(),
            prefix=text[:PREFIX_CHARS],
            digest=digest(text.encode()),
            user_id=user_id,
            name=name,
            scopes=tuple(scopes),
            models=tuple(models),
            limits=limits,
            priority=priority,
            created_at=self._clock.now(),
            expires_at=expires_at,
        )
        await self.save_key(key)
        return key, text

    async def save_key(self, key: ManagedKey) -> None:
        """Add or replace a key, effective at once.

        Raises:
            InvalidRequest: its priority isn't one of -1, 0 and 1; nothing was changed.
        """
        async with self._changing:
            await self._save_key(key)

    async def change_key(self, key_id: str, changes: Mapping[str, Any]) -> ManagedKey:
        """Set the named fields of a key, by its id or prefix, effective at once. Of `limits`, a mapping, those that are named.

        Raises:
            NotFound: there is none.
            InvalidRequest: a value can't be; nothing was changed.
        """
        async with self._changing:
            key = await self.key(key_id)
            changed = replace(key, **_merged(key.limits, changes))
            await self._save_key(changed)
            return changed

    async def revoke_key(self, key_id: str) -> ManagedKey:
        """Let a key in no more, effective at once. Idempotent.

        Raises:
            NotFound: there is none.
        """
        async with self._changing:
            key = await self.key(key_id)
            if key.revoked_at is None:
                key = replace(key, revoked_at=self._clock.now())
                await self._save_key(key)
            return key

    def limits_of(self, user: User) -> Limits:
        """What *user* is held to: its own limits, each where it says something, over its tier's."""
        return user.limits.over(self._tiers.get(user.tier, self._default).limits)

    def windows_of(self, user: User, keys: Sequence[ManagedKey] = ()) -> tuple[Window, ...]:
        """What is counted for *user*, and for each of its *keys* by itself."""
        windows = self.limits_of(user).windows(f"user:{user.user_id}")
        for key in keys:
            windows += key.limits.windows(f"key:{key.key_id}")
        return windows

    async def _save_user(self, user: User, *, check_tier: bool = True) -> User:
        if check_tier and user.tier and user.tier not in self._tiers:
            known = ", ".join(sorted(self._tiers)) or "none"
            raise InvalidRequest(f"There is no tier {user.tier!r}; configured: {known}.", param="tier")
        await self._accounts.save_user(user)
        await self.refresh()
        return user

    async def _save_key(self, key: ManagedKey) -> None:
        if key.priority not in _PRIORITIES:
            raise InvalidRequest("A key's priority is -1, 0 or 1.", param="priority")
        await self._accounts.save_key(key)
        await self.refresh()

    def _principal(self, key: ManagedKey, user: User | None) -> Principal:
        owner = user or User(user_id=key.user_id)
        windows = self.windows_of(owner, [key])
        tier = self._tiers.get(owner.tier, self._default)
        entry, tokens = entry_and_tokens(windows)
        return Principal(
            key.key_id,
            frozenset(key.scopes),
            user=key.user_id,
            models=key.models,
            entry=entry,
            tokens=tokens,
            default_max_tokens=tier.default_max_tokens,
            priority=_PRIORITIES.get(key.priority, Priority.NORMAL),
            expires_at=key.expires_at,
        )


def _merged(limits: Limits, changes: Mapping[str, Any]) -> dict[str, Any]:
    if "limits" not in changes:
        return dict(changes)
    return {**changes, "limits": replace(limits, **changes["limits"])}
