"""Users and keys in memory, for tests of what asks for them."""

from __future__ import annotations

import asyncio

from headrace.kernel.errors import InvalidRequest, Unavailable
from headrace.ports.records import Accounts, ManagedKey, User


class MemoryAccounts(Accounts):
    """Keeps users and keys for as long as this object lives. Two books over one object are two processes at one database.

    While `failing`, every call raises `Unavailable` and changes nothing; `refused` counts them.
    """

    def __init__(self) -> None:
        self.failing = False
        self.refused = 0
        self._users: dict[str, User] = {}
        self._keys: dict[str, ManagedKey] = {}
        self._generation = 0

    async def users(self, *, after: str = "", limit: int | None = None) -> list[User]:
        """Users by id."""
        await self._turn()
        return [self._users[user_id] for user_id in sorted(self._users) if user_id > after][:limit]

    async def save_user(self, user: User) -> None:
        """Add *user*, or replace the one with its id."""
        await self._turn()
        if not user.user_id:
            raise InvalidRequest("user_id has to have 1 to 50 characters.", param="user_id")
        self._users[user.user_id] = user
        self._generation += 1

    async def delete_user(self, user_id: str) -> bool:
        """Remove a user and its keys; False: there is none."""
        await self._turn()
        if self._users.pop(user_id, None) is None:
            return False
        self._keys = {name: key for name, key in self._keys.items() if key.user_id != user_id}
        self._generation += 1
        return True

    async def keys(self, *, user_id: str = "", after: str = "", limit: int | None = None) -> list[ManagedKey]:
        """Keys, oldest first."""
        await self._turn()
        keys = sorted(self._keys.values(), key=lambda key: (key.created_at, key.key_id))
        if after:
            if after not in self._keys:
                raise InvalidRequest(f"There is no key {after!r}.", param="after")
            keys = keys[keys.index(self._keys[after]) + 1 :]
        return [key for key in keys if user_id in ("", key.user_id)][:limit]

    async def save_key(self, key: ManagedKey) -> None:
        """Add *key*, or replace the one with its id. Its user is added where there is none."""
        await self._turn()
        if not key.user_id:
            raise InvalidRequest("user_id has to have 1 to 50 characters.", param="user_id")
        if any(other.digest == key.digest and other.key_id != key.key_id for other in self._keys.values()):
            raise InvalidRequest("Another key has this digest: it is the same key.", param="digest")
        self._users.setdefault(key.user_id, User(user_id=key.user_id, created_at=key.created_at))
        self._keys[key.key_id] = key
        self._generation += 1

    async def generation(self) -> int:
        """How often something was changed."""
        await self._turn()
        return self._generation

    async def _turn(self) -> None:
        """What else is ready to run comes first, as it does while a database is asked."""
        await asyncio.sleep(0)
        if self.failing:
            self.refused += 1
            raise Unavailable("The database can't be asked.")
