"""The control plane of one process: admission, one bounded queue, slots, and the count of what came of it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.control.placement import RETRY_UNREACHABLE_S, choose, expected_wait, hopeless
from headrace.control.registry import Registry
from headrace.domain.fleet import NodeState, near_names
from headrace.kernel.clock import Clock, Timer
from headrace.kernel.errors import ModelNotFound, RequestError, Unavailable, UpstreamFailed, UpstreamTimeout
from headrace.ports.connector import Busy, Failure, Lost, NotSent
from headrace.ports.control import Admission, Ask, ControlPlane, Ending, Grant, Outcome, Waiting

BUSY_PAUSE_S = 1.0
"""How long a backend that said it is busy is left alone by the request it refused, where it named no time itself."""


@dataclass(slots=True)
class _Entry(Waiting):
    """One request that waits for a place, or runs."""

    ask: Ask
    told: Admission
    plane: LocalControlPlane
    executions: int = 0
    failed_on: frozenset[str] = frozenset()  # never again for this request
    busy_until: dict[str, float] | None = None  # node id → not before this, monotonic clock
    deadline: float = 0.0  # on the monotonic clock
    timer: Timer | None = None

    def withdraw(self) -> None:
        """Stop waiting."""
        self.plane.withdraw(self)

    def avoid(self, now: float) -> frozenset[str]:
        """Nodes that this request isn't sent to at *now*."""
        if not self.busy_until:
            return self.failed_on
        return self.failed_on | {node_id for node_id, until in self.busy_until.items() if now < until}


@dataclass(slots=True)
class Totals:
    """What was settled since the start."""

    requests: Counter[Ending] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    executions: int = 0


