"""What backends there are, and where each stands (C12, C13). Memory is the truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from headrace.domain.fleet import ModelInfo, Node, NodeState


class Registry:
    """The nodes, by id. One writer each: whoever put a node here reports on it; placement only reads.

    `on_change` is called with the node's id after each change. *now*: seconds since the epoch, for when a node came to its state.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._nodes: dict[str, Node] = {}
        self._numbers: dict[str, int] = {}
        self._number = 0
        self._by_model: dict[str, dict[str, Node]] = {}
        self._listeners: list[Callable[[str], None]] = []

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call *listener* with the id of every node that is put, changed or removed from now on."""
        self._listeners.append(listener)

    def upsert(self, node: Node) -> None:
        """Put *node* here, in the place of the one with its id."""
        before = self._nodes.get(node.id)
        same_state = before is not None and before.state is node.state
        node = replace(node, since=before.since if before is not None and same_state else self._now())
        if before == node:
            return
        self._nodes[node.id] = node
        if before is None:
            self._numbers[node.id] = self._number = self._number + 1
        for info in node.models:
            self._by_model.setdefault(info.id, {})[node.id] = node
        if before is not None and before.models != node.models:
            self._drop(before, {info.id for info in node.models})
        self._tell(node.id)

    def update(
        self,
        node_id: str,
        state: NodeState,
        detail: str = "",
        *,
        models: Iterable[ModelInfo] | None = None,
        ready_in_s: float | None = None,
    ) -> None:
        """Report where the node stands; *models* None leaves those it has. Nothing happens when it was removed."""
        node = self._nodes.get(node_id)
        if node is not None:
            kept = node.models if models is None else tuple(models)
            self.upsert(replace(node, state=state, detail=detail, models=kept, ready_in_s=ready_in_s))

    def remove(self, node_id: str) -> None:
        """Forget the node; nothing happens when it isn't there."""
        node = self._nodes.pop(node_id, None)
        if node is not None:
            del self._numbers[node_id]
            self._drop(node, set())
            self._tell(node_id)

    def get(self, node_id: str) -> Node | None:
        """The node, or None."""
        return self._nodes.get(node_id)

    def nodes(self) -> list[Node]:
        """All nodes, in the order in which they came."""
        return list(self._nodes.values())

    def holders(self, model: str) -> list[Node]:
        """The nodes that have *model*, in whatever state, in the order in which they came; empty when nobody has."""
        return sorted(self._by_model.get(model, _NOBODY).values(), key=lambda node: self._numbers[node.id])

    def models(self) -> list[ModelInfo]:
        """Every model that some node has, each once, by name. A failed node's models are listed too."""
        first: dict[str, ModelInfo] = {}
        for node in self._nodes.values():
            for info in node.models:
                first.setdefault(info.id, info)
        return [first[name] for name in sorted(first)]

    def _drop(self, node: Node, kept: set[str]) -> None:
        """*node* no longer holds its models, but for those *kept*."""
        for info in node.models:
            holders = self._by_model.get(info.id)
            if info.id not in kept and holders is not None:
                holders.pop(node.id, None)
                if not holders:
                    del self._by_model[info.id]

    def _tell(self, node_id: str) -> None:
        for listener in self._listeners:
            listener(node_id)


_NOBODY: dict[str, Node] = {}
