"""Who may come in: keys, looked up by their digest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from headrace.domain.access import Principal, Scope
from headrace.domain.quota import NO_TIER, Tier, entry_and_tokens
from headrace.kernel.errors import StartupError, Unauthenticated
from headrace.kernel.ids import api_key

FIRST_KEY_FILE = "first-key"
ADMIN = frozenset({Scope.INFERENCE, Scope.ADMIN})


class KeyRing:
    """The keys that open this service: those of the settings, and those of the database.

    A key is looked up by its SHA-256, so neither the time that takes nor the answer tells how much of a guess was right, and a
    key that expired or was revoked is refused in the same words as one that never was.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._static: dict[bytes, Principal] = {}
        self._principals: dict[bytes, Principal] = {}
        self._now = now

    def add(
        self, key: str, scopes: frozenset[Scope] = frozenset({Scope.INFERENCE}), tier: Tier = NO_TIER
    ) -> None:
        """Let *key* in with *scopes*, held to the limits of *tier*; it stays whatever the database says."""
        key_digest = digest(key.encode())
        principal = _principal(f"key_{key_digest.hex()[:12]}", scopes, tier)
        self._static[key_digest] = self._principals[key_digest] = principal

    def replace_managed(self, managed: Mapping[bytes, Principal]) -> None:
        """The keys of the database are these from now on, by digest; a static key wins over one of them."""
        self._principals = {**managed, **self._static}

    def authenticate(self, key: bytes) -> Principal:
        """Whose *key* it is.

        Raises:
            Unauthenticated: nobody's.
        """
        principal = self._principals.get(digest(key)) if key else None
        if principal is None or (principal.expires_at is not None and principal.expires_at <= self._now()):
            raise Unauthenticated("Invalid API key." if key else "You didn't provide an API key.")
        return principal


def _principal(key_id: str, scopes: frozenset[Scope], tier: Tier) -> Principal:
    entry, tokens = entry_and_tokens(tier.limits.windows(f"key:{key_id}"))
    return Principal(
        key_id,
        scopes,
        entry=entry,
        tokens=tokens,
        default_max_tokens=tier.default_max_tokens,
    )


def read_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key of a request, from `Authorization: Bearer` or `X-API-Key`; empty where there is none. Names are lower case."""
    found = b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            found = value.strip()
    return found


def first_key(home: Path) -> tuple[str, bool]:
    """The admin key of a service that was given none: (key, whether it was made just now). Kept in *home*, mode 0600.

    Raises:
        StartupError: the data folder can't be used.
    """
    path = home / FIRST_KEY_FILE
    try:
        with contextlib.suppress(FileNotFoundError):
            if key := path.read_text().strip():
                return key, False
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = api_key()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(key + "\n")
    except OSError as error:
        raise StartupError(f"The data folder {home} can't be used: {error.strerror}.") from None
    return key, True


def admit_first_key(ring: KeyRing, home: Path) -> tuple[str, bool]:
    """Make sure *ring* has the first key, with every scope; returns it as `first_key` does."""
    key, made = first_key(home)
    ring.add(key, ADMIN)
    return key, made


def digest(key: bytes) -> bytes:
    """What a key is known by."""
    return hashlib.sha256(key).digest()
