"""How limits stand, as it is told to those who are held to them."""

from __future__ import annotations

import msgspec


class Budget(msgspec.Struct, frozen=True, gc=False):
    """How a limit stands: of what (`requests`, `tokens`, `concurrency`), how much, what is left, seconds until it is renewed."""

    measure: str
    limit: int
    remaining: int
    resets_in_s: float
