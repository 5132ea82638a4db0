"""A whole gateway inside the test's event loop, on a real port, in front of real HTTP backends."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace

from headrace.connectors.direct import DirectConnector
from headrace.connectors.endpoint import Endpoint
from headrace.connectors.openai import OpenAIProber
from headrace.control.access import KeyRing
from headrace.control.destinations import RouteFinder
from headrace.control.discovery import Discovery, Pace, Watched
from headrace.control.plane import LocalControlPlane
from headrace.control.quota import QuotaPlane
from headrace.control.recording import Recorder
from headrace.control.registry import Registry
from headrace.core.inference import Inference
from headrace.domain.fleet import ModelInfo, Node, NodeState
from headrace.gateway.addresses import Addresses
from headrace.gateway.administration import Administration
from headrace.gateway.app import build_app
from headrace.gateway.cors import OriginPolicy
from headrace.gateway.gate import ConnectionLimits
from headrace.gateway.guard import AddressGuard
from headrace.gateway.listener import Listener, bind
from headrace.gateway.metrics import Counted, MetricsRoute
from headrace.gateway.problems import problem
from headrace.gateway.requests import BodyLimits
from headrace.gateway.token_lane import Patience, TokenLane
from headrace.kernel.clock import Clock, SystemClock
from headrace.ports.backend import BackendSpec
from headrace.ports.connector import Connector
from headrace.ports.ledger import QuotaLedger
from headrace.ports.records import Records
from headrace.testing.records import MemoryRecords

KEY = "sk-test-0123456789"


@dataclass
class House:
    """The parts of a running gateway."""

    port: int
    registry: Registry
    control: LocalControlPlane
    inference: Inference
    listener: Listener
    connectors: dict[str, Connector]
    keys: KeyRing
    lane: TokenLane

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def auth(self) -> dict[str, str]:
        """Headers that open it."""
        return {"authorization": f"Bearer {KEY}"}


@dataclass
class Quota:
    """What requests are held to, by which clock, and where they are recorded. The ledger is open already."""

    ledger: QuotaLedger
    clock: Clock = field(default_factory=SystemClock)
    records: Records = field(default_factory=MemoryRecords)
    secret_models: bool = False


@contextlib.asynccontextmanager
async def gateway(
    *urls: str,
    capacity: int = 64,
    limits: BodyLimits | None = None,
    connection: ConnectionLimits | None = None,
    queue_wait_s: float = 10.0,
    patience: Patience | None = None,
    asgi: bool = False,
    engines: Mapping[str, Connector] | None = None,
    admin: Callable[[KeyRing], Administration] | None = None,
    guard: AddressGuard | None = None,
    addresses: Addresses | None = None,
    open_metrics: bool = False,
    quota: Quota | None = None,
    routes: RouteFinder | None = None,
) -> AsyncIterator[House]:
    """A gateway over the backends at *urls*, named b0, b1, …; gone with everything it opened at the end.

    asgi: without the token lane, so that inference requests take the ASGI lane, too. engines: model → a connector that is
    ready to serve it. admin: what `/admin` is about, over the gateway's key ring, and the routes; without, it isn't there.
    guard: none holds nobody back. addresses: none trusts no proxy. open_metrics: `/metrics` asks for no key. quota: what holds
    requests to limits, and records them; without, nothing does. routes: those in force, where *admin* has none.
    """
    clock = quota.clock if quota else SystemClock()
    recorder = Recorder(quota.records, clock, lambda error: problem(error).status) if quota else None
    keys = KeyRing()
    keys.add(KEY)
    registry = Registry()
    administration = admin(keys) if admin else None
    control = LocalControlPlane(
        registry,
        clock,
        queue_size=64,
        queue_wait_s=queue_wait_s,
        recorder=recorder,
        routes=administration.routes if administration else routes,
    )
    connectors: dict[str, Connector] = {
        f"b{i}": DirectConnector(Endpoint.parse(url), clock=clock) for i, url in enumerate(urls)
    }
    metered = (
        QuotaPlane(control, quota.ledger, clock, recorder, secret_models=quota.secret_models)
        if quota
        else None
    )
    status_of = recorder.status_of if recorder else lambda _error: 0
    inference = Inference(metered or control, connectors, status_of)
    discovery = Discovery(registry, pace=Pace(interval_s=0.5))
    control.on_unreachable, control.lookout.on_awaited = discovery.unreachable, discovery.look_soon
    await discovery.start(
        [
            Watched(
                Node(name, "direct", capacity=capacity),
                OpenAIProber(connector, BackendSpec(name, "")),
                capacity=capacity,
            )
            for name, connector in connectors.items()
        ],
        first_round_s=5,
    )
    for model, connector in (engines or {}).items():
        connectors[f"local/{model}"] = connector
        registry.upsert(
            Node(
                f"local/{model}",
                "engine",
                (ModelInfo(model),),
                capacity=4,
                state=NodeState.READY,
                api=connector.traits.api,
            )
        )
    origins = OriginPolicy("https://app\\.example")
    lane = TokenLane(
        keys,
        inference,
        origins,
        limits or BodyLimits(),
        patience or Patience(),
        guard=guard or AddressGuard(per_minute=0),
        addresses=addresses or Addresses(),
    )
    counted = Counted(
        control,
        registry,
        lane.guard,
        refusals=lambda: metered.refusals if metered else {},
        connections=lambda: listener.connections,
        answering=lambda: listener.answering,
    )
    app = build_app(
        lane=lane,
        registry=registry,
        origins=origins,
        ready=lambda: True,
        admin=replace(administration, plane=control) if administration else None,
        metrics=MetricsRoute(keys, counted, open_to_all=open_metrics),
    )
    listening = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    listener = Listener(app, listening, connection or ConnectionLimits(), None if asgi else lane)
    await listener.start()
    try:
        yield House(port, registry, control, inference, listener, connectors, keys, lane)
    finally:
        await listener.close()
        await discovery.close()
        for connector in connectors.values():
            await connector.close()
