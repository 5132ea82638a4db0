"""Who may come in: keys, looked up by their digest."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from headrace.domain.access import Principal, Scope
from headrace.kernel.errors import StartupError, Unauthenticated
from headrace.kernel.ids import api_key

FIRST_KEY_FILE = "first-key"
_ADMIN = frozenset({Scope.INFERENCE, Scope.ADMIN})


class KeyRing:
    """The keys that open this service.

    A key is looked up by its SHA-256, so neither the time that takes nor the answer tells how much of a guess was right.
    """

    def __init__(self) -> None:
        self._principals: dict[bytes, Principal] = {}

    def add(self, key: str, scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})) -> None:
        """Let *key* in with *scopes*."""
        digest = _digest(key.encode())
        self._principals[digest] = Principal(id=f"key_{digest.hex()[:12]}", scopes=scopes)

    def authenticate(self, key: bytes) -> Principal:
        """Whose *key* it is.

        Raises:
            Unauthenticated: nobody's.
        """
        principal = self._principals.get(_digest(key)) if key else None
        if principal is None:
            raise Unauthenticated("Invalid API key." if key else "You didn't provide an API key.")
        return principal


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
    ring.add(key, _ADMIN)
    return key, made


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
