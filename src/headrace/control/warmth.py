"""Models that a backend has to load first: one request goes there and loads it, the others wait for what becomes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from typing import Final

from headrace.domain.fleet import Node

_NONE: Final[Set[str]] = frozenset()


class Warmth:
    """Which backends are left alone for a model, because one request is loading it there, or they said that they are.

    What a backend holds is known from its report (`Node.loaded`), and earlier from what it answers. `changes` grows with every
    change of who is left alone.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._held: dict[
            str, dict[str, str]
        ] = {}  # model -> node -> the request that loads it; empty: told so
        self._warm: dict[str, set[str]] = {}  # node -> models that answered since its last report
        self._cold: dict[str, set[str]] = {}  # node -> models that it said to be loading

    def held(self, model: str) -> Set[str]:
        """The backends that *model* isn't asked of now."""
        held = self._held.get(model)
        return held.keys() if held else _NONE

    def loads(self) -> Counter[str]:
        """For each backend, of how many models it isn't asked now, since it loads them. Looks through all of them."""
        return Counter(node_id for held in self._held.values() for node_id in held)

    def matters(self, node: Node) -> bool:
        """Whether *node* may have to load anything, as far as is known."""
        return node.loaded is not None or bool(self._cold)

    def begin(self, node: Node, model: str, request_id: str) -> bool:
        """*request_id* goes to *node*. Whether it is the one that loads the model there: tell `warmed` or `ended`."""
        if model not in self._cold.get(node.id, _NONE) and (
            not node.is_cold(model) or model in self._warm.get(node.id, _NONE)
        ):
            return False
        self._hold(node.id, model, request_id)
        return True

    def warmed(self, node_id: str, model: str) -> None:
        """The backend has begun to answer: it holds the model."""
        self._warm.setdefault(node_id, set()).add(model)
        self._cold.get(node_id, set()).discard(model)
        self._release(node_id, model)

    def loading(self, node_id: str, model: str) -> None:
        """The backend says that it is loading: nobody goes there until `look_again`, and then one."""
        self._cold.setdefault(node_id, set()).add(model)
        self._warm.get(node_id, set()).discard(model)
        self._hold(node_id, model, "")

    def look_again(self, node_id: str, model: str) -> None:
        """The time that it named is over."""
        if self._held.get(model, {}).get(node_id) == "":
            self._release(node_id, model)

    def ended(self, node_id: str, model: str, request_id: str) -> None:
        """The request is over that was to load the model; another may try."""
        if self._held.get(model, {}).get(node_id) == request_id:
            self._release(node_id, model)

    def reported(self, node_id: str, node: Node | None) -> None:
        """A backend has changed, or is gone (None): what it says counts."""
        self._warm.pop(node_id, None)
        if node is None:
            self._cold.pop(node_id, None)
            for model in [model for model, nodes in self._held.items() if node_id in nodes]:
                self._release(node_id, model)
        elif node.loaded is not None:
            self._cold.pop(node_id, None)
            for model in node.loaded:
                self.look_again(node_id, model)

    def _hold(self, node_id: str, model: str, request_id: str) -> None:
        self._held.setdefault(model, {})[node_id] = request_id
        self.changes += 1

    def _release(self, node_id: str, model: str) -> None:
        held = self._held.get(model)
        if held is not None and held.pop(node_id, None) is not None:
            self.changes += 1
            if not held:
                del self._held[model]
