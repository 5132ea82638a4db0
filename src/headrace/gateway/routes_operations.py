"""For those who operate the service: is it alive, and which version is it. No key needed, and nothing secret told."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace import __version__
from headrace.control.registry import Registry
from headrace.domain.fleet import NodeState


class OperationRoutes:
    """`/health` and `/version`."""

    def __init__(self, registry: Registry, ready: Callable[[], bool], default_model: str) -> None:
        self._registry = registry
        self._ready = ready
        self._default_model = default_model

    async def health(self, _request: Request) -> Response:
        """GET /health, /v1/health: 200 while requests are welcome, 503 from the beginning of a shutdown (C07, D09)."""
        nodes = self._registry.nodes()
        usable = sum(node.state is NodeState.READY for node in nodes)
        body = {
            "status": "ok" if self._ready() else "shutting down",
            "mode": "gateway",
            "default_model": self._default_model or None,
            "detail": f"runtimes={usable}",
        }
        status = 200 if self._ready() else 503
        return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")

    async def version(self, _request: Request) -> Response:
        """GET /version"""
        return Response(msgspec.json.encode({"version": __version__}), media_type="application/json")
