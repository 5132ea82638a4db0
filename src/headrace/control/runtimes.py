"""How the backends are, put together from all who know something of them: for administrators and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import msgspec

from headrace.control.breaker import BreakerState
from headrace.control.health import FailureKind, HealthView
from headrace.control.plane import LocalControlPlane
from headrace.control.registry import Registry
from headrace.control.strategies.load import Pace
from headrace.domain.fleet import Node, NodeState

_WORKS = (BreakerState.CLOSED, BreakerState.RECOVERING)


class Circuit(msgspec.Struct, frozen=True):
    """Whether a backend is left alone (docs/health.md). openings: how often it was. failures: in a row. changes_in_s: until it is
    tried, or gets more, by the mere passing of time; None when it waits for an event, or works."""

    state: BreakerState
    openings: int = 0
    failures: int = 0
    changes_in_s: float | None = None


class RuntimeModel(msgspec.Struct, frozen=True):
    """A model of a backend. loaded: whether it is in memory; None where the backend doesn't say."""

    id: str
    loaded: bool | None


class Latency(msgspec.Struct, frozen=True):
    """How fast a backend was with a model lately: moving averages, in seconds, over answers that were streamed to their end.
    between_tokens_s: None as long as no answer had two tokens."""

    first_token_s: float
    between_tokens_s: float | None


class Runtime(msgspec.Struct, frozen=True):
    """One backend, without anything secret.

    kind: what it speaks. connector: how it is reached. healthy: whether requests go there as usual, if it isn't full.
    since: when it came to its state. ready_in_s: where it says so, while it loads. capacity: requests that it takes at once;
    slots: how many of them it is allowed now. executions: requests that were sent there since it came; failures: of these,
    those that failed, by how. loads_held: models that others wait for while one request loads them there. latencies: by model.
    last_error: a sentence, empty without.
    """

    id: str
    kind: str
    connector: str
    state: NodeState
    healthy: bool
    since: datetime | None
    detail: str
    ready_in_s: float | None
    tags: tuple[str, ...]
    weight: float
    capacity: int
    slots: int
    busy: int
    breaker: Circuit
    executions: int
    failures: Mapping[FailureKind, int]
    loads_held: int
    models: tuple[RuntimeModel, ...]
    latencies: Mapping[str, Latency]
    last_error: str
    last_error_at: datetime | None


def runtimes(plane: LocalControlPlane, nodes: Iterable[Node]) -> list[Runtime]:
    """How *nodes* are now, in their order. Changes nothing."""
    paces, loads = plane.placement.load.all_paces(), plane.placement.warmth.loads()
    return [_runtime(plane, node, paces.get(node.id, {}), loads[node.id]) for node in nodes]


def by_id(registry: Registry, after: str = "") -> list[Node]:
    """Those nodes whose id comes after *after*, in the order of their ids."""
    return sorted((node for node in registry.nodes() if node.id > after), key=lambda node: node.id)


def _runtime(plane: LocalControlPlane, node: Node, paces: Mapping[str, Pace], loads_held: int) -> Runtime:
    view = plane.health.view(node.id) or HealthView(BreakerState.CLOSED, 0)
    return Runtime(
        id=node.id,
        kind=node.kind,
        connector=node.connector,
        state=node.state,
        healthy=node.state is NodeState.READY and view.state in _WORKS,
        since=_moment(node.since or None),
        detail=node.detail,
        ready_in_s=node.ready_in_s,
        tags=tuple(sorted(node.tags)),
        weight=node.weight,
        capacity=node.capacity,
        slots=view.allowed,
        busy=plane.busy(node.id),
        breaker=Circuit(view.state, view.openings, view.failures, view.changes_in_s),
        executions=view.executions,
        failures=view.counts,
        loads_held=loads_held,
        models=tuple(_model(node, info.id) for info in node.models),
        latencies={model: Latency(pace.first_s, pace.between_s or None) for model, pace in paces.items()},
        last_error=view.last_error,
        last_error_at=_moment(view.last_error_at),
    )


def _model(node: Node, name: str) -> RuntimeModel:
    return RuntimeModel(name, None if node.loaded is None else name in node.loaded)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
