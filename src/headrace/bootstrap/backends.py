"""What serves models: engines of this machine, and endpoints elsewhere."""

from __future__ import annotations

import math

import structlog

from headrace.connectors.direct import DirectConnector
from headrace.connectors.direct import Limits as ConnectionPool
from headrace.connectors.endpoint import Endpoint
from headrace.connectors.kinds import Kinds
from headrace.control.discovery import Watched
from headrace.control.registry import Registry
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Timeouts
from headrace.engine.catalog import Catalog
from headrace.engine.local import LocalEngine
from headrace.engine.spec import EngineSpec
from headrace.engine.supervisor import EngineState
from headrace.kernel.clock import Clock
from headrace.ports.backend import BackendSpec
from headrace.ports.connector import Connector
from headrace.settings import Engine, Settings, Upstream

log = structlog.get_logger(__name__)


def node_id(engine: Engine) -> str:
    """What an engine of this machine is called among the nodes."""
    return f"local/{engine.id}"


def local_engine(
    engine: Engine, catalog: Catalog, clock: Clock, registry: Registry, *, threads: int
) -> LocalEngine:
    """An engine of this machine, in the registry and not yet started. *threads*: where the settings leave them open."""
    name = node_id(engine)
    model = ModelInfo(engine.id, created=int(clock.now()))
    registry.upsert(Node(name, "engine", (model,), capacity=engine.parallel))

    def report(state: EngineState) -> None:
        registry.update(name, state.state, state.detail, ready_in_s=state.ready_in_s)
        if state.state is NodeState.FAILED:
            log.error(
                "an engine failed",
                action="engine.failed",
                engine=state.id,
                reason=state.detail,
                log=state.log[-3:],
            )

    def make_direct(path: str) -> Connector:
        # No connection is kept: this llama.cpp says Keep-Alive and hangs up after each streamed answer all the same (seen),
        # so that the next request on that connection would be lost.
        pool = ConnectionPool(connections=engine.parallel + 4, idle=0)
        return DirectConnector(Endpoint.unix(path), clock=clock, limits=pool)

    spec = EngineSpec(**engine.model_dump() | {"threads": engine.threads or threads})
    return LocalEngine(spec, catalog=catalog, make_direct=make_direct, clock=clock, on_state=report)


_UNKNOWN_CAPACITY = 1024
"""Connections for an upstream of which the settings don't say how much it takes: what it says itself is known later."""
_LOCAL_OLLAMA = "ollama"


def upstreams(
    settings: Settings, kinds: Kinds, connectors: dict[str, Connector], clock: Clock
) -> list[Watched]:
    """The configured upstreams and the Ollama that may run on this machine, with their connectors put among *connectors*.
    Loads the kinds that they are of.

    Raises:
        ConfigError: one's settings can't work, or its kind can't be used.
    """
    watched = [_upstream(upstream, kinds, connectors, clock) for upstream in settings.upstreams]
    if settings.ollama.probe and _LOCAL_OLLAMA not in connectors:  # else one of that name is configured
        watched.append(_local_ollama(settings, kinds, connectors, clock))
    return watched


def _upstream(upstream: Upstream, kinds: Kinds, connectors: dict[str, Connector], clock: Clock) -> Watched:
    spec = _spec(upstream)
    opened = kinds.get(upstream.kind).open(spec, clock)
    connectors[upstream.name] = opened.connector
    node = Node(
        upstream.name,
        "direct",
        tags=frozenset(upstream.tags),
        weight=upstream.weight,
        kind=upstream.kind,
        timeouts=spec.timeouts,
        api=opened.connector.traits.api,
    )
    return Watched(node, opened.prober, upstream.models, upstream.capacity)


def _spec(upstream: Upstream) -> BackendSpec:
    times = upstream.timeouts
    total_s = math.inf if times.total is None else times.total
    return BackendSpec(
        name=upstream.name,
        url=upstream.url,
        capacity=upstream.capacity or _UNKNOWN_CAPACITY,
        models=upstream.models,
        api_key=upstream.read_api_key() or "",
        ca_file=upstream.ca_file,
        cancels_unstreamed=upstream.cancels_unstreamed,
        timeouts=Timeouts(times.connect, times.first_byte, times.idle, total_s),
    )


def _local_ollama(
    settings: Settings, kinds: Kinds, connectors: dict[str, Connector], clock: Clock
) -> Watched:
    opened = kinds.get("ollama").open(BackendSpec(_LOCAL_OLLAMA, settings.ollama.url), clock)
    connectors[_LOCAL_OLLAMA] = opened.connector
    node = Node(_LOCAL_OLLAMA, "direct", tags=frozenset({"local"}), kind="ollama")
    return Watched(node, opened.prober, optional=True)
