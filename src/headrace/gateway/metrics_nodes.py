"""What `/metrics` says of each backend and each route. Their number has no bound, so that of their labels gets one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from itertools import islice
from typing import TypeVar

from headrace.control.breaker import BreakerState
from headrace.control.destinations import Use
from headrace.control.health import FailureKind
from headrace.control.runtimes import Latency, Runtime
from headrace.domain.fleet import NodeState
from headrace.gateway import metrics_table as table
from headrace.observe.metrics import Metric, Sample

MAX_NODES = 500
"""Nodes that have samples of their own: those that are there for longest. The others are summed up as `other`."""
MAX_PACES = 1000
"""Pairs of node and model for which it is told how fast they are."""
MAX_ROUTES = 200
"""Routes that have samples of their own: those that were used first. The others are summed up as `other`."""
OTHER = "other"
_LONGEST = 200

Value = TypeVar("Value", bound=StrEnum)
Samples = tuple[Metric, Iterable[Sample]]


def node_samples(runtimes: list[Runtime]) -> Iterator[Samples]:
    """Of *runtimes*, in the order in which they came to the service."""
    named = [(runtime.id if place < MAX_NODES else OTHER, runtime) for place, runtime in enumerate(runtimes)]

    def summed(value: Callable[[Runtime], float]) -> list[Sample]:
        sums: dict[str, float] = {}
        for label, runtime in named:
            sums[label] = sums.get(label, 0) + value(runtime)
        return [((label,), total) for label, total in sums.items()]

    yield table.NODES, [((state.value,), sum(r.state is state for r in runtimes)) for state in NodeState]
    yield table.NODE_STATE, _by(NodeState, lambda state: summed(lambda runtime: runtime.state is state))
    yield table.NODE_UP, summed(lambda runtime: runtime.healthy)
    yield (
        table.NODE_BREAKER,
        _by(BreakerState, lambda state: summed(lambda runtime: runtime.breaker.state is state)),
    )
    yield table.NODE_OPENINGS, summed(lambda runtime: runtime.breaker.openings)
    yield table.NODE_BUSY, summed(lambda runtime: runtime.busy)
    yield table.NODE_SLOTS, summed(lambda runtime: runtime.slots)
    yield table.NODE_CAPACITY, summed(lambda runtime: runtime.capacity)
    yield table.NODE_EXECUTIONS, summed(lambda runtime: runtime.executions)
    yield (
        table.NODE_FAILURES,
        _by(FailureKind, lambda kind: summed(lambda runtime: runtime.failures.get(kind, 0))),
    )
    yield table.NODE_LOADS_HELD, summed(lambda runtime: runtime.loads_held)
    paces = list(islice(_paces(runtimes[:MAX_NODES]), MAX_PACES))
    yield table.NODE_FIRST_TOKEN, [(labels, latency.first_token_s) for labels, latency in paces]
    yield (
        table.NODE_BETWEEN_TOKENS,
        [(labels, latency.between_tokens_s) for labels, latency in paces if latency.between_tokens_s],
    )


def route_samples(uses: Mapping[tuple[str, int], Use]) -> Iterator[Samples]:
    """How often routes were used, by their id and the place of the target."""
    own = set(islice(dict.fromkeys(route_id for route_id, _ in uses if route_id), MAX_ROUTES))
    sums: Counter[tuple[str, str]] = Counter()
    for (route_id, place), use in uses.items():
        sums[route_id if route_id in own else OTHER, str(place)] += use.executions
    yield table.ROUTE_EXECUTIONS, [(labels, count) for labels, count in sums.items()]


def _by(values: Iterable[Value], samples: Callable[[Value], list[Sample]]) -> list[Sample]:
    """Samples with one label more: the value that they are of."""
    return [((*labels, value.value), number) for value in values for labels, number in samples(value)]


def _paces(runtimes: Iterable[Runtime]) -> Iterator[tuple[tuple[str, str], Latency]]:
    for runtime in runtimes:
        for model, latency in runtime.latencies.items():
            if len(model) <= _LONGEST:
                yield (runtime.id, model), latency
