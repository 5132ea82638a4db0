"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a key may do."""

    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a request. `id` is stable and safe to log; it is never the key itself."""

    id: str
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})

    def may(self, scope: Scope) -> bool:
        """Whether this principal has *scope*; admin includes all others."""
        return scope in self.scopes or Scope.ADMIN in self.scopes
