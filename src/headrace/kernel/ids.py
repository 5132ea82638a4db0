"""Identifiers: random, and long enough that nobody guesses another's."""

from __future__ import annotations

import os
import secrets


def request_id() -> str:
    """A fresh request id: `req_` and 24 hexadecimal digits (96 random bits)."""
    return "req_" + os.urandom(12).hex()


def api_key() -> str:
    """A fresh API key: `sk-hr-` and 43 URL-safe characters (256 random bits)."""
    return "sk-hr-" + secrets.token_urlsafe(32)
