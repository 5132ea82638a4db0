"""`/admin`: users, keys, quotas, routes, nodes, usage and recent requests, for those whose key has the scope `admin`."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import Route

from headrace.control.access import KeyRing
from headrace.control.registry import Registry
from headrace.control.routes import Explain, RouteBook, explanation
from headrace.gateway.administration import Administration, Door
from headrace.gateway.routes_admin_keys import KeyRoutes
from headrace.gateway.routes_admin_nodes import NodeRoutes
from headrace.gateway.routes_admin_routes import RouteRoutes
from headrace.gateway.routes_admin_stream_test import StreamTestRoute
from headrace.gateway.routes_admin_usage import UsageRoutes
from headrace.gateway.routes_admin_users import UserRoutes


def admin_routes(keys: KeyRing, administration: Administration, registry: Registry) -> Sequence[Route]:
    """Every route below `/admin`. *registry*: where models are, for who asks where a request would go."""
    door = Door(keys)
    users = UserRoutes(administration)
    managed = KeyRoutes(administration.accounts)
    usage = UsageRoutes(administration.records)
    routes = [
        door.route("/admin/users", GET=users.listing, POST=users.create),
        door.route("/admin/users/{user_id}", GET=users.one, PATCH=users.change, DELETE=users.delete),
        door.route("/admin/users/{user_id}/quota", GET=users.quota),
        door.route("/admin/keys", GET=managed.listing, POST=managed.create),
        door.route("/admin/keys/{key_id}", GET=managed.one, PATCH=managed.change, DELETE=managed.revoke),
        door.route("/admin/usage", GET=usage.sums),
        door.route("/admin/recent", GET=usage.recent),
        door.route("/admin/stream-test", GET=StreamTestRoute().stream),
    ]
    if administration.routes is not None:
        routes += _model_routes(door, administration.routes, administration.explain, registry)
    if administration.plane is not None:
        nodes = NodeRoutes(administration.plane, registry)
        routes += [
            door.route("/admin/runtimes", GET=nodes.listing),
            door.route("/admin/runtimes/{node_id:path}", GET=nodes.one),
        ]
    return routes


def _model_routes(
    door: Door, book: RouteBook, explain: Explain | None, registry: Registry
) -> Sequence[Route]:
    managed = RouteRoutes(book, explain or explanation(book, registry))
    one = {"GET": managed.one, "PUT": managed.replace, "PATCH": managed.change, "DELETE": managed.delete}
    return [
        door.route("/admin/routes", GET=managed.listing, POST=managed.create),
        door.route("/admin/routes/test", POST=managed.trial),  # other methods: about a route of that name
        door.route("/admin/routes/{route_id}", **one),
    ]
