"""`/admin/users`: who is charged, and how their quotas stand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from msgspec import UNSET, Struct, UnsetType, to_builtins
from starlette.requests import Request
from starlette.responses import Response

from headrace.domain.access import Principal
from headrace.domain.quota import Window
from headrace.gateway.administration import (
    NO_LIMITS,
    Administration,
    LimitChanges,
    Line,
    Page,
    UserId,
    answer,
    given,
    query,
    read,
)
from headrace.kernel.errors import Unavailable
from headrace.ports.ledger import QuotaLedger, Standing, Verdict
from headrace.ports.records import User

log = structlog.get_logger(__name__)


class NewUser(Struct, frozen=True, forbid_unknown_fields=True):
    """A user as a request gives it."""

    user_id: UserId
    name: Line = ""
    email: Line = ""
    active: bool = True
    tier: Line = ""
    limits: LimitChanges = NO_LIMITS


class UserChanges(Struct, frozen=True, forbid_unknown_fields=True):
    """What a request changes; what it doesn't name stays as it is."""

    name: Line | UnsetType = UNSET
    email: Line | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    tier: Line | UnsetType = UNSET
    limits: LimitChanges | UnsetType = UNSET


class UserRoutes:
    """Users."""

    def __init__(self, administration: Administration) -> None:
        self._accounts = administration.accounts
        self._ledger = administration.ledger

    async def listing(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/users?limit=200&after=: by id."""
        page = Page.of(query(request, "limit", "after"))
        return page.answer(await self._accounts.users(after=page.after, limit=page.limit + 1), self._shown)

    async def create(self, request: Request, asker: Principal) -> Response:
        """POST /admin/users"""
        new = await read(request, NewUser)
        user = await self._accounts.create_user(
            User(
                user_id=new.user_id,
                name=new.name,
                email=new.email,
                active=new.active,
                tier=new.tier,
                limits=new.limits.limits(),
            )
        )
        log.info("a user was added", action="user.created", user=user.user_id, by=asker.id)
        return answer(self._shown(user), 201)

    async def one(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/users/{user_id}"""
        query(request)
        return answer(self._shown(await self._accounts.user(request.path_params["user_id"])))

    async def change(self, request: Request, asker: Principal) -> Response:
        """PATCH /admin/users/{user_id}"""
        changes = given(await read(request, UserChanges))
        user = await self._accounts.change_user(request.path_params["user_id"], changes)
        fields = sorted(changes)
        log.info("a user was changed", action="user.changed", user=user.user_id, fields=fields, by=asker.id)
        return answer(self._shown(user))

    async def delete(self, request: Request, asker: Principal) -> Response:
        """DELETE /admin/users/{user_id}: it and its keys; its records stay."""
        user_id = request.path_params["user_id"]
        await self._accounts.delete_user(user_id)
        log.info("a user was removed", action="user.deleted", user=user_id, by=asker.id)
        return answer({"user_id": user_id, "deleted": True})

    async def quota(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/users/{user_id}/quota: how its windows stand, and those of its keys that have limits of their own."""
        query(request)
        user = await self._accounts.user(request.path_params["user_id"])
        keys = [key for key in await self._accounts.keys(user_id=user.user_id) if key.revoked_at is None]
        standings = await _peek(self._ledger, self._accounts.windows_of(user, keys))
        return answer(
            {
                "user_id": user.user_id,
                "tier": user.tier,
                "limits": self._accounts.limits_of(user),
                "windows": [_standing(standing) for standing in standings],
            }
        )

    def _shown(self, user: User) -> dict[str, Any]:
        shown: dict[str, Any] = to_builtins(user)
        return shown | {"effective_limits": self._accounts.limits_of(user)}


async def _peek(ledger: QuotaLedger, windows: Sequence[Window]) -> Sequence[Standing]:
    """How *windows* stand.

    Raises:
        Unavailable: the ledger can't be asked.
    """
    if not windows:
        return ()
    heard: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    def told(verdict: Verdict) -> None:
        if not heard.done():  # nobody waits any more once the request was cancelled
            heard.set_result(verdict)

    ledger.peek(windows, told)
    verdict = await heard
    if verdict.unavailable:
        raise Unavailable(f"The quota can't be read: {verdict.unavailable.rstrip('.')}.", retry_after_s=1.0)
    return verdict.standings


def _standing(standing: Standing) -> dict[str, Any]:
    window = standing.window
    return {
        "subject": window.subject,
        "measure": window.measure,
        "period": window.period,
        "limit": window.limit,
        "used": standing.used,
        "remaining": standing.remaining,
        "resets_at": standing.resets_at or None,
    }
