"""Where requests may go: a model and tags, taken through the routes to backends, stage by stage.

A demand is what a request asks of the fleet. Its first stage is where it goes; the others are its fallbacks, in order. Demands are
made when they are first asked for, and made anew when the routes or the backends change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from headrace.control.registry import Registry
from headrace.control.strategies import Candidates, Cursor, Wish
from headrace.domain.fleet import Node, NodeState
from headrace.domain.inference import Timeouts
from headrace.domain.quota import Measure, Period, Window
from headrace.domain.routing import MOST_TAGS, TAG, Route, Strategy, Target, TimeLimits
from headrace.ports.control import Ask

MOST_SPECIAL = 4096
"""Demands with tags or a route that are known at once, besides those that somebody waits for."""
_BY_AFFINITY = (Strategy.SESSION, Strategy.PREFIX)
_NO_LIMITS = TimeLimits()
_UNROUTED = Target(strategy=Strategy.ROUND_ROBIN)


class RouteFinder(Protocol):
    """Whoever knows the routes."""

    def route_for(self, model: str) -> Route | None:
        """The route that counts for *model*; None where none is about it."""

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call *listener* after every change of the routes."""


class NoRoutes:
    """The routes of one who has none."""

    def route_for(self, model: str) -> Route | None:
        """None."""

    def on_change(self, listener: Callable[[], None]) -> None:
        """Nothing will change."""


class Stage:
    """Some backends, and how one of them is chosen.

    model: what they are asked for. allowance: the window that is charged for their use; None without.
    """

    __slots__ = ("_wish", "allowance", "candidates", "cursor", "model", "when_busy")

    def __init__(self, target: Target, model: str, candidates: Candidates, allowance: Window | None) -> None:
        self.model = model
        self.candidates = candidates
        self.cursor = Cursor()
        self.allowance = allowance
        self.when_busy = target.when_busy
        self._wish = Wish(target.strategy, model)

    def wish(self, ask: Ask) -> Wish:
        """What *ask* wishes of the choice."""
        wish = self._wish
        if wish.strategy in _BY_AFFINITY:
            return Wish(wish.strategy, wish.model, ask.session, ask.prefix)
        return wish


class Demand:
    """What requests ask of the fleet. Those with one *name* wait in one line, and may all go to the same backends."""

    __slots__ = ("name", "route", "stages")

    def __init__(self, name: str, stages: tuple[Stage, ...], route: Route | None = None) -> None:
        self.name = name
        self.stages = stages
        self.route = route

    @property
    def known(self) -> bool:
        """Whether any backend, in whatever state, is one of its destinations."""
        return any(stage.candidates.nodes for stage in self.stages)

    @property
    def nodes(self) -> list[Node]:
        """All backends that it may go to, each once, in the order of the stages."""
        return list({node.id: node for stage in self.stages for node in stage.candidates.nodes}.values())

    @property
    def waits_for(self) -> list[Node]:
        """Those of them that may take requests, now or soon."""
        return [node for node in self.nodes if node.state in (NodeState.READY, NodeState.LOADING)]

    def timeouts(self, node: Node) -> Timeouts | None:
        """How long *node* may take, where the route says something about it; None: what its own settings say."""
        if self.route is None or self.route.time_limits == _NO_LIMITS:
            return None
        limits, own = self.route.time_limits, node.timeouts
        return Timeouts(
            own.connect_s if limits.connect is None else limits.connect,
            own.first_byte_s if limits.first_byte is None else limits.first_byte,
            own.idle_s if limits.idle is None else limits.idle,
            own.total_s if limits.total is None else limits.total,
        )


class Destinations:
    """The demands that are asked for. `version` grows with each demand of a route or tags that is new, and each change."""

    def __init__(self, registry: Registry, routes: RouteFinder, *, queue_size: int) -> None:
        self._registry = registry
        self._routes = routes
        self._demands: dict[object, Demand] = {}
        self._special: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._most_special = MOST_SPECIAL + queue_size
        self.version = 0

    def forget(self) -> None:
        """The backends have changed: demands are made anew when they are asked for."""
        self._demands.clear()
        self.version += 1

    def forget_routes(self) -> None:
        """The routes have changed."""
        self._special.clear()
        self.forget()

    def of(self, model: str, tags: tuple[str, ...] = ()) -> Demand:
        """What is asked of the fleet with *model* and *tags*."""
        key = (model, tags) if tags else model
        return self._demands.get(key) or self._make(key, model, tags)

    def resolved(self, model: str, tags: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """*model* without the tags that it ends with (`llama@gpu+eu`), and all tags, unless a model of that name is there."""
        name, at, suffix = model.rpartition("@")
        words = tuple(suffix.split("+"))
        if not (at and name) or self.of(model, tags).known or not all(map(TAG.fullmatch, words)):
            return model, tags
        return name, tuple(dict.fromkeys((*tags, *words)))[:MOST_TAGS]

    def awaited(self, demand: Demand) -> None:
        """Somebody waits for *demand*: of those with a route or tags it is the last to be forgotten."""
        asked = self._special.pop(demand.name, None)
        if asked is not None:
            self._special[demand.name] = asked

    def special(self) -> Iterable[Demand]:
        """The demands with a route or tags that were asked for."""
        return [self.of(*asked) for asked in list(self._special.values())]

    def _make(self, key: object, model: str, tags: tuple[str, ...]) -> Demand:
        route = self._routes.route_for(model)
        stages = tuple(
            self._stage(target, model, tags, _allowance(route, number))
            for number, target in enumerate(route.targets if route else (_UNROUTED,))
        )
        demand = Demand(_name(route, model, tags), stages, route)
        if demand.known:  # else anybody could fill the memory with names
            self._demands[key] = demand
            if route is not None or tags:
                self._remember(demand.name, model, tags)
        return demand

    def _stage(self, target: Target, model: str, tags: tuple[str, ...], allowance: Window | None) -> Stage:
        wanted = target.model or model
        nodes = [
            node
            for node in self._registry.holders(wanted)
            if target.selector.selects(node) and node.tags.issuperset(tags)
        ]
        return Stage(target, wanted, Candidates(nodes, wanted, target.weights), allowance)

    def _remember(self, name: str, model: str, tags: tuple[str, ...]) -> None:
        if name in self._special:
            return
        if len(self._special) >= self._most_special:
            del self._special[next(iter(self._special))]
        self._special[name] = (model, tags)
        self.version += 1


def _name(route: Route | None, model: str, tags: tuple[str, ...]) -> str:
    """Requests that may go to the same backends have the same: the models of a pattern that all become one are one."""
    if route is not None:
        same = all(target.model for target in route.targets)
        model = f"route {route.id}" if same else f"{model} by {route.id}"
    return f"{model} on {'+'.join(sorted(tags))}" if tags else model


def _allowance(route: Route | None, number: int) -> Window | None:
    """What a target may use in a day."""
    if route is None or not (limit := route.targets[number].tokens_per_day):
        return None
    return Window(f"route:{route.id}:{number}", Measure.TOKENS, Period.DAY, limit)
