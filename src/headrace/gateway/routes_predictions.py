"""Below `/v1/models/{model}`: what models that predict are asked, as TensorFlow Serving has it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from headrace.core.call import Call
from headrace.core.inference import Origin
from headrace.domain.access import Principal
from headrace.domain.inference import Api, Operation
from headrace.gateway.answer import PulledAnswer
from headrace.gateway.routes_inference import AnsweredRoute
from headrace.gateway.routes_models import ModelRoutes
from headrace.gateway.token_lane import TokenLane
from headrace.wire.prediction import read_prediction

_PREFIX = "/v1/models/"


def prediction_routes(lane: TokenLane, models: ModelRoutes) -> list[Route]:
    """The routes. They come before OpenAI's `/v1/models/{model}`, whose model may be called as they are: then it is that."""
    about = {Operation.METADATA: ("/metadata",), Operation.STATUS: ("/versions/{n:int}", "/labels/{label}")}
    routes = []
    for operation in Operation.of(Api.PREDICTION):
        asked = PredictionRoute(operation, lane)
        if operation in about:
            shown = OrModel(asked, models)
            routes += [
                Route(f"{_PREFIX}{{target:path}}{end}", shown, methods=["GET"]) for end in about[operation]
            ]
        else:
            path = operation.path.replace("{model}", "{target:path}")
            routes.append(Route(path, asked, methods=["POST"]))
    return routes


class PredictionRoute(AnsweredRoute):
    """One thing that a model that predicts can be asked."""

    def __init__(self, operation: Operation, lane: TokenLane) -> None:
        super().__init__(lane)
        self._operation = operation
        self._before, _, self._behind = operation.path.partition("{model}")

    def _start(
        self, request: Request, principal: Principal, raw_body: bytes, answer: PulledAnswer, origin: Origin
    ) -> Call[Any]:
        target = request.scope["path"].removeprefix(self._before).removesuffix(self._behind)
        prediction = read_prediction(self._operation, target, raw_body)
        ident = request.scope["state"]["request_id"]
        return self._lane.inference.predict(ident, principal, prediction, answer, origin)


class OrModel:
    """A question about a model that predicts, unless there is a model with the whole of the path as its name. An ASGI application."""

    def __init__(self, asked: PredictionRoute, models: ModelRoutes) -> None:
        self._asked = asked
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        name = scope["path"].removeprefix(_PREFIX)
        if not self._models.knows(name):
            await self._asked(scope, receive, send)
            return
        scope["path_params"] = {"model": name}
        response = await self._models.one(Request(scope, receive))
        await response(scope, receive, send)
