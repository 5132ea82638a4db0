"""Identifiers: random, and long enough that nobody guesses another's."""

from __future__ import annotations

import os
import secrets


class RandomIds:
    """Makes ids: a prefix and 24 hexadecimal digits (96 random bits). Randomness is fetched for many at once, because the
    system call for each would be a good part of what a small request costs.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._left: list[str] = []

    def __call__(self) -> str:
        """A fresh id."""
        if not self._left:
            digits = os.urandom(12 * _BATCH).hex()
            self._left = [self._prefix + digits[start : start + 24] for start in range(0, 24 * _BATCH, 24)]
        return self._left.pop()


_BATCH = 256
request_id = RandomIds("req_")


def api_key() -> str:
    """A fresh API key: `sk-hr-` and 43 URL-safe characters (256 random bits)."""
    return "sk-hr-" + secrets.token_urlsafe(32)
