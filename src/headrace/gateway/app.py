"""The ASGI application: assembled here, and nothing but assembled."""

from __future__ import annotations

from collections.abc import Callable

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from headrace.control.registry import Registry
from headrace.domain.inference import Api, Operation
from headrace.gateway.administration import Administration
from headrace.gateway.context import Errors, RequestIds
from headrace.gateway.cors import OriginPolicy
from headrace.gateway.guard_asgi import GuardedApp
from headrace.gateway.metrics import MetricsRoute
from headrace.gateway.routes_admin import admin_routes
from headrace.gateway.routes_inference import InferenceRoute
from headrace.gateway.routes_models import ModelRoutes
from headrace.gateway.routes_operations import OperationRoutes
from headrace.gateway.routes_predictions import prediction_routes
from headrace.gateway.token_lane import TokenLane


def build_app(
    *,
    lane: TokenLane,
    registry: Registry,
    origins: OriginPolicy,
    ready: Callable[[], bool],
    admin: Administration | None = None,
    metrics: MetricsRoute | None = None,
) -> ASGIApp:
    """The ASGI application over these parts.

    ready: whether new requests are welcome (not while shutting down). admin: what `/admin` is about; without, it isn't there.
    metrics: what `/metrics` shows; the same.
    """
    routed = admin.routes if admin is not None else None
    models = ModelRoutes(lane.keys, registry, routed.aliases if routed is not None else dict)
    operations = OperationRoutes(registry, ready, lane.default_model)
    routes = [
        Route("/v1/models", models.listing, methods=["GET"]),
        *prediction_routes(lane, models),
        Route("/v1/models/{model:path}", models.one, methods=["GET"]),
        Route("/health", operations.health, methods=["GET"]),
        Route("/v1/health", operations.health, methods=["GET"]),
        Route("/version", operations.version, methods=["GET"]),
    ]
    routes += [
        Route(operation.path, InferenceRoute(operation, lane), methods=["POST"])
        for operation in Operation.of(Api.OPENAI)
    ]
    if admin is not None:
        routes += admin_routes(lane.keys, admin, registry)
    if metrics is not None:
        routes.append(Route("/metrics", metrics.show, methods=["GET"]))
    guarded = GuardedApp(Router(routes, redirect_slashes=False), lane.keys, lane.guard, lane.addresses)
    return RequestIds(origins.wrap(Errors(guarded)))
