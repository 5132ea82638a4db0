"""`/admin`: users, keys, quotas, usage and recent requests, for those whose key has the scope `admin`."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import Route

from headrace.control.access import KeyRing
from headrace.gateway.administration import Administration, Door
from headrace.gateway.routes_admin_keys import KeyRoutes
from headrace.gateway.routes_admin_usage import UsageRoutes
from headrace.gateway.routes_admin_users import UserRoutes


def admin_routes(keys: KeyRing, administration: Administration) -> Sequence[Route]:
    """Every route below `/admin`."""
    door = Door(keys)
    users = UserRoutes(administration)
    managed = KeyRoutes(administration.accounts)
    usage = UsageRoutes(administration.records)
    return [
        door.route("/admin/users", GET=users.listing, POST=users.create),
        door.route("/admin/users/{user_id}", GET=users.one, PATCH=users.change, DELETE=users.delete),
        door.route("/admin/users/{user_id}/quota", GET=users.quota),
        door.route("/admin/keys", GET=managed.listing, POST=managed.create),
        door.route("/admin/keys/{key_id}", GET=managed.one, PATCH=managed.change, DELETE=managed.revoke),
        door.route("/admin/usage", GET=usage.sums),
        door.route("/admin/recent", GET=usage.recent),
    ]
