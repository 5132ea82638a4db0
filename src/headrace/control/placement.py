"""Which node runs a request: pure decisions over what is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from headrace.domain.fleet import Node, NodeState
from headrace.kernel.errors import Internal, RequestError, Unavailable

RETRY_UNREACHABLE_S = 5.0
"""What a client is told to wait for a backend that is down: about the time of the next check."""


def choose(
    holders: Sequence[Node], busy: Mapping[str, int], last: str | None, avoid: Collection[str]
) -> Node | None:
    """Round-robin: the first node after *last* that is ready, has a free slot and isn't in *avoid*; None if there is none.

    *busy*: node id → requests that it runs now. *last*: id of the node that was chosen before for this model.
    """
    start = 0
    if last is not None and len(holders) > 1:
        start = next((i + 1 for i, node in enumerate(holders) if node.id == last), 0)
    for node in (*holders[start:], *holders[:start]) if start else holders:
        if node.state is NodeState.READY and node.id not in avoid and busy.get(node.id, 0) < node.capacity:
            return node
    return None


def hopeless(holders: Sequence[Node], model: str) -> RequestError | None:
    """Why waiting for *model* is pointless, or None while one of its *holders* works or is about to."""
    for node in holders:
        if node.state is NodeState.READY or node.state is NodeState.LOADING:
            return None
    down = [node for node in holders if node.state is NodeState.DOWN]
    if not down:
        return Internal(f"The model {model!r} can't be served: {holders[0].detail or 'its engine failed.'}")
    names = ", ".join(node.id for node in down)
    return Unavailable(
        f"No healthy backend for the model {model!r}: {names} can't be reached.",
        retry_after_s=RETRY_UNREACHABLE_S,
        code="no_healthy_backend",
    )


def expected_wait(holders: Sequence[Node]) -> float | None:
    """Seconds until one of *holders* is expected to be loaded; None when nobody knows."""
    waits = [
        node.ready_in_s for node in holders if node.state is NodeState.LOADING and node.ready_in_s is not None
    ]
    return min(waits, default=None)
