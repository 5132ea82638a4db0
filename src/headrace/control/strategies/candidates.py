"""The backends that one of is to be chosen from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Final, NamedTuple

from headrace.control.strategies.load import Load
from headrace.control.strategies.ring import Ring, shape
from headrace.domain.fleet import Node

_UNWEIGHTED: Final[Mapping[str, float]] = {}
_MOST_WEIGHT: Final = 1e12
"""Above it, a sum of many might be no number."""


class Seating(NamedTuple):
    """Where candidates sit in the sets of a load, as long as its version is this one.

    everyone, warm: sets of seats. nodes: by seat. bits: by node id.
    """

    load: Load
    version: int
    everyone: int
    warm: int
    nodes: dict[int, Node]
    bits: dict[str, int]


class Candidates:
    """Nodes with different ids, for one model. What they are never changes; make others when a node does.

    weights: node id → weight, where it isn't the node's own. before: those that these take the place of; what is dear to make and
    still the same is taken over from them.
    What only some strategies need is made when one asks for it.
    """

    __slots__ = (
        "_before", "_by_id", "_cumulative", "_given_weights", "_rings", "_seating", "_weights", "model", "nodes"
    )  # fmt: skip

    def __init__(
        self,
        nodes: Iterable[Node],
        model: str,
        weights: Mapping[str, float] = _UNWEIGHTED,
        before: Candidates | None = None,
    ) -> None:
        self.nodes = tuple(nodes)
        self.model = model
        self._by_id = {node.id: node for node in self.nodes}
        self._given_weights = weights
        self._weights: dict[str, float] | None = None
        self._cumulative: list[float] | None = None
        self._seating: Seating | None = None
        self._rings: dict[bool, Ring] = {}
        self._before = before.rings if before else {}

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._by_id

    @property
    def weights(self) -> Mapping[str, float]:
        """Node id → its share of the work, where that is divided by weight."""
        if self._weights is None:
            given = self._given_weights
            self._weights = {
                node.id: min(max(given.get(node.id, node.weight), 0.0), _MOST_WEIGHT) for node in self.nodes
            }
        return self._weights

    @property
    def cumulative(self) -> list[float]:
        """The sums of the weights up to each node, that one included."""
        if self._cumulative is None:
            self._cumulative = list(accumulate(self.weights.values()))
        return self._cumulative

    @property
    def rings(self) -> dict[bool, Ring]:
        """Those that were made so far, here or before: of those only that hold the model (True), or of all."""
        return {**self._before, **self._rings}

    def ring(self, *, warm: bool) -> Ring:
        """What keys belong to: of all, or of those only that hold the model."""
        found = self._rings.get(warm)
        return found if found is not None else self._make_ring(warm)

    def seated(self, load: Load) -> Seating:
        """Where they sit in the sets of *load*."""
        seating = self._seating
        if seating is None or seating.version != load.version or seating.load is not load:
            seating = self._seating = self._seat(load)
        return seating

    def _make_ring(self, warm: bool) -> Ring:
        of = shape(node for node in self.nodes if not (warm and node.is_cold(self.model)))
        known = (*self._rings.values(), *self._before.values())
        ring = next((one for one in known if one.of == of), None)
        self._rings[warm] = ring if ring is not None else Ring(of)
        return self._rings[warm]

    def _seat(self, load: Load) -> Seating:
        nodes = {seat: node for node in self.nodes if (seat := load.seats.get(node.id)) is not None}
        bits = {node.id: 1 << seat for seat, node in nodes.items()}
        everyone = sum(bits.values())
        warm = sum(bits[node.id] for node in nodes.values() if not node.is_cold(self.model))
        return Seating(load, load.version, everyone, warm, nodes, bits)
