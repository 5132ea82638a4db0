"""`/metrics`: what the service counts, gathered when it is asked for (decision 10 of the design: never per request)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from headrace import __version__
from headrace.control.access import KeyRing, read_key
from headrace.control.plane import LocalControlPlane
from headrace.control.registry import Registry
from headrace.control.runtimes import runtimes
from headrace.domain.access import Scope
from headrace.gateway import metrics_table as table
from headrace.gateway.guard import AddressGuard
from headrace.gateway.metrics_nodes import OTHER, node_samples, route_samples
from headrace.gateway.security import SecurityEvent
from headrace.kernel.errors import Forbidden
from headrace.observe.metrics import CONTENT_TYPE, Metric, Sample, render
from headrace.ports.control import Ending

MAX_CODES = 100
_RETRIED = {
    "NotSent": "not_sent",
    "Busy": "busy",
    "Loading": "loading",
    "Lost": "lost",
    "Overdrawn": "overdrawn",
}
"""What `Totals.retries` counts, as the samples call it."""
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Counted:
    """Who keeps the numbers. Each is looked at when somebody asks, and not before.

    refusals: of whoever stands before *control*, by code. gauges: numbers of parts that not every service has, by the names in
    `metrics_table.OPTIONAL`.

    Raises:
        ValueError: one of *gauges* has another name.
    """

    control: LocalControlPlane
    registry: Registry
    guard: AddressGuard
    refusals: Callable[[], Mapping[str, int]] = dict
    connections: Callable[[], int] = lambda: 0
    answering: Callable[[], int] = lambda: 0
    gauges: Mapping[str, Callable[[], float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = self.gauges.keys() - {metric.name for metric in table.OPTIONAL}
        if unknown:
            raise ValueError(f"no such metrics: {', '.join(sorted(unknown))}")

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        return "".join(render(metric, samples) for metric, samples in self._samples())

    def _samples(self) -> Iterator[tuple[Metric, Iterable[Sample]]]:
        yield table.BUILD, [((__version__,), 1)]
        yield from self._requests()
        yield from self._retries()
        yield from node_samples(runtimes(self.control, self.registry.nodes()))
        yield from route_samples(self.control.destinations.uses)
        yield from self._door()
        for metric in table.OPTIONAL:
            if (read := self.gauges.get(metric.name)) is not None:
                yield metric, _one(read())

    def _requests(self) -> Iterator[tuple[Metric, Iterable[Sample]]]:
        control = self.control
        totals = control.totals
        tokens = {"prompt": totals.prompt_tokens, "completion": totals.completion_tokens}
        yield table.REQUESTS, [((ending.value,), totals.requests[ending]) for ending in Ending]
        yield table.REFUSALS, _by_code(totals.refusals, self.refusals())
        yield table.TOKENS, [((kind,), count) for kind, count in tokens.items()]
        yield table.TOKENS_PROCESSED, _one(sum(tokens.values()))
        yield table.EXECUTIONS, _one(totals.executions)
        yield table.QUEUED, _one(totals.queued)
        yield table.WITHDRAWN, _one(totals.withdrawn)
        yield table.RUNNING, _one(control.running)
        waiting = control.waiting_by_class
        yield table.WAITING, [((priority.name.lower(),), count) for priority, count in waiting.items()]
        yield table.OLDEST_WAIT, _one(control.oldest_wait_s)
        yield table.SHARES, _one(control.shares_remembered)

    def _retries(self) -> Iterator[tuple[Metric, Iterable[Sample]]]:
        retried = self.control.totals.retries
        yield table.RETRIES, [((kind,), retried[name]) for name, kind in _RETRIED.items()]
        yield table.RETRIES_REFUSED, _one(self.control.retry_budget.refused)

    def _door(self) -> Iterator[tuple[Metric, Iterable[Sample]]]:
        guard = self.guard
        events = guard.events
        yield table.CONNECTIONS, _one(self.connections())
        yield table.ANSWERING, _one(self.answering())
        yield table.UNAUTHENTICATED, _one(guard.refusals)
        yield table.ADDRESS_LIMITED, _one(guard.limited)
        yield table.ADDRESSES, _one(guard.addresses)
        yield table.SECURITY_EVENTS, [((kind.value,), events.seen[kind]) for kind in SecurityEvent]
        yield table.SECURITY_SUPPRESSED, [((kind.value,), events.suppressed[kind]) for kind in SecurityEvent]
        yield table.SECURITY_ADDRESSES, _one(events.addresses)


class MetricsRoute:
    """GET /metrics: for keys with the scope `admin`, or for everybody where it is *open*."""

    def __init__(self, keys: KeyRing, counted: Counted, *, open_to_all: bool = False) -> None:
        self._keys = keys
        self._counted = counted
        self._open_to_all = open_to_all

    async def show(self, request: Request) -> Response:
        """Answer one request."""
        if not self._open_to_all:
            principal = self._keys.authenticate(read_key(request.scope["headers"]))
            if not principal.may(Scope.ADMIN):
                raise Forbidden("This needs a key with the scope 'admin'.")
        return Response(
            self._counted.text(), headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"}
        )


def _one(value: float) -> list[Sample]:
    return [((), value)]


def _by_code(*counts: Mapping[str, int]) -> list[Sample]:
    """Sums by code; a code that isn't one of ours, or one too many, counts as `other`: labels have a bound."""
    sums: Counter[str] = Counter()
    for part in counts:
        for code, count in part.items():
            known = _CODE.fullmatch(code) and (code in sums or len(sums) < MAX_CODES)
            sums[code if known else OTHER] += count
    return [((code,), count) for code, count in sorted(sums.items())]
