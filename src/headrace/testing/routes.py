"""Routes in memory, for tests of what asks for them."""

from __future__ import annotations

import asyncio

from headrace.domain.routing import Route
from headrace.kernel.errors import InvalidRequest, Unavailable
from headrace.ports.records import Routes


class MemoryRoutes(Routes):
    """Keeps routes for as long as this object lives. Two books over one object are two processes at one database.

    While `failing`, every call raises `Unavailable` and changes nothing; `refused` counts them.
    """

    def __init__(self) -> None:
        self.failing = False
        self.refused = 0
        self._routes: dict[str, Route] = {}
        self._generation = 0

    async def routes(self) -> list[Route]:
        """All of them, by id."""
        await self._turn()
        return [self._routes[route_id] for route_id in sorted(self._routes)]

    async def save_route(self, route: Route) -> None:
        """Add *route*, or replace the one with its id."""
        await self._turn()
        if not route.id:
            raise InvalidRequest("id has to have 1 to 64 characters.", param="id")
        self._routes[route.id] = route
        self._generation += 1

    async def delete_route(self, route_id: str) -> bool:
        """Remove it; False: there is none."""
        await self._turn()
        if self._routes.pop(route_id, None) is None:
            return False
        self._generation += 1
        return True

    async def generation(self) -> int:
        """How often something was changed."""
        await self._turn()
        return self._generation

    async def _turn(self) -> None:
        """What else is ready to run comes first, as it does while a database is asked."""
        await asyncio.sleep(0)
        if self.failing:
            self.refused += 1
            raise Unavailable("The database can't be asked.")
