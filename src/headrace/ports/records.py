"""The ports to what is kept about people, keys and requests."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from headrace.domain.access import Scope
from headrace.domain.quota import Limits
from headrace.domain.routing import Route


class User(msgspec.Struct, frozen=True, kw_only=True):
    """Who keys belong to and who is charged (E18). `tier` names one of the configured tiers; `limits` of its own win."""

    user_id: str
    name: str = ""
    email: str = ""
    created_at: float = 0.0
    active: bool = True
    tier: str = ""
    limits: Limits = Limits()


class ManagedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that the database knows, without the key itself.

    prefix: its first characters, to tell keys apart. digest: SHA-256 of the whole. models: patterns of the models that it may
    use; empty: all. expires_at, revoked_at: seconds since the epoch, None: never.
    """

    key_id: str
    prefix: str
    digest: bytes
    user_id: str
    name: str = ""
    scopes: tuple[Scope, ...] = (Scope.INFERENCE,)
    models: tuple[str, ...] = ()
    limits: Limits = Limits()
    priority: int = 0
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None


class Accounts(Protocol):
    """Users and their keys. What is written is durable when the call returns.

    Raises (all): Unavailable where the database can't be asked: nothing was changed, or nobody knows.
    """

    async def users(self, *, after: str = "", limit: int | None = None) -> list[User]:
        """Users by id: all, or the first *limit* of those whose id comes behind *after*."""

    async def save_user(self, user: User) -> None:
        """Add *user*, or replace the one with its id."""

    async def delete_user(self, user_id: str) -> bool:
        """Remove a user and its keys; False: there is none. Its records stay."""

    async def keys(self, *, user_id: str = "", after: str = "", limit: int | None = None) -> list[ManagedKey]:
        """Keys, revoked and expired ones too, oldest first: all, or those of one user; the first *limit* of those that come
        behind the key *after*, whosever that is.

        Raises:
            InvalidRequest: there is no key *after* (any more).
        """

    async def save_key(self, key: ManagedKey) -> None:
        """Add *key*, or replace the one with its id. Its user is added where there is none."""

    async def generation(self) -> int:
        """A number that grows with each change of users and keys, by whatever process: cheap to ask."""


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is kept of one request (C34, E20): never its prompt or answer. Times are seconds since the epoch.

    status: `completed`, `cancelled`, `failed` or `refused`. http_status: what the client was told, 0 if nothing. error: the
    error's code, empty without. estimated_tokens: what was reserved. first_token_ms: None where nothing was streamed.
    """

    request_id: str
    user_id: str = ""
    key_id: str = ""
    client: str = ""
    path: str
    model: str
    node: str = ""
    status: str
    http_status: int
    error: str = ""
    created_at: float
    completed_at: float
    latency_ms: float
    first_token_ms: float | None = None
    streamed: bool = False
    executions: int = 0
    estimated_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    estimated: bool = False


LONGEST_S = 3600.0
"""Of what took longer than that, a selection by its end knows nothing: records are kept in the order of their beginnings."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which records; what is empty or None doesn't narrow. Times are seconds since the epoch.

    since, until: when it came in, *until* excluded. ended_since: when it was completed, if it came in at most `LONGEST_S` before.
    """

    user_id: str = ""
    key_id: str = ""
    model: str = ""
    node: str = ""
    status: str = ""
    since: float | None = None
    until: float | None = None
    ended_since: float | None = None


ALL = Selection()


class Grouping(StrEnum):
    """What usage is summed by."""

    USER = "user"
    KEY = "key"
    MODEL = "model"
    DAY = "day"  # of UTC


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the records of one group. `group`: one value for each grouping that was asked for, in that order."""

    group: tuple[str, ...]
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Records(Protocol):
    """One row for each request, written in batches through a bounded buffer."""

    dropped: int
    """Records that were lost because the buffer was full or the database refused them."""

    def add(self, record: RequestRecord) -> None:
        """Keep *record*: returns at once, never raises. At most 200 ms of records are lost in a crash."""

    async def recent(self, limit: int, selection: Selection = ALL, *, after: str = "") -> list[RequestRecord]:
        """The newest first, those still in the buffer included; *after*: only those that come behind the record of that id.

        Raises:
            InvalidRequest: there is no record *after* (any more).
        """

    async def usage(self, by: Sequence[Grouping], selection: Selection = ALL) -> list[UsageRow]:
        """Sums, by group, those still in the buffer not included."""

    async def prune(self, before: float) -> int:
        """Delete what was completed before that time; how many."""


class Routes(Protocol):
    """The routes that are kept in the database (C35). What is written is durable when the call returns.

    Raises (all): Unavailable where the database can't be asked: nothing was changed, or nobody knows.
    """

    async def routes(self) -> list[Route]:
        """All of them, by id."""

    async def save_route(self, route: Route) -> None:
        """Add *route*, or replace the one with its id."""

    async def delete_route(self, route_id: str) -> bool:
        """Remove it; False: there is none."""

    async def generation(self) -> int:
        """A number that grows with each change of routes, users and keys, by whatever process: cheap to ask."""
