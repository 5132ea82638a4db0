"""Routes of the settings and of the database: what is changed is kept, and heeded at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from typing import Any

import structlog
from msgspec.structs import replace

from headrace.control.registry import Registry
from headrace.domain.routing import Route, Selector, Target, id_for, is_pattern, precedence
from headrace.kernel.errors import InvalidRequest, NotFound, RequestError
from headrace.ports.records import Routes

log = structlog.get_logger(__name__)

FOLLOW_S = 0.5
"""How often the database is asked whether another process changed something."""
MOST_ROUTES = 1000
"""Routes that the database may hold: a name that is new is compared with each."""
MOST_NAMES = 10_000
"""Names of models whose route is remembered: clients can send any."""
_LONGEST_NAME = 512


class RouteTable:
    """Routes, ready to be asked. Never changed."""

    def __init__(self, routes: Iterable[Route]) -> None:
        ranked = sorted(routes, key=precedence, reverse=True)
        self._exact: dict[str, Route] = {}
        for route in ranked:
            if not is_pattern(route.model):
                self._exact.setdefault(route.model, route)
        self._patterns = [
            (route, re.compile(translate(route.model)).match) for route in ranked if is_pattern(route.model)
        ]
        self.aliases = {
            model: route.targets[0].model
            for model, route in sorted(self._exact.items())
            if route.is_alias and self.find(model) is route
        }

    def find(self, model: str) -> Route | None:
        """The route that counts for *model*, as `best_route` has it; None where none is about it."""
        exact = self._exact.get(model)
        for route, matches in self._patterns:
            if exact is not None and exact.priority >= route.priority:
                return exact
            if matches(model):
                return route
        return exact


class RouteBook:
    """The routes in force: *static* ones, of the settings, and those that are kept in the database.

    A kept one whose id a static one has is not heeded. What this object changes, it changes one after the other.
    """

    def __init__(self, kept: Routes, static: Sequence[Route] = ()) -> None:
        self._kept = kept
        self._static = {route.id: route for route in static}
        self._stored: dict[str, Route] = {}
        self._generation = -1
        self._changing = asyncio.Lock()
        self._reading = asyncio.Lock()  # or one that was slow could put back what a later one had taken out
        self._listeners: list[Callable[[], None]] = []
        self._table = RouteTable(static)
        self._found: dict[str, Route | None] = {}

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call *listener* after each change of the routes in force from now on."""
        self._listeners.append(listener)

    def route_for(self, model: str) -> Route | None:
        """The route that counts for *model*; None where none is about it. A look into a dict, but for names that are new."""
        try:
            return self._found[model]
        except KeyError:
            return self._find(model)

    @property
    def in_force(self) -> list[Route]:
        """All routes that count, as this process knows them."""
        return list((self._stored | self._static).values())

    def aliases(self) -> dict[str, str]:
        """The names that routes give to models, each with the model that its first target is asked for."""
        return self._table.aliases

    async def refresh(self) -> None:
        """Read those of the database anew, and heed them.

        Raises:
            Unavailable: the database can't be asked, or holds what can't be read; what was known stays in force.
        """
        async with self._reading:
            generation = await self._kept.generation()
            stored = {route.id: route for route in await self._kept.routes()}
            self._generation = generation
            if stored != self._stored:
                self._heed(stored)

    async def follow(self) -> None:
        """Heed what other processes change, for ever."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                if await self._kept.generation() != self._generation:
                    await self.refresh()
            except RequestError as error:
                log.warning("routes can't be read anew", action="routes.stale", reason=error.message)

    async def routes(self) -> list[Route]:
        """All that are in force, by id.

        Raises:
            Unavailable: as `refresh`.
        """
        await self.refresh()
        return [route for _, route in sorted((self._stored | self._static).items())]

    async def route(self, route_id: str) -> Route:
        """One of them.

        Raises:
            NotFound: there is none of that id.
            Unavailable: as `refresh`.
        """
        await self.refresh()
        return self._known(route_id)

    async def create(self, route: Route) -> Route:
        """Add a route, effective at once. Where it has no id, it gets one that is made of its pattern.

        Raises:
            InvalidRequest: there is one of that id already, or there are too many; nothing was changed.
            Unavailable: as `refresh`.
        """
        async with self._changing:
            await self.refresh()
            known = self._stored | self._static
            if route.id in known:
                raise InvalidRequest(
                    f"There is a route {route.id!r} already.", param="id", code="already_exists"
                )
            return await self._save(route if route.id else replace(route, id=id_for(route.model, known)))

    async def put(self, route: Route) -> bool:
        """Add a route, or replace the one with its id, effective at once; whether it was added.

        Raises:
            InvalidRequest: a static one has its id, or there are too many; nothing was changed.
            Unavailable: as `refresh`.
        """
        async with self._changing:
            self._refuse_static(route.id)
            new = route.id not in self._stored
            await self._save(route)
            return new

    async def change(self, route_id: str, changed: Callable[[Route], Route]) -> Route:
        """Replace a route by what *changed* makes of it, effective at once.

        Raises:
            NotFound: there is none of that id.
            InvalidRequest: it is a static one; nothing was changed.
            Unavailable: as `refresh`.
        """
        async with self._changing:
            await self.refresh()
            self._refuse_static(route_id)
            return await self._save(changed(self._known(route_id)))

    async def remove(self, route_id: str) -> None:
        """Remove a route, effective at once.

        Raises:
            NotFound: there is none of that id.
            InvalidRequest: it is a static one; nothing was changed.
            Unavailable: as `refresh`.
        """
        async with self._changing:
            self._refuse_static(route_id)
            if not await self._kept.delete_route(route_id):
                raise _missing(route_id)
            await self.refresh()

    async def _save(self, route: Route) -> Route:
        if route.id not in self._stored and len(self._stored) >= MOST_ROUTES:
            raise InvalidRequest(f"There are {MOST_ROUTES} routes already; remove one.", code="too_many")
        await self._kept.save_route(route)
        await self.refresh()
        return route

    def _heed(self, stored: dict[str, Route]) -> None:
        for route_id in stored.keys() & self._static.keys():
            log.warning(
                "the settings have a route of the same id as the database: theirs counts",
                action="routes.hidden",
                route=route_id,
            )
        self._stored = stored
        self._table = RouteTable((stored | self._static).values())
        self._found = {}
        for listener in self._listeners:
            listener()

    def _find(self, model: str) -> Route | None:
        if len(model) > _LONGEST_NAME:
            return None
        if len(self._found) >= MOST_NAMES:
            self._found = {}  # all at once: to take out the oldest gets slower with each
        route = self._found[model] = self._table.find(model)
        return route

    def _known(self, route_id: str) -> Route:
        route = self._static.get(route_id) or self._stored.get(route_id)
        if route is None:
            raise _missing(route_id)
        return route

    def _refuse_static(self, route_id: str) -> None:
        if route_id in self._static:
            raise InvalidRequest(
                f"The route {route_id!r} is one of the settings: change it in the configuration file.",
                param="id",
                code="static_route",
            )


def _missing(route_id: str) -> NotFound:
    return NotFound(f"There is no route {route_id!r}.")


Explain = Callable[[str, tuple[str, ...]], dict[str, Any]]
"""Where a request for a model with tags would go now: `targets`, each with its `selector`, `model` and `backends`; and `model` and
`tags`, where the request means others than those that stand in it."""


def explanation(book: RouteBook, registry: Registry) -> Explain:
    """By what is registered alone: whoever is selected, has the model and all of the tags, whether it is busy or not."""

    def explain(model: str, tags: tuple[str, ...]) -> dict[str, Any]:
        route = book.route_for(model)
        targets = route.targets if route else (Target(),)
        return {
            "targets": [_told(registry, target.selector, target.model or model, tags) for target in targets]
        }

    return explain


def _told(registry: Registry, selector: Selector, model: str, tags: tuple[str, ...]) -> dict[str, Any]:
    nodes = [
        node for node in registry.holders(model) if selector.selects(node) and node.tags.issuperset(tags)
    ]
    backends = [{"id": node.id, "state": node.state.value} for node in nodes]
    return {"selector": str(selector), "model": model, "backends": backends}
