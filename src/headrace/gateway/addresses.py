"""Where a request comes from: the peer, or whom a trusted proxy names.

    client ──► proxy ──► proxy ──► us          X-Forwarded-For: client, proxy      peer: proxy
    whom nobody vouches for │ read from the right, as long as the one that speaks is trusted ◄─┘

Anybody can write the header, so what an untrusted peer says in it has no effect. `Forwarded` and `X-Real-IP` aren't read.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

from headrace.gateway.security import SecurityEvent, SecurityEvents

UNIX = "unix"
"""The address of every client on a Unix socket; among the trusted proxies, it stands for all of them."""
MAX_HOPS = 16
"""Proxies in a row at most: no header makes us read more addresses than that."""
_LONGEST_ADDRESS = 64
_REMEMBERED = 4096


class _Hop(NamedTuple):
    """An address as it is written here, and whether a trusted proxy has it."""

    address: str
    trusted: bool


class Addresses:
    """Finds clients' addresses behind the proxies in *trusted*: addresses, networks, and `unix`.

    Raises:
        ValueError: one of *trusted* is none of these.
    """

    def __init__(self, trusted: Iterable[str] = (), events: SecurityEvents | None = None) -> None:
        words = frozenset(trusted)
        self._unix = UNIX in words
        self._networks = [ip_network(word, strict=False) for word in sorted(words - {UNIX})]
        self._events = events or SecurityEvents()
        self._hop = lru_cache(_REMEMBERED)(self._look)  # of this object, so it goes with it

    def client(self, peer: str, forwarded: bytes = b"") -> str:
        """The address of the client that *peer* is, or speaks for. *forwarded*: all of its X-Forwarded-For fields, in order,
        joined by commas.

        The right-most one that is no trusted proxy. Where there is no such one, or one isn't an address, the last before it.
        """
        hop = self._hop(peer)
        if hop is None:
            return peer
        if forwarded and not hop.trusted:
            self._events.note(SecurityEvent.FORWARDED_FORGED, hop.address)
            return hop.address
        if forwarded:
            for said in reversed(forwarded.decode("latin-1").rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
                before = self._hop(text) if len(text := said.strip()) <= _LONGEST_ADDRESS else None
                if before is None or not hop.trusted:
                    break
                hop = before
        return hop.address

    def _look(self, text: str) -> _Hop | None:
        if text == UNIX:
            return _Hop(UNIX, self._unix)
        try:
            address = read_address(text)
        except ValueError:
            return None
        return _Hop(str(address), any(address in network for network in self._networks))


def read_address(text: str) -> IPv4Address | IPv6Address:
    """The address that *text* holds, perhaps with a port, brackets or a zone; of an IPv4 address in IPv6's clothes, the former.

    Raises:
        ValueError: it holds none.
    """
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def joined(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """All X-Forwarded-For fields as one; empty where there is none. Names are lower case."""
    return b",".join([value for name, value in fields if name == b"x-forwarded-for"])
