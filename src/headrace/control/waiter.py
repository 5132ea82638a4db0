"""One who waits for a place, as the queue sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.domain.inference import Priority


@dataclass(slots=True, eq=False, kw_only=True)
class Waiter:
    """One who waits. What it asks for doesn't change while it waits.

    key: who pays for it; shares are between keys. tokens: what it is expected to cost; at least 1 is counted.
    weight: its key gets so many times the tokens of a key of weight 1. since: when it began to wait, on the owner's clock.
    avoid: ids of nodes that it isn't sent to; heeded for those that were put back.
    number: given by the queue, in the order of coming; 0 outside it. turn: which grant of its key it would be, were it alone.
    """

    key: str
    model: str
    tokens: int
    priority: Priority = Priority.NORMAL
    weight: float = 1.0
    since: float = 0.0
    avoid: frozenset[str] = frozenset()
    number: int = field(default=0, init=False)
    turn: int = field(default=0, init=False)
    put_back: bool = field(default=False, init=False)
