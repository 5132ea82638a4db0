"""What serves models: engines of this machine, and endpoints elsewhere."""

from __future__ import annotations

import structlog

from headrace.connectors.direct import DirectConnector
from headrace.connectors.direct import Limits as ConnectionPool
from headrace.connectors.endpoint import Endpoint, Tls
from headrace.control.discovery import Watched
from headrace.control.registry import Registry
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.domain.inference import Timeouts
from headrace.engine.catalog import Catalog
from headrace.engine.local import LocalEngine
from headrace.engine.spec import EngineSpec
from headrace.engine.supervisor import EngineState
from headrace.kernel.clock import Clock
from headrace.ports.connector import Connector, Traits
from headrace.settings import Engine, Settings, Upstream
from headrace.settings.schema import UpstreamKind

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


def watched_upstream(upstream: Upstream, connectors: dict[str, Connector], clock: Clock) -> Watched:
    """A configured upstream, with its connector put among *connectors*."""
    key = upstream.read_api_key()
    times = upstream.timeouts
    connectors[upstream.name] = DirectConnector(
        Endpoint.parse(upstream.url, tls=Tls(ca_file=upstream.ca_file)),
        clock=clock,
        headers=[(b"authorization", b"Bearer " + key.encode())] if key else [],
        limits=ConnectionPool(connections=upstream.capacity + 16, idle=upstream.capacity),
        timeouts=Timeouts(times.connect, times.first_byte, times.idle),
        traits=_traits(upstream),
    )
    node = Node(upstream.name, "direct", capacity=upstream.capacity, tags=frozenset(upstream.tags))
    return Watched(node, upstream.models)


def _traits(upstream: Upstream) -> Traits:
    stops = upstream.cancels_unstreamed
    if stops is None:
        stops = upstream.kind is UpstreamKind.OLLAMA
    return Traits(cancels_unstreamed=stops, slots=upstream.capacity)


def local_ollama(settings: Settings, connectors: dict[str, Connector], clock: Clock) -> Watched:
    """The Ollama that may run on this machine without being configured."""
    node = Node("ollama", "direct", capacity=4, tags=frozenset({"local"}))
    endpoint = Endpoint.parse(settings.ollama.url)
    connectors[node.id] = DirectConnector(endpoint, clock=clock, traits=Traits(cancels_unstreamed=True))
    return Watched(node, optional=True)
