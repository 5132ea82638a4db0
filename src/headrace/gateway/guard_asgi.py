"""The guard's place on the ASGI lane."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.control.access import KeyRing, read_key
from headrace.gateway.addresses import UNIX, Addresses, joined
from headrace.gateway.guard import GUARDED, AddressGuard
from headrace.kernel.errors import RequestError, Unauthenticated

EXEMPT = frozenset({"/health", "/v1/health", "/version"})
"""Paths that are asked without a key by design; and so are a browser's preflight requests, which don't come this far."""


class GuardedApp:
    """Holds requests that *app* refuses for want of a key to the limit of their address, and those for what isn't there.

    The address is kept in `scope["state"]["client_address"]`.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, guard: AddressGuard, addresses: Addresses) -> None:
        self._app = app
        self._keys = keys
        self._guard = guard
        self._addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        peer = scope["client"][0] if scope.get("client") else UNIX
        address = self._addresses.client(peer, joined(scope["headers"]))
        scope.setdefault("state", {})["client_address"] = address
        try:
            await self._app(scope, receive, send)
        except GUARDED as error:
            raise self._told(error, scope, address) from None
        except HTTPException:  # no such path, or not with this method: it was never asked for a key
            if (refusal := self._stranger(scope, address)) is not None:
                raise refusal from None
            raise

    def _stranger(self, scope: Scope, address: str) -> RequestError | None:
        """What one without a valid key is told instead of the routing's error; None: that error."""
        if scope["path"] in EXEMPT:
            return None
        try:
            self._keys.authenticate(read_key(scope["headers"]))
        except Unauthenticated as error:
            refusal = self._told(error, scope, address)
            return refusal if refusal is not error else None
        return None

    def _told(self, error: RequestError, scope: Scope, address: str) -> RequestError:
        key = read_key(scope["headers"])
        return self._guard.refused(error, address, key_id=self._key_id(key), given=bool(key))

    def _key_id(self, key: bytes) -> str:
        try:
            return self._keys.authenticate(key).id
        except Unauthenticated:
            return ""
