"""Identifiers: in the order of time, and random enough that nobody guesses another's."""

from __future__ import annotations

import os
import secrets
import time


class RandomIds:
    """Makes ids: a prefix and 24 hexadecimal digits, 8 of the time in seconds and 16 random ones (64 bits).

    The time comes first because tables are indexed by ids: new ones that stand together cost a database a third of what it
    costs to put each somewhere else. Both are fetched for many ids at once, because the system call for each would be a good
    part of what a small request costs; so the time is that of the first of them.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._left: list[str] = []

    def __call__(self) -> str:
        """A fresh id."""
        if not self._left:
            start = f"{self._prefix}{int(time.time()):08x}"
            digits = os.urandom(8 * _BATCH).hex()
            self._left = [start + digits[at : at + 16] for at in range(0, 16 * _BATCH, 16)]
        return self._left.pop()


_BATCH = 256
request_id = RandomIds("req_")


def api_key() -> str:
    """A fresh API key: `sk-hr-` and 43 URL-safe characters (256 random bits)."""
    return "sk-hr-" + secrets.token_urlsafe(32)
