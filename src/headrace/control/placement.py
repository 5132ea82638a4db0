"""Which node runs a request: pure decisions over what is known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Self

from headrace.domain.fleet import Node, NodeState
from headrace.kernel.errors import Internal, RequestError, Unavailable

RETRY_UNREACHABLE_S = 5.0
"""What a client is told to wait for a backend that is down: about the time of the next check."""


class Holders(tuple[Node, ...]):  # noqa: SLOT001 - a tuple of any length has no room for slots
    """The nodes that hold one model, each once. Who comes after a node is found without looking through them."""

    _positions: dict[str, int]

    def __new__(cls, nodes: Iterable[Node] = ()) -> Self:
        """Of nodes with different ids, in their order."""
        holders = super().__new__(cls, nodes)
        holders._positions = {node.id: position for position, node in enumerate(holders)}
        return holders

    def after(self, node_id: str | None) -> int:
        """The position behind that node's; 0 when it isn't one of them. May be one too far: go round."""
        return self._positions.get(node_id, -1) + 1 if node_id is not None else 0

    def with_node(self, node: Node) -> Holders:
        """The same with *node* in the place of the one with its id, or as the last."""
        position = self._positions.get(node.id, len(self))
        return Holders((*self[:position], node, *self[position + 1 :]))


def choose(
    holders: Holders, busy: Mapping[str, int], last: str | None, avoid: Collection[str]
) -> Node | None:
    """Round-robin: the first node after *last* that is ready, has a free slot and isn't in *avoid*; None if there is none.

    *busy*: node id → requests that it runs now. *last*: id of the node that was chosen before for this model. How long it
    takes depends on the nodes that are passed over, not on how many there are.
    """
    start = holders.after(last)
    for position in range(start - len(holders), start):  # the negative ones are those from `start` to the end
        node = holders[position]
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
