"""The ASGI application: assembled here, and nothing but assembled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from headrace.control.access import KeyRing
from headrace.control.registry import Registry
from headrace.core.inference import Inference
from headrace.domain.inference import Operation
from headrace.gateway.context import Errors, RequestIds
from headrace.gateway.requests import BodyLimits
from headrace.gateway.routes_inference import InferenceRoute
from headrace.gateway.routes_models import ModelRoutes
from headrace.gateway.routes_operations import OperationRoutes

_EXPOSED = ("x-request-id", "retry-after")


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What the gateway is told about itself. `cors_origin_regex`: browsers' origins that may call it."""

    limits: BodyLimits = field(default_factory=BodyLimits)
    cors_origin_regex: str = ""
    default_model: str = ""
    default_embedding_model: str = ""


def build_app(
    *,
    keys: KeyRing,
    registry: Registry,
    inference: Inference,
    ready: Callable[[], bool],
    options: GatewayOptions,
) -> ASGIApp:
    """The ASGI application over these parts. `ready`: whether new requests are welcome (not while shutting down)."""
    models = ModelRoutes(keys, registry)
    operations = OperationRoutes(registry, ready, options.default_model)
    routes = [
        Route("/v1/models", models.listing, methods=["GET"]),
        Route("/v1/models/{model:path}", models.one, methods=["GET"]),
        Route("/health", operations.health, methods=["GET"]),
        Route("/v1/health", operations.health, methods=["GET"]),
        Route("/version", operations.version, methods=["GET"]),
    ]
    for operation in Operation:
        embedding = operation is Operation.EMBEDDING
        default = options.default_embedding_model if embedding else options.default_model
        route = InferenceRoute(operation, keys, inference, options.limits, default)
        routes.append(Route(operation.path, route, methods=["POST"]))
    app: ASGIApp = Errors(Router(routes, redirect_slashes=False))
    if options.cors_origin_regex:
        app = CORSMiddleware(
            app,
            allow_origin_regex=options.cors_origin_regex,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    return RequestIds(app)
