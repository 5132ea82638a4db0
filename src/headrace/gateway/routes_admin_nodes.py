"""`/admin/runtimes`: the backends, and how each of them is (C05)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from headrace.control.plane import LocalControlPlane
from headrace.control.registry import Registry
from headrace.control.runtimes import by_id, runtimes
from headrace.domain.access import Principal
from headrace.domain.fleet import near_names
from headrace.gateway.administration import Page, answer, query
from headrace.kernel.errors import NotFound


class NodeRoutes:
    """Nodes, to be looked at. What is told holds no keys."""

    def __init__(self, plane: LocalControlPlane, registry: Registry) -> None:
        self._plane = plane
        self._registry = registry

    async def listing(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/runtimes?after=&limit=200: by id."""
        page = Page.of(query(request, "after", "limit"))
        nodes = by_id(self._registry, page.after)[: page.limit + 1]
        return page.answer(runtimes(self._plane, nodes), lambda runtime: runtime)

    async def one(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/runtimes/{id}; the id may have slashes."""
        query(request)
        node_id = request.path_params["node_id"]
        node = self._registry.get(node_id)
        if node is None:
            near = near_names(node_id, (node.id for node in self._registry.nodes()))
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise NotFound(f"There is no node {node_id[:100]!r}.{hint}")
        return answer(runtimes(self._plane, [node])[0])
