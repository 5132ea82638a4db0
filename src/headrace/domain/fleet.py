"""Backends and what is known of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from headrace.domain.inference import Api, Timeouts


class NodeState(StrEnum):
    """Where a backend stands."""

    LOADING = "loading"  # it will take requests soon: they wait for it
    READY = "ready"
    DOWN = "down"  # it can't be reached; it is tried again
    FAILED = "failed"  # it can't work until someone mends it


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as `/v1/models` shows it. `created`: UTC epoch seconds."""

    id: str
    created: int = 0
    owned_by: str = "headrace"


@dataclass(frozen=True, slots=True)
class Node:
    """One backend as placement sees it (C12).

    capacity: requests it takes at once. weight: how much of the work it gets where that is divided by weight. loaded: those of
    its models that are in memory; None where it doesn't say, and nothing is made of it. timeouts: how long it may take. since: when it came to its state,
    seconds since the epoch. kind: what it speaks. api: of which family of operations it is asked those.
    """

    id: str
    connector: str
    models: tuple[ModelInfo, ...] = ()
    capacity: int = 64
    tags: frozenset[str] = field(default=frozenset())
    state: NodeState = NodeState.LOADING
    detail: str = ""
    ready_in_s: float | None = None
    weight: float = 1.0
    loaded: frozenset[str] | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    since: float = 0.0
    kind: str = "openai"
    api: Api = Api.OPENAI

    def is_cold(self, model: str) -> bool:
        """Whether it would have to load the model first."""
        return self.loaded is not None and model not in self.loaded

    def has(self, model: str) -> bool:
        """Whether it offers the model of exactly this name."""
        return any(info.id == model for info in self.models)


def near_names(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Those of *known* that look like *name*, best first: for an error that helps."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    return [
        by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=0.5)
    ]
