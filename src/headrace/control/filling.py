"""Giving free slots to those who wait for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.control.destinations import Demand, Destinations
from headrace.control.placement import Place, Placement
from headrace.control.queueing import Call, WaitingRoom
from headrace.control.registry import Registry


@dataclass(eq=False)
class Filler:
    """Takes those out of the queue for whom there is a slot. `grant` and `resume` are what becomes of them.

    resting: backends that said they are full, and until when: others go there one by one, as requests end.
    """

    registry: Registry
    room: WaitingRoom
    placement: Placement
    destinations: Destinations
    grant: Callable[[Call, Demand, Place], None]
    resume: Callable[[Call], None]
    resting: dict[str, float] = field(default_factory=dict)
    _to_fill: dict[str, None] = field(default_factory=dict)
    _filling: bool = False

    def fill(self, node_id: str) -> None:
        """Grant the node's free slots.

        Who is told may come back at once; what that frees is filled by the outermost call, so that nothing nests without end.
        """
        self._to_fill[node_id] = None
        if self._filling:
            return
        self._filling = True
        try:
            while self._to_fill:
                self._fill_one(self._to_fill.popitem()[0])
        finally:
            self._filling = False

    def fill_awaited(self) -> None:
        """Grant every free slot that somebody waits for, wherever it is."""
        for name in self.room.queue.models():
            tickets = self.room.queue.waiting_for(name)
            if tickets:
                ask = tickets[0].call.ask
                for node in self.destinations.of(ask.model, ask.tags, ask.operation.api).nodes:
                    if self.placement.is_free(node):
                        self.fill(node.id)

    def _fill_one(self, node_id: str) -> None:
        while self.room.queue.depth:
            node = self.registry.get(node_id)
            if node is None or not self.placement.is_free(node):
                return
            call = self.room.next(self.placement.served_by(node), node_id)
            if call is None:
                return
            ask = call.ask
            demand = self.destinations.of(ask.model, ask.tags, ask.operation.api)
            place = self.placement.at(demand, node)
            if place is None:  # what it asks for goes elsewhere by now
                self.resume(call)
                return
            self.grant(call, demand, self.placement.taken(place))
            if node_id in self.resting:
                return  # one went for the one that ended
