"""Which backend runs a request: what is known of them, put together."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from headrace.control.destinations import Demand, Destinations, Stage
from headrace.control.strategies import Load, choose
from headrace.control.warmth import Warmth
from headrace.domain.fleet import Node, NodeState
from headrace.domain.quota import Window
from headrace.ports.control import Ask


class Place(msgspec.Struct, frozen=True, gc=False):
    """A slot of a backend, and the stage in which it was found."""

    stage: Stage
    node: Node


class Placement:
    """Finds places, and knows which demands a backend's free slot may go to. It counts the slots that are taken.

    load: what strategies look at. warmth: who is loading. Tell `changed` when backends, routes or slots are others than before.
    """

    def __init__(self, destinations: Destinations, load: Load) -> None:
        self.load = load
        self.warmth = Warmth()
        self._destinations = destinations
        self._served: dict[str, frozenset[str]] = {}
        self._served_of = (-1, -1)
        self._spent: set[Window] = set()

    def find(self, demand: Demand, ask: Ask, avoid: Collection[str] = ()) -> Place | None:
        """A free slot for *ask*, in the first stage that has one and may be used; backends in *avoid* are left out. Grant it."""
        if len(demand.stages) == 1 and demand.stages[0].allowance is None:
            return self._in(demand.stages[0], ask, avoid)
        for stage in self._open(demand):
            if (place := self._in(stage, ask, avoid)) is not None:
                return place
        return None

    def taken(self, place: Place) -> Place:
        """*place* is about to be granted: count it. `find` did so itself."""
        use = place.stage.use
        if use is not None:
            use.executions += 1
        return place

    def at(self, demand: Demand, node: Node) -> Place | None:
        """A slot of *node* for *demand*; None where no stage that may be used has the backend."""
        for stage in self._open(demand):
            if node.id in stage.candidates and node.id not in self.warmth.held(stage.model):
                return Place(stage, node)
        return None

    def is_free(self, node: Node) -> bool:
        """Whether it may run one more."""
        return self.load.busy.get(node.id, 0) < self.load.slots.get(node.id, 0)

    def served_by(self, node: Node) -> frozenset[str]:
        """The names of the demands that may go to *node*: the same set for as long as nothing changes."""
        version = (self._destinations.version, self.warmth.changes)
        if self._served_of != version:
            self._served_of = version
            self._served.clear()
        names = self._served.get(node.id)
        if names is None:
            names = self._served[node.id] = frozenset(self._names(node))
        return names

    def changed(self) -> None:
        """What may be used is no longer what it was."""
        self._served.clear()

    def spend(self, allowance: Window) -> None:
        """There is nothing left of *allowance* until `renew`."""
        self._spent.add(allowance)
        self.changed()

    def renew(self, allowance: Window) -> None:
        """There is something of it again."""
        self._spent.discard(allowance)
        self.changed()

    def explain(self, demand: Demand) -> list[dict[str, object]]:
        """Where requests would go now: the stages in order, whether each may be used, and how its backends stand."""
        open_now = set(map(id, self._open(demand)))
        return [
            {
                "model": stage.model,
                "selector": str(stage.target.selector),
                "strategy": stage.target.strategy.value,
                "used": id(stage) in open_now,
                "backends": [self._standing(node) for node in stage.candidates.nodes],
            }
            for stage in demand.stages
        ]

    def _standing(self, node: Node) -> dict[str, object]:
        slots, busy = self.load.slots.get(node.id, 0), self.load.busy.get(node.id, 0)
        return {"id": node.id, "state": node.state.value, "slots": slots, "busy": busy}

    def _names(self, node: Node) -> Iterator[str]:
        plain = (self._destinations.of(info.id, api=node.api) for info in node.models)
        for demand in (*plain, *self._destinations.special()):
            if self.at(demand, node) is not None:
                yield demand.name

    def _in(self, stage: Stage, ask: Ask, avoid: Collection[str]) -> Place | None:
        held = self.warmth.held(stage.model)
        left_out = {*avoid, *held} if held else avoid
        node = choose(stage.candidates, stage.wish(ask), self.load, stage.cursor, left_out)
        return self.taken(Place(stage, node)) if node is not None else None

    def _open(self, demand: Demand) -> Iterator[Stage]:
        """The stages that may be used: the first, and each fallback where those before it are out of work, or it says that
        busy is enough."""
        out_of_work = True
        for stage in demand.stages:
            if not (out_of_work or stage.target.when_busy):
                return
            spent = stage.allowance is not None and stage.allowance in self._spent
            if not spent:
                yield stage
                out_of_work = out_of_work and not self._works(stage)

    def _works(self, stage: Stage) -> bool:
        slots = self.load.slots
        return any(slots.get(node.id) or node.state is NodeState.LOADING for node in stage.candidates.nodes)
