"""`/admin/routes`: where requests for models go, in the form that the settings have, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import structlog
from msgspec import Meta, Struct
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from headrace.control.routes import Explain, RouteBook
from headrace.domain.access import Principal
from headrace.domain.routing import MOST_TAGS, TAG, Route
from headrace.gateway.administration import Page, answer, query, read
from headrace.kernel.errors import InvalidRequest
from headrace.settings.routes import Route as Written
from headrace.settings.routes import written

log = structlog.get_logger(__name__)


class Trial(Struct, frozen=True, forbid_unknown_fields=True):
    """A request that somebody thinks of."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    tags: Annotated[
        tuple[Annotated[str, Meta(pattern=rf"\A{TAG.pattern}\Z")], ...], Meta(max_length=MOST_TAGS)
    ] = ()


class RouteRoutes:
    """Routes. Those of the settings can be read here, and are changed there only."""

    def __init__(self, book: RouteBook, explain: Explain) -> None:
        self._book = book
        self._explain = explain

    async def listing(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/routes?after=&limit="""
        page = Page.of(query(request, "after", "limit"))
        routes = [route for route in await self._book.routes() if route.id > page.after]
        return page.answer(routes, _shown)

    async def create(self, request: Request, asker: Principal) -> Response:
        """POST /admin/routes"""
        form = _form(await read(request, dict[str, Any]))
        route = await self._book.create(form.route(form.id or ""))
        log.info("a route was added", action="route.created", route=route.id, by=asker.id)
        return answer(_shown(route), 201)

    async def one(self, request: Request, _asker: Principal) -> Response:
        """GET /admin/routes/{id}"""
        query(request)
        return answer(_shown(await self._book.route(request.path_params["route_id"])))

    async def replace(self, request: Request, asker: Principal) -> Response:
        """PUT /admin/routes/{id}: what isn't named is as it is by default."""
        route_id = request.path_params["route_id"]
        route = _form(await read(request, dict[str, Any]), route_id).route(route_id)
        new = await self._book.put(route)
        log.info("a route was put", action="route.put", route=route_id, new=new, by=asker.id)
        return answer(_shown(route), 201 if new else 200)

    async def change(self, request: Request, asker: Principal) -> Response:
        """PATCH /admin/routes/{id}: what isn't named stays as it is, of `timeouts`, too; other tables and lists are whole."""
        route_id = request.path_params["route_id"]
        changes = await read(request, dict[str, Any])

        def changed(route: Route) -> Route:
            return _form(_merged(written(route), changes), route_id).route(route_id)

        route = await self._book.change(route_id, changed)
        log.info(
            "a route was changed", action="route.changed", route=route_id, fields=_names(changes), by=asker.id
        )
        return answer(_shown(route))

    async def delete(self, request: Request, asker: Principal) -> Response:
        """DELETE /admin/routes/{id}"""
        route_id = request.path_params["route_id"]
        await self._book.remove(route_id)
        log.info("a route was removed", action="route.deleted", route=route_id, by=asker.id)
        return answer({"id": route_id, "deleted": True})

    async def trial(self, request: Request, _asker: Principal) -> Response:
        """POST /admin/routes/test: which route counts, and where such a request would go now."""
        asked = await read(request, Trial)
        told = self._explain(asked.model, asked.tags)
        route = self._book.route_for(
            told.get("model", asked.model)
        )  # without tags that stood behind its name
        shown = _shown(route) if route else None
        return answer({"model": asked.model, "tags": asked.tags, "route": shown} | told)


def _shown(route: Route) -> dict[str, Any]:
    return written(route) | {"static": route.static}


def _form(given: Mapping[str, Any], route_id: str | None = None) -> Written:
    """A request's body, which may be what was answered before. *route_id*: where it stands already, in the path.

    Raises:
        InvalidRequest: it isn't a route's; `param` names the member.
    """
    members = {name: value for name, value in given.items() if name != "static"}
    if route_id is not None and members.setdefault("id", route_id) != route_id:
        raise InvalidRequest(f"The route is called {route_id!r} in the path: it keeps its id.", param="id")
    try:
        return Written.model_validate(members)
    except ValidationError as error:
        raise _mistake(error) from None


def _merged(known: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    timeouts = changes.get("timeouts")
    if isinstance(timeouts, dict):
        changes = {**changes, "timeouts": known["timeouts"] | timeouts}
    return {**known, **changes}


def _mistake(error: ValidationError) -> InvalidRequest:
    """pydantic's first sentence, and the member that it is about."""
    first = error.errors(include_url=False, include_input=False)[0]
    param = ".".join(str(step) for step in first["loc"])[:200]
    if first["type"] == "value_error":
        what = f"is wrong: {first['ctx']['error']}"
    elif first["type"] == "extra_forbidden":
        what = "is no member of a route"
    elif first["type"] == "missing":
        what = "is missing"
    else:
        what = first["msg"].replace("Input should", "should")
    return InvalidRequest(f"{param!r} {what}.", param=param)


def _names(changes: Mapping[str, Any]) -> list[str]:
    return sorted(changes.keys() & Written.model_fields.keys())
