"""`/v1/models`: every model that some backend has, loaded or not, every alias of one, and that the key may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.control.access import KeyRing, read_key
from headrace.control.registry import Registry
from headrace.domain.access import Principal
from headrace.domain.fleet import ModelInfo, near_names
from headrace.kernel.errors import ModelHidden, ModelNotFound
from headrace.wire.openai import model_object


class ModelRoutes:
    """The list of models, and one of them."""

    def __init__(
        self, keys: KeyRing, registry: Registry, aliases: Callable[[], Mapping[str, str]] = dict
    ) -> None:
        self._keys = keys
        self._registry = registry
        self._aliases = aliases

    async def listing(self, request: Request) -> Response:
        """GET /v1/models"""
        usable = self._usable(self._principal(request)).values()
        models = [model_object(info.id, info.created, info.owned_by) for info in usable]
        return _json({"object": "list", "data": models})

    async def one(self, request: Request) -> Response:
        """GET /v1/models/{model}; the name may have slashes. What isn't in the list isn't here, either."""
        name = request.path_params["model"]
        principal = self._principal(request)
        models = self._usable(principal)
        if name not in models:
            kind = ModelNotFound if principal.may_use(name) else ModelHidden
            raise kind(name, near_names(name, models))
        info = models[name]
        return _json(model_object(info.id, info.created, info.owned_by))

    def knows(self, name: str) -> bool:
        """Whether there is a model of this name, for whoever may use it."""
        return bool(self._registry.holders(name)) or name in self._aliases()

    def _principal(self, request: Request) -> Principal:
        return self._keys.authenticate(read_key(request.scope["headers"]))

    def _usable(self, principal: Principal) -> dict[str, ModelInfo]:
        models = {info.id: info for info in self._registry.models()}
        for alias, model in self._aliases().items():
            if alias not in models and model in models:
                models[alias] = ModelInfo(alias, models[model].created, models[model].owned_by)
        return {name: models[name] for name in sorted(models) if principal.may_use(name)}


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
