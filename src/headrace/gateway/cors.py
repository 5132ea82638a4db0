"""Browsers: whose pages may call the API."""

from __future__ import annotations

import re

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from headrace.gateway.token_lane import Cors

EXPOSED = (
    "x-request-id",
    "x-client-request-id",
    "retry-after",
    "x-should-retry",
    "x-headrace-node",
    "x-headrace-attempts",
    "x-headrace-overhead-ms",
    "x-headrace-queue-position",
    "x-headrace-queued-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)


class OriginPolicy(Cors):
    """Origins that match *pattern* in full may call and read the answers; with an empty one, none."""

    def __init__(self, pattern: str = "") -> None:
        self._pattern = re.compile(pattern) if pattern else None
        self._regex = pattern

    def lines(self, origin: bytes) -> bytes:
        """Header lines for a request with this `Origin`; empty where it isn't allowed or there is none."""
        if not origin or self._pattern is None or not self._pattern.fullmatch(origin.decode("latin-1")):
            return b""
        return b"access-control-allow-origin: %b\r\naccess-control-expose-headers: %b\r\nvary: Origin\r\n" % (
            origin,
            ", ".join(EXPOSED).encode(),
        )

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """*app* with the same policy, preflight requests included."""
        if self._pattern is None:
            return app
        return CORSMiddleware(
            app,
            allow_origin_regex=self._regex,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