class LocalControlPlane(ControlPlane):
    """Grants places round-robin over the nodes that hold a model; who finds none free waits in order, per model.

    The queue holds at most *queue_size* requests, each for at most *queue_wait_s* seconds. `on_unreachable` is told the id
    of a node that couldn't be connected to.
    """

    def __init__(
        self, registry: Registry, clock: Clock, *, queue_size: int = 1024, queue_wait_s: float = 60.0
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._queue_size = queue_size
        self._queue_wait_s = queue_wait_s
        self._queues: dict[str, deque[_Entry]] = {}
        self._waiting = 0
        self._running: dict[str, tuple[Grant, _Entry]] = {}
        self._busy: Counter[str] = Counter()
        self._last: dict[str, str] = {}
        self.totals = Totals()
        self.on_unreachable: Callable[[str, str], None] = lambda _node_id, _reason: None
        registry.on_change(self._node_changed)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._waiting

    @property
    def running(self) -> int:
        """Grants that aren't finished."""
        return len(self._running)

    def busy(self, node_id: str) -> int:
        """Requests that the node runs now."""
        return self._busy[node_id]

    def admit(self, ask: Ask, told: Admission) -> Waiting:
        """Grant at once where a slot is free and nobody waits for the model; else queue, or refuse."""
        entry = _Entry(ask, told, self, deadline=self._clock.monotonic() + self._queue_wait_s)
        self._place(entry)
        return entry

    def retry(self, grant: Grant, failure: Failure, told: Admission) -> Waiting:
        """Another place for a request whose execution came to nothing, where that is free of risk (decision 5)."""
        running = self._running.pop(grant.ask.request_id, None)
        if running is None:
            return _Entry(grant.ask, told, self)
        entry = running[1]
        entry.told = told
        self._release(grant.target)
        self._drain_after(grant.target)
        if isinstance(failure, Busy):
            self._leave_alone(entry, grant.target, failure.retry_after_s or BUSY_PAUSE_S)
        else:
            entry.failed_on |= {grant.target}
        if isinstance(failure, NotSent):
            self.on_unreachable(grant.target, failure.reason)
        refusal = self._no_more(entry, grant, failure)
        if refusal is not None:
            self._refuse(entry, refusal)
        else:
            self._place(entry)
        return entry

    def finish(self, grant: Grant, outcome: Outcome) -> None:
        """Count it, free the slot, and let the next one in."""
        if self._running.pop(grant.ask.request_id, None) is None:
            return
        self.totals.prompt_tokens += outcome.usage.prompt_tokens
        self.totals.completion_tokens += outcome.usage.completion_tokens
        self._record(outcome.ending)
        self._release(grant.target)
        self._drain_after(grant.target)

    def withdraw(self, entry: _Entry) -> None:
        """Take *entry* out of the queue; nothing happens when it isn't in it."""
        if entry.timer is not None:
            self._unqueue(entry)
            self._record(Ending.CANCELLED)

    def _place(self, entry: _Entry) -> None:
        model = entry.ask.model
        holders = self._registry.holders(model)
        if not holders:
            self._refuse(entry, self._unknown(model))
        elif (refusal := hopeless(holders, model)) is not None:
            self._refuse(entry, refusal)
        elif self._queues.get(model) or not self._grant(entry):
            self._enqueue(entry)

    def _unknown(self, model: str) -> RequestError:
        """The model isn't there; or nobody can say, as long as a backend was never asked successfully."""
        unasked = [n.id for n in self._registry.nodes() if not n.models and n.state is not NodeState.READY]
        if unasked:
            return Unavailable(
                f"The model {model!r} is not known, and {', '.join(unasked)} can't be asked for its models.",
                retry_after_s=RETRY_UNREACHABLE_S,
                code="no_healthy_backend",
            )
        return ModelNotFound(model, near_names(model, [info.id for info in self._registry.models()]))

    def _grant(self, entry: _Entry) -> bool:
        """Give *entry* a free slot and tell it; False when there is none for it."""
        model = entry.ask.model
        now = self._clock.monotonic()
        avoid = entry.avoid(now)
        node = choose(self._registry.holders(model), self._busy, self._last.get(model), avoid)
        if node is None:
            return False
        self._last[model] = node.id
        self._busy[node.id] += 1
        self.totals.executions += 1
        entry.executions += 1
        grant = Grant(entry.ask, target=node.id, model=model, executions=entry.executions, granted_at=now)
        self._running[entry.ask.request_id] = (grant, entry)
        entry.told.granted(grant)
        return True

    def _enqueue(self, entry: _Entry) -> None:
        if self._waiting >= self._queue_size:
            self._refuse(entry, Unavailable("The queue is full.", retry_after_s=1.0, code="queue_full"))
            return
        left_s = max(0.0, entry.deadline - self._clock.monotonic())
        entry.timer = self._clock.call_later(left_s, lambda: self._expired(entry))
        self._queues.setdefault(entry.ask.model, deque()).append(entry)
        self._waiting += 1

    def _unqueue(self, entry: _Entry) -> None:
        queue = self._queues[entry.ask.model]
        queue.remove(entry)
        if not queue:
            del self._queues[entry.ask.model]
        self._waiting -= 1
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    def _expired(self, entry: _Entry) -> None:
        self._unqueue(entry)
        holders = self._registry.holders(entry.ask.model)
        wait = expected_wait(holders)
        reason = "is still loading" if wait is not None else "has no free slot"
        self._refuse(
            entry,
            Unavailable(
                f"The model {entry.ask.model!r} {reason}; the request waited {self._queue_wait_s:.0f} s.",
                retry_after_s=max(1.0, wait or 1.0),
                code="no_free_slot",
            ),
        )

    def _refuse(self, entry: _Entry, refusal: RequestError) -> None:
        self._record(Ending.FAILED)
        entry.told.refused(refusal)

    def _leave_alone(self, entry: _Entry, node_id: str, pause_s: float) -> None:
        """Don't send *entry* to a node that refused it, for a while: a node's word that it is full may be news to us."""
        entry.busy_until = {**(entry.busy_until or {}), node_id: self._clock.monotonic() + pause_s}
        self._clock.call_later(pause_s, lambda: self._drain(entry.ask.model))

    def _no_more(self, entry: _Entry, grant: Grant, failure: Failure) -> RequestError | None:
        """Why the request isn't tried again after *failure*; None when it is."""
        if isinstance(failure, Lost):
            if failure.timed_out:
                return UpstreamTimeout(f"The backend {grant.target!r} was too slow. {failure.reason}")
            return UpstreamFailed(f"The backend {grant.target!r} failed. {failure.reason}")
        if all(node.id in entry.failed_on for node in self._registry.holders(grant.ask.model)):
            return UpstreamFailed(f"The backend {grant.target!r} could not be used. {failure.reason}")
        return None

    def _release(self, node_id: str) -> None:
        self._busy[node_id] -= 1
        if self._busy[node_id] <= 0:
            del self._busy[node_id]

    def _record(self, ending: Ending) -> None:
        self.totals.requests[ending] += 1

    def _drain_after(self, node_id: str) -> None:
        """A slot of the node is free: the models that it holds may go on."""
        if self._waiting and (node := self._registry.get(node_id)) is not None:
            for info in node.models:
                self._drain(info.id)

    def _node_changed(self, _node_id: str) -> None:
        for model in tuple(self._queues):
            self._drain(model)

    def _drain(self, model: str) -> None:
        """Grant to those who wait for *model*, in order, while there are slots; refuse them when it became hopeless."""
        holders = self._registry.holders(model)
        refusal = hopeless(holders, model) if holders else ModelNotFound(model)
        for entry in tuple(self._queues.get(model, ())):
            if entry.timer is None:
                continue  # it left while we told the ones before it
            if refusal is not None:
                self._unqueue(entry)
                self._refuse(entry, refusal)
            elif choose(holders, self._busy, None, ()) is None:
                break
            elif choose(holders, self._busy, None, entry.avoid(self._clock.monotonic())) is not None:
                self._unqueue(entry)
                self._grant(entry)
