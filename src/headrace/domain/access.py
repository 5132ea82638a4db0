"""Who asks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from headrace.domain.inference import Priority
from headrace.domain.quota import Window


class Scope(StrEnum):
    """What a key may do."""

    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a request. `id` is stable and safe to log; it is never the key itself.

    user: who is charged. models: patterns of the models that it may use; empty: all. entry: windows that it is held to when it
    asks (requests, concurrency). tokens: those it is held to when it gets its slot. default_max_tokens: for its requests that
    set no limit; None: the backend's own. expires_at: seconds since the epoch; None: never.
    """

    id: str
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})
    user: str = ""
    models: tuple[str, ...] = ()
    entry: tuple[Window, ...] = ()
    tokens: tuple[Window, ...] = ()
    default_max_tokens: int | None = None
    priority: Priority = Priority.NORMAL
    expires_at: float | None = None

    def may(self, scope: Scope) -> bool:
        """Whether this principal has *scope*; admin includes all others."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def may_use(self, model: str) -> bool:
        """Whether it may use *model*."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)
