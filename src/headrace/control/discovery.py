"""Finding out what backends hold and how they are, by asking each again and again. No inference request is spent on it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from headrace.control.registry import Registry
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.kernel.aio import Tasks
from headrace.kernel.clock import Clock, SystemClock
from headrace.ports.backend import Prober, Report, Unwell

log = structlog.get_logger(__name__)

DEFAULT_CAPACITY = 64
"""Requests at once for a backend of which neither the settings nor itself say it."""
_NO_MODELS = "It doesn't list its models; name them in the settings."
_LOADING = "It is loading its model."
_JITTER = 0.15


@dataclass(frozen=True, slots=True)
class Watched:
    """A backend to be watched.

    models: names given by the settings; empty: those that it lists. capacity: given by the settings; None: what it says itself,
    else that of *node*. optional: one that may never be there (a local Ollama): it appears when it answers, and its absence is
    no fault.
    """

    node: Node
    prober: Prober
    models: tuple[str, ...] = ()
    capacity: int | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """How often backends are asked; seconds.

    interval_s: one that is well. first_retry_s: one that isn't, at first; then ever later, up to the interval.
    loading_s: one that is loading. soon_s: between two looks at least, however often somebody asks for one.
    at_once: looks under way at most.
    """

    interval_s: float = 10.0
    first_retry_s: float = 1.0
    loading_s: float = 1.0
    soon_s: float = 0.25
    at_once: int = 128


class Discovery:
    """Keeps the registry true about backends that are asked.

    Each has its own rhythm, with some chance in it, so that a thousand aren't asked in one moment; and it is asked soon when
    somebody couldn't use it (`unreachable`) or waits for what it has (`look_soon`).

    on_probe: called after each look with the backend's id and whether it is ready for requests.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        pace: Pace = Pace(),
        clock: Clock | None = None,
        on_probe: Callable[[str, bool], None] | None = None,
    ) -> None:
        self.on_probe = on_probe
        self._registry = registry
        self._pace = pace
        self._clock = clock or SystemClock()
        self._tasks = Tasks()
        self._turn = asyncio.Semaphore(pace.at_once)
        self._soon: dict[str, asyncio.Event] = {}

    async def start(self, backends: Sequence[Watched], *, first_round_s: float = 1.0) -> None:
        """Watch *backends*; returns when each was asked once, or after *first_round_s*."""
        for backend in backends:
            self._soon[backend.node.id] = asyncio.Event()
            if not backend.optional:
                self._registry.upsert(self._at_first(backend))
        asked = [
            self._tasks.spawn(self._look(backend), name=f"look {backend.node.id}") for backend in backends
        ]
        if asked:
            await asyncio.wait(asked, timeout=first_round_s)
        for backend, first in zip(backends, asked, strict=True):
            self._tasks.spawn(self._watch(backend, first), name=f"watch {backend.node.id}")

    def unreachable(self, node_id: str, reason: str) -> None:
        """Somebody couldn't use the node: it counts as down until it answers, and is asked soon."""
        node = self._registry.get(node_id)
        if node is not None and node_id in self._soon:
            self._registry.upsert(self._in_state(node, NodeState.DOWN, reason))
            self.look_soon(node_id)

    def look_soon(self, node_id: str) -> None:
        """Somebody waits for news of the node: ask it now, or as soon as the pace allows."""
        if (soon := self._soon.get(node_id)) is not None:
            soon.set()

    async def close(self) -> None:
        """Stop watching."""
        await self._tasks.close()

    async def _watch(self, backend: Watched, first: asyncio.Task[object]) -> None:
        await asyncio.wait([first])
        soon, pace = self._soon[backend.node.id], self._pace
        retry_s = pace.first_retry_s
        while True:
            node = self._registry.get(backend.node.id)
            if node is not None and node.state is NodeState.LOADING:
                wait_s = min(pace.loading_s, pace.interval_s)
            elif backend.optional or (node is not None and node.state is NodeState.READY):
                wait_s, retry_s = pace.interval_s, pace.first_retry_s
            else:
                wait_s, retry_s = min(retry_s, pace.interval_s), min(retry_s * 2, pace.interval_s)
            await asyncio.sleep(min(wait_s, pace.soon_s))
            await _until(soon, wait_s * random.uniform(1 - _JITTER, 1 + _JITTER) - pace.soon_s)  # noqa: S311
            soon.clear()
            await self._look(backend)

    async def _look(self, backend: Watched) -> None:
        """Ask it once, and report."""
        async with self._turn:
            try:
                report = await backend.prober.look()
            except Unwell as error:
                state = NodeState.FAILED if error.refused_key else NodeState.DOWN
                self._lost(backend, state, error.message)
                ready = False
            except (
                Exception
            ) as error:  # a kind of another package may raise anything; only its own backends suffer
                log.exception("a prober raised", action="probe.raised", node=backend.node.id)
                self._lost(backend, NodeState.DOWN, f"Asking it failed: {type(error).__name__}.")
                ready = False
            else:
                ready = self._found(backend, report)
        if self.on_probe is not None:
            self.on_probe(backend.node.id, ready)

    def _found(self, backend: Watched, report: Report) -> bool:
        """It answered; whether it is ready."""
        known = self._registry.get(backend.node.id)
        node = known or backend.node
        named = tuple(ModelInfo(name) for name in backend.models if name not in report.absent)
        models = named if backend.models else report.models
        if models is None:
            models = node.models
        if not models and report.models is None and report.ready_in_s is None:
            self._lost(backend, NodeState.FAILED, _NO_MODELS)
            return False
        loading = report.ready_in_s is not None
        state = NodeState.LOADING if loading else NodeState.READY
        found = replace(
            self._in_state(node, state, _LOADING if loading else ""),
            models=models,
            capacity=backend.capacity or report.slots or backend.node.capacity,
            loaded=report.loaded,
            ready_in_s=report.ready_in_s or None,
        )
        if known is None or known.state is not state:
            log.info(
                "backend found",
                action="backend.found",
                node=node.id,
                state=state,
                models=len(models),
                product=report.product,
            )
        self._registry.upsert(found)
        return not loading

    def _lost(self, backend: Watched, state: NodeState, reason: str) -> None:
        node = self._registry.get(backend.node.id)
        if node is None or (backend.optional and state is NodeState.DOWN):
            self._registry.remove(backend.node.id)
            return
        if node.state is not state or node.detail != reason:
            log.warning("backend lost", action="backend.lost", node=node.id, state=state, reason=reason)
        self._registry.upsert(self._in_state(node, state, reason))

    def _at_first(self, backend: Watched) -> Node:
        models = tuple(ModelInfo(name) for name in backend.models)
        return replace(
            backend.node,
            models=models or backend.node.models,
            capacity=backend.capacity or backend.node.capacity,
            since=self._clock.now(),
        )

    def _in_state(self, node: Node, state: NodeState, detail: str) -> Node:
        since = node.since if node.state is state and node.since else self._clock.now()
        return replace(node, state=state, detail=detail, ready_in_s=None, since=since)


async def _until(event: asyncio.Event, limit_s: float) -> None:
    """Wait for the event, at most so long."""
    try:
        async with asyncio.timeout(max(0.0, limit_s)):
            await event.wait()
    except TimeoutError:
        pass
