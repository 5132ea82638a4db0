"""Looking after those whom somebody waits for: they are asked sooner how they are, and tried sooner."""

from __future__ import annotations

from collections.abc import Callable

from headrace.control.destinations import Demand, Destinations
from headrace.control.health import Health
from headrace.control.placement import Placement
from headrace.control.queueing import WaitingRoom
from headrace.domain.fleet import NodeState
from headrace.kernel.clock import Clock, Timer

FIRST_LOOK_S = 0.1
"""Who waits for less than this waits for a slot that is just becoming free."""
LOOK_S = 1.0


class Lookout:
    """While anybody waits, looks once a second at those backends that could serve them and don't.

    on_awaited: told the id of each that isn't ready, or loads a model that is waited for: to ask it how it is. One that is left
    alone is tried sooner. Costs nothing while nobody waits, and a look at the waiting demands' backends each second else.
    """

    def __init__(
        self,
        clock: Clock,
        room: WaitingRoom,
        destinations: Destinations,
        placement: Placement,
        health: Health,
    ) -> None:
        self.on_awaited: Callable[[str], object] = lambda _node_id: None
        self._clock = clock
        self._room = room
        self._destinations = destinations
        self._placement = placement
        self._health = health
        self._timer: Timer | None = None

    def awaited(self, demand: Demand) -> None:
        """Somebody begins to wait for *demand*."""
        self._destinations.awaited(demand)
        if self._timer is None:
            self._timer = self._clock.call_later(FIRST_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._room.queue.depth:
            return
        self._timer = self._clock.call_later(LOOK_S, self._look)
        for ask in self._room.asks():
            for stage in self._destinations.of(ask.model, ask.tags, ask.operation.api).stages:
                held = self._placement.warmth.held(stage.model)
                for node in stage.candidates.nodes:
                    if node.state is not NodeState.READY or node.id in held:
                        self.on_awaited(node.id)
                    else:
                        self._health.awaited(node.id)
