"""Finding out what direct backends hold, and whether they live: by asking for their list of models, again and again.

No inference request is ever spent on this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import structlog

from headrace.control.registry import Registry
from headrace.core.fetch import FetchFailed, fetch
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Timeouts
from headrace.kernel.aio import Tasks
from headrace.ports.connector import Connector, UpstreamRequest

log = structlog.get_logger(__name__)

_TIMEOUTS = Timeouts(connect_s=2.0, first_byte_s=5.0, idle_s=5.0)
_MAX_MODELS = 10_000


class _Listed(msgspec.Struct):
    id: str
    created: int = 0
    owned_by: str = ""


class _Listing(msgspec.Struct):
    data: list[_Listed]


@dataclass(frozen=True, slots=True)
class Watched:
    """A backend to be watched.

    models: names given by the settings; empty: those that the backend lists. optional: one that may never be there (a
    local Ollama): it appears when it answers, and its absence is no fault.
    """

    node: Node
    models: tuple[str, ...] = ()
    optional: bool = False


class Discovery:
    """Keeps the registry true about direct backends.

    Each is asked every *interval_s* seconds; one that doesn't answer after 1, 2, 4 … seconds, up to the interval; and at
    once when somebody couldn't connect to it (`unreachable`).
    """

    def __init__(
        self, registry: Registry, connectors: Mapping[str, Connector], *, interval_s: float = 10.0
    ) -> None:
        self._registry = registry
        self._connectors = connectors
        self._interval_s = interval_s
        self._tasks = Tasks()
        self._watched: dict[str, asyncio.Event] = {}

    async def start(self, backends: list[Watched], *, first_round_s: float = 1.0) -> None:
        """Watch *backends*; returns when each was asked once, or after *first_round_s*."""
        for backend in backends:
            self._watched[backend.node.id] = asyncio.Event()
            if not backend.optional:
                self._registry.upsert(backend.node)
        asked = [self._tasks.spawn(self._ask(backend), name=f"ask {backend.node.id}") for backend in backends]
        if asked:
            await asyncio.wait(asked, timeout=first_round_s)
        for backend in backends:
            self._tasks.spawn(self._watch(backend), name=f"watch {backend.node.id}")

    def unreachable(self, node_id: str, reason: str) -> None:
        """Somebody couldn't use the node: it counts as down until it answers."""
        if (soon := self._watched.get(node_id)) is not None:
            self._registry.update(node_id, NodeState.DOWN, reason)
            soon.set()

    async def close(self) -> None:
        """Stop watching."""
        await self._tasks.close()

    async def _watch(self, backend: Watched) -> None:
        soon = self._watched[backend.node.id]
        wait_s = 1.0
        while True:
            node = self._registry.get(backend.node.id)
            up = node is not None and node.state is NodeState.READY
            wait_s = self._interval_s if up or backend.optional else min(wait_s * 2, self._interval_s)
            try:
                async with asyncio.timeout(wait_s):
                    await soon.wait()
                wait_s = 0.5
                soon.clear()
            except TimeoutError:
                pass
            await self._ask(backend)

    async def _ask(self, backend: Watched) -> None:
        node_id = backend.node.id
        try:
            models = await self._models(node_id)
        except FetchFailed as error:
            self._lost(backend, error.failure.reason)
            return
        if backend.models:
            models = [ModelInfo(name) for name in backend.models]
        elif models is None:
            self._lost(backend, "It doesn't list its models; name them in the settings.")
            return
        if self._registry.get(node_id) is None:
            log.info("backend found", action="backend.found", node=node_id, models=len(models))
            self._registry.upsert(backend.node)
        self._registry.update(node_id, NodeState.READY, models=models)

    async def _models(self, node_id: str) -> list[ModelInfo] | None:
        """What the backend lists; None where it answers with something else.

        Raises:
            FetchFailed: it doesn't answer.
        """
        request = UpstreamRequest(method="GET", path="/v1/models", timeouts=_TIMEOUTS)
        response = await fetch(self._connectors[node_id], request)
        if response.status != 200:
            return None
        try:
            listing = msgspec.json.decode(response.body, type=_Listing)
        except (msgspec.DecodeError, RecursionError):
            return None
        return [ModelInfo(m.id, m.created, m.owned_by or node_id) for m in listing.data[:_MAX_MODELS]]

    def _lost(self, backend: Watched, reason: str) -> None:
        node = self._registry.get(backend.node.id)
        if node is None or backend.optional:
            self._registry.remove(backend.node.id)
            return
        if node.state is not NodeState.DOWN:
            log.warning("backend lost", action="backend.lost", node=node.id, reason=reason)
        self._registry.update(node.id, NodeState.DOWN, reason)
