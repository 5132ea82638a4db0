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
from headrace.domain.inference import Api, Timeouts
from headrace.domain.quota import Measure, Period, Window
from headrace.domain.routing import MOST_TAGS, TAG, Route, Strategy, Target, TimeLimits
from headrace.ports.control import Ask

MOST_SPECIAL = 4096
"""Demands with tags or a route that are known at once, besides those that somebody waits for."""
MOST_COUNTED = 2048
"""Routes whose use is counted by itself."""
OTHER_ROUTES = ""
_OPENAI = Api.OPENAI
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


class Use:
    """How often a target of a route was used."""

    __slots__ = ("executions",)

    def __init__(self) -> None:
        self.executions = 0


class Stage:
    """Some backends, and how one of them is chosen.

    model: what they are asked for. allowance: the window that is charged for their use; None without. use: where it is counted that
    requests were sent to them; None where no route is.
    """

    __slots__ = ("_wish", "allowance", "candidates", "cursor", "model", "target", "use")

    def __init__(self, target: Target, model: str, candidates: Candidates, cursor: Cursor) -> None:
        self.model = model
        self.candidates = candidates
        self.cursor = cursor
        self.allowance: Window | None = None
        self.target = target
        self.use: Use | None = None
        self._wish = Wish(target.strategy, model)

    def wish(self, ask: Ask) -> Wish:
        """What *ask* wishes of the choice."""
        wish = self._wish
        if wish.strategy in _BY_AFFINITY:
            return Wish(wish.strategy, wish.model, ask.session, ask.prefix)
        return wish


class Demand:
    """What requests ask of the fleet. Those with one *name* wait in one line, and may all go to the same backends.

    limits_time: whether its route says how long a backend may take.
    """

    __slots__ = ("limits_time", "name", "route", "stages")

    def __init__(self, name: str, stages: tuple[Stage, ...], route: Route | None = None) -> None:
        self.name = name
        self.stages = stages
        self.route = route
        self.limits_time = route is not None and route.time_limits != _NO_LIMITS

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
        if self.route is None or not self.limits_time:
            return None
        limits, own = self.route.time_limits, node.timeouts
        return Timeouts(
            own.connect_s if limits.connect is None else limits.connect,
            own.first_byte_s if limits.first_byte is None else limits.first_byte,
            own.idle_s if limits.idle is None else limits.idle,
            own.total_s if limits.total is None else limits.total,
        )


