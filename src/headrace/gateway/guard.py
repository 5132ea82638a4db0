"""Who has no valid key can't ask without end (C32)."""

from __future__ import annotations

import time
from collections.abc import Callable

from headrace.gateway.security import SecurityEvent, SecurityEvents, network_of
from headrace.kernel.errors import (
    Forbidden,
    LimitExceeded,
    ModelHidden,
    RequestError,
    Unauthenticated,
    code_of,
)

WINDOW_S = 60.0
MAX_ADDRESSES = 10_000
"""Addresses that are counted one by one within a window; all further ones share one count, as if they were one address."""
_OTHERS = "others"
GUARDED = (Unauthenticated, Forbidden, ModelHidden)
"""The errors that may be those of an attack: the guard is asked what the client is told instead."""


class AddressGuard:
    """Counts requests without a valid key by address (IPv6: by /64), in windows of a minute: *per_minute* at most, 0: no limit.

    It is asked only after a key was found wrong, so whoever has a valid key isn't held up by others at the same address, and
    pays nothing for it. `refusals`: requests without a valid key so far; `limited`: those of them that were over the limit.
    """

    def __init__(
        self,
        per_minute: int = 60,
        events: SecurityEvents | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_minute = per_minute
        self.events = events or SecurityEvents()
        self.refusals = 0
        self.limited = 0
        self._now = now
        self._window = -1.0
        self._counts: dict[str, int] = {}

    @property
    def addresses(self) -> int:
        """Addresses that are counted in the running window."""
        return len(self._counts)

    def refused(
        self, error: RequestError, address: str, *, key_id: str = "", given: bool = False
    ) -> RequestError:
        """What the client at *address* is told where *error* came up: that, or that it asked too often without a valid key.

        *key_id*: whose key it is, where it is valid. *given*: whether there was one at all.
        """
        if isinstance(error, Forbidden | ModelHidden):
            self.events.note(SecurityEvent.ACCESS_DENIED, address, key_id=key_id, code=code_of(error))
        if not isinstance(error, Unauthenticated):
            return error
        self.refusals += 1
        wait_s = self._count(address) if self.per_minute else None
        if wait_s is None:
            self.events.note(SecurityEvent.KEY_REFUSED, address, key_given=given)
            return error
        self.limited += 1
        self.events.note(SecurityEvent.ADDRESS_LIMITED, address, limit=self.per_minute)
        return LimitExceeded(
            f"Your address sent more than {self.per_minute} requests in a minute without a valid API key.",
            code="rate_limit_exceeded",
            retry_after_s=wait_s,
        )

    def _count(self, address: str) -> float | None:
        """Count one request; seconds until the next window where it was one too many, else None."""
        now = self._now()
        window = now // WINDOW_S
        if window != self._window:
            self._window = window
            self._counts = {}
        network = network_of(address)
        if network not in self._counts and len(self._counts) >= MAX_ADDRESSES:
            network = _OTHERS
        self._counts[network] = count = self._counts.get(network, 0) + 1
        return (window + 1) * WINDOW_S - now if count > self.per_minute else None
