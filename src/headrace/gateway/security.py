"""What may be an attack, told in the log (D49): often enough to be seen, and never so often that it is one itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from ipaddress import ip_network

import structlog

log = structlog.get_logger(__name__)

MAX_ADDRESSES = 4096
"""Of how many addresses it is remembered how much was told of them; the one that was quiet longest is forgotten."""


class SecurityEvent(StrEnum):
    """What happened. In the log it stands as `action`: `security.key_refused` and so on."""

    KEY_REFUSED = "key_refused"
    ACCESS_DENIED = "access_denied"
    ADDRESS_LIMITED = "address_limited"
    FORWARDED_FORGED = "forwarded_forged"
    ENROLMENT_REFUSED = "enrolment_refused"


_MESSAGES = {
    SecurityEvent.KEY_REFUSED: "a request without a valid key",
    SecurityEvent.ACCESS_DENIED: "a key was used for what it may not do",
    SecurityEvent.ADDRESS_LIMITED: "too many requests without a valid key",
    SecurityEvent.FORWARDED_FORGED: "X-Forwarded-For from a peer that is not a trusted proxy",
    SecurityEvent.ENROLMENT_REFUSED: "a node was refused",
}


class _Bucket:
    """Holds up to *size* permissions, and gets a new one every *interval_s* seconds."""

    __slots__ = ("_at", "_interval_s", "_left", "_size")

    def __init__(self, size: int, interval_s: float, now: float) -> None:
        self._size = size
        self._interval_s = interval_s
        self._left = float(size)
        self._at = now

    def take(self, now: float) -> bool:
        """Take one, if there is one."""
        self._left = min(self._size, self._left + (now - self._at) / self._interval_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class SecurityEvents:
    """Writes events to the log: of each kind and address 5 at once, then one a minute; of each kind 30 at once, then one in 2 s.

    `seen` and `suppressed` count, for each kind, all events, and those of them that weren't written. *write* is called as a
    logger's `warning` is.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, write: Callable[..., object] | None = None
    ) -> None:
        self._write = write or log.warning
        self.seen: Counter[SecurityEvent] = Counter()
        self.suppressed: Counter[SecurityEvent] = Counter()
        self._now = now
        self._untold: Counter[SecurityEvent] = Counter()  # since the last one that was written
        self._kinds = {kind: _Bucket(30, 2.0, now()) for kind in SecurityEvent}
        self._addresses: dict[tuple[SecurityEvent, str], _Bucket] = {}

    @property
    def addresses(self) -> int:
        """Kinds and addresses that are remembered now; at most `MAX_ADDRESSES`."""
        return len(self._addresses)

    def note(self, kind: SecurityEvent, address: str, **facts: str | int | bool) -> None:
        """Something of *kind* came from *address*. Nothing of a key may stand in *facts*: its id may.

        What is written says how many of its kind weren't since the one before it (`suppressed`).
        """
        self.seen[kind] += 1
        now = self._now()
        if self._of_address(kind, address, now).take(now) and self._kinds[kind].take(now):
            untold = self._untold.pop(kind, 0)
            self._write(
                _MESSAGES[kind], action=f"security.{kind}", address=address, suppressed=untold, **facts
            )
        else:
            self.suppressed[kind] += 1
            self._untold[kind] += 1

    def _of_address(self, kind: SecurityEvent, address: str, now: float) -> _Bucket:
        key = kind, network_of(address)
        bucket = self._addresses.pop(key, None) or _Bucket(5, 60.0, now)
        if len(self._addresses) >= MAX_ADDRESSES:
            del self._addresses[next(iter(self._addresses))]
        self._addresses[key] = bucket
        return bucket


def network_of(address: str) -> str:
    """What counts as one client: an IPv4 address, but all of an IPv6 /64, since who has one of its addresses has them all."""
    if ":" not in address:
        return address
    return str(ip_network((address.partition("%")[0], 64), strict=False))
