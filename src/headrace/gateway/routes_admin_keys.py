"""`/admin/keys`: who may come in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import structlog
from msgspec import UNSET, Meta, Struct, UnsetType, to_builtins
from starlette.requests import Request
from starlette.responses import Response

from headrace.control.accounts import AccountBook
from headrace.domain.access import Principal, Scope
from headrace.gateway.administration import (
    NO_LIMITS,
    LimitChanges,
    Line,
    Page,
    UserId,
    answer,
    given,
    query,
    read,
)
from headrace.ports.records import ManagedKey

log = structlog.get_logger(__name__)

Scopes = Annotated[tuple[Scope, ...], Meta(min_length=1, max_length=8)]
Models = Annotated[tuple[Annotated[Line, Meta(min_length=1)], ...], Meta(max_length=200)]
Moment = Annotated[float, Meta(gt=0, le=253_402_300_799)]
Class = Literal[-1, 0, 1]


class NewKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key as a request gives it."""

    user_id: UserId
    name: Line = ""
    scopes: Scopes = (Scope.INFERENCE,)
    models: Models = ()
    limits: LimitChanges = NO_LIMITS
    priority: Class = 0
    expires_at: Moment | None = None


class KeyChanges(Struct, frozen=True, forbid_unknown_fields=True):
    """What a request changes; what it doesn't name stays as it is."""

    name: Line | UnsetType = UNSET
    scopes: Scopes | UnsetType = UNSET
    models: Models | UnsetType = UNSET
    limits: LimitChanges | UnsetType = UNSET
    priority: Class | UnsetType = UNSET
    expires_at: Moment | UnsetType | None = UNSET


class KeyRoutes:
    """Keys. A key's text is told once, to who made it; neither it nor its digest can be read afterwards."""

    def __init__(self, accounts: AccountBook) -> None:
        self._accounts = accounts

    async def listing(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/keys?user=&limit=200&after=: the oldest first."""
        asked = query(request, "user", "limit", "after")
        page = Page.of(asked)
        keys = await self._accounts.keys(
            user_id=asked.get("user", ""), after=page.after, limit=page.limit + 1
        )
        return page.answer(keys, _shown)

    async def create(self, request: Request, asker: Principal) -> Response:
        """POST /admin/keys"""
        new = await read(request, NewKey)
        key, text = await self._accounts.create_key(
            new.user_id,
            name=new.name,
            scopes=new.scopes,
            models=new.models,
            limits=new.limits.limits(),
            priority=new.priority,
            expires_at=new.expires_at,
        )
        log.info("a key was made", action="key.created", key=key.key_id, user=key.user_id, by=asker.id)
        return answer({**_shown(key), "key": text}, 201)

    async def one(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/keys/{id or prefix}"""
        query(request)
        return answer(_shown(await self._accounts.key(request.path_params["key_id"])))

    async def change(self, request: Request, asker: Principal) -> Response:
        """PATCH /admin/keys/{id or prefix}"""
        changes = given(await read(request, KeyChanges))
        key = await self._accounts.change_key(request.path_params["key_id"], changes)
        log.info(
            "a key was changed", action="key.changed", key=key.key_id, fields=sorted(changes), by=asker.id
        )
        return answer(_shown(key))

    async def revoke(self, request: Request, asker: Principal) -> Response:
        """DELETE /admin/keys/{id or prefix}: it opens nothing from now on, and stays in the list."""
        key = await self._accounts.revoke_key(request.path_params["key_id"])
        log.info("a key was revoked", action="key.revoked", key=key.key_id, by=asker.id)
        return answer(_shown(key))


def _shown(key: ManagedKey) -> dict[str, Any]:
    shown: dict[str, Any] = to_builtins(key)
    del shown["digest"]
    return shown