class Destinations:
    """The demands that are asked for. `version` grows with each demand of a route or tags that is new, and each change.

    uses: how often targets of routes were used since the start, by the route's id and their place: 0 is the route's own, the others
    are its fallbacks. *most_counted* routes are counted by themselves; those that come later together, as `OTHER_ROUTES`.
    """

    def __init__(
        self,
        registry: Registry,
        routes: RouteFinder,
        *,
        queue_size: int,
        most_counted: int = MOST_COUNTED,
    ) -> None:
        self._registry = registry
        self._routes = routes
        self._demands: dict[object, Demand] = {}
        self._before: dict[
            object, Demand
        ] = {}  # those that were forgotten: what is dear to make is taken over
        self._special: dict[str, tuple[str, tuple[str, ...], Api]] = {}
        self._most_special = MOST_SPECIAL + queue_size
        self.uses: dict[tuple[str, int], Use] = {}
        self._counted: set[str] = set()
        self._most_counted = most_counted
        self.version = 0

    def forget(self) -> None:
        """The backends have changed: demands are made anew when they are asked for."""
        self._before.update(self._demands)
        if len(self._before) > self._most_special:
            self._before.clear()
        self._demands.clear()
        self.version += 1

    def forget_routes(self) -> None:
        """The routes have changed."""
        self._special.clear()
        self.forget()
        self._before.clear()

    def of(self, model: str, tags: tuple[str, ...] = (), api: Api = _OPENAI) -> Demand:
        """What is asked of the fleet with *model* and *tags*, by operations of *api*."""
        key: object = (model, tags) if tags else model
        if api is not _OPENAI:
            key = (model, tags, api)
        return self._demands.get(key) or self._make(key, model, tags, api)

    def by_any(self, model: str, tags: tuple[str, ...]) -> tuple[str, tuple[str, ...], Demand]:
        """*model* and *tags* as `resolved` has them, and what is asked with them: by OpenAI's API, or else by another that backends
        for it speak."""
        for api in Api:
            name, words = self.resolved(model, tags, api)
            if (demand := self.of(name, words, api)).known:
                return name, words, demand
        model, tags = self.resolved(model, tags)
        return model, tags, self.of(model, tags)

    def known_otherwise(self, model: str, tags: tuple[str, ...], api: Api) -> bool:
        """Whether there are backends for it, but all of them speak another API than *api*."""
        others = (other for other in Api if other is not api)
        return not self.of(model, tags, api).known and any(
            self.of(model, tags, other).known for other in others
        )

    def resolved(self, model: str, tags: tuple[str, ...], api: Api = _OPENAI) -> tuple[str, tuple[str, ...]]:
        """*model* without the tags that it ends with (`llama@gpu+eu`), and all tags, unless a model of that name is there."""
        name, at, suffix = model.rpartition("@")
        words = tuple(suffix.split("+"))
        if not (at and name) or self.of(model, tags, api).known or not all(map(TAG.fullmatch, words)):
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

    def _make(self, key: object, model: str, tags: tuple[str, ...], api: Api) -> Demand:
        route = self._routes.route_for(model)
        before = self._before.pop(key, None)
        stages = tuple(
            self._stage(target, model, tags, api, before.stages[number] if before else None)
            for number, target in enumerate(route.targets if route else (_UNROUTED,))
        )
        for number, stage in enumerate(stages):
            stage.allowance = _allowance(route, number)
        demand = Demand(_name(route, model, tags, api), stages, route)
        if demand.known:  # else anybody could fill the memory with names
            if route is not None:
                self._count(route.id, stages)
            self._demands[key] = demand
            if route is not None or tags:
                self._remember(demand.name, (model, tags, api))
        return demand

    def _stage(
        self, target: Target, model: str, tags: tuple[str, ...], api: Api, before: Stage | None
    ) -> Stage:
        wanted = target.model or model
        nodes = [
            node
            for node in self._registry.holders(wanted)
            if node.api is api and target.selector.selects(node) and node.tags.issuperset(tags)
        ]
        candidates = Candidates(nodes, wanted, target.weights, before.candidates if before else None)
        return Stage(target, wanted, candidates, before.cursor if before else Cursor())

    def _count(self, route_id: str, stages: tuple[Stage, ...]) -> None:
        if route_id not in self._counted and len(self._counted) >= self._most_counted:
            route_id = OTHER_ROUTES
        self._counted.add(route_id)
        for number, stage in enumerate(stages):
            stage.use = self.uses.setdefault((route_id, number), Use())

    def _remember(self, name: str, asked: tuple[str, tuple[str, ...], Api]) -> None:
        if name in self._special:
            return
        if len(self._special) >= self._most_special:
            del self._special[next(iter(self._special))]
        self._special[name] = asked
        self.version += 1


def _name(route: Route | None, model: str, tags: tuple[str, ...], api: Api) -> str:
    """Requests that may go to the same backends have the same: the models of a pattern that all become one are one."""
    if route is not None:
        same = all(target.model for target in route.targets)
        model = f"route {route.id}" if same else f"{model} by {route.id}"
    if api is not _OPENAI:
        model = f"{model} for {api.value}"
    return f"{model} on {'+'.join(sorted(tags))}" if tags else model


def _allowance(route: Route | None, number: int) -> Window | None:
    """What a target may use in a day."""
    if route is None or not (limit := route.targets[number].tokens_per_day):
        return None
    return Window(f"route:{route.id}:{number}", Measure.TOKENS, Period.DAY, limit)
