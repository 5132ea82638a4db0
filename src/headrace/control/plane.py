"""The control plane of one process: admission, the one queue, slots, and the count of what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.control.placement import RETRY_UNREACHABLE_S, choose, expected_wait, hopeless
from headrace.control.queueing import Call, WaitingRoom
from headrace.control.recording import Recorder
from headrace.control.registry import Registry
from headrace.domain.fleet import ModelInfo, Node, NodeState, near_names
from headrace.domain.inference import Priority
from headrace.kernel.clock import Clock
from headrace.kernel.errors import (
    ModelNotFound,
    RequestError,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
    code_of,
)
from headrace.ports.connector import Busy, Failure, Lost, NotSent
from headrace.ports.control import Admission, Ask, ControlPlane, Ending, Grant, Outcome, Waiting

BUSY_PAUSE_S = 1.0
"""How long a backend that said it is busy is left alone by the request it refused, where it named no time itself."""


@dataclass(slots=True)
class Totals:
    """What was settled since the start. `refusals`: requests that got no place, or no further one, by the error's code."""

    requests: Counter[Ending] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    executions: int = 0
    queued: int = 0
    withdrawn: int = 0


class LocalControlPlane(ControlPlane):
    """Grants places round-robin over the nodes that hold a model; who finds none free waits, and is served by fair shares.

    The queue holds at most *queue_size* requests, each for at most *queue_wait_s* seconds. `on_unreachable` is told the id
    of a node that couldn't be connected to.
    """

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        *,
        queue_size: int = 1024,
        queue_wait_s: float = 60.0,
        recorder: Recorder | None = None,
    ) -> None:
        self._recorder = recorder
        self._registry = registry
        self._clock = clock
        self._room = WaitingRoom(clock, self._expired, size=queue_size, wait_s=queue_wait_s)
        self._queue = self._room.queue
        self._running: dict[str, Call] = {}
        self._busy: dict[str, int] = {}
        self._last: dict[str, str] = {}
        self._offers: dict[str, tuple[tuple[ModelInfo, ...], frozenset[str]]] = {}
        self._to_fill: dict[str, None] = {}
        self._filling = False
        self._resting: dict[str, float] = {}
        self.totals = Totals()
        self.on_unreachable: Callable[[str, str], None] = lambda _node_id, _reason: None
        registry.on_change(self._node_changed)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._queue.depth

    @property
    def waiting_by_class(self) -> dict[Priority, int]:
        """Requests in the queue, for each class."""
        return self._room.waiting()

    @property
    def oldest_wait_s(self) -> float:
        """How long the one in the queue waits that has waited longest; 0 when the queue is empty."""
        return self._room.oldest_age_s()

    @property
    def running(self) -> int:
        """Grants that aren't finished."""
        return len(self._running)

    def busy(self, node_id: str) -> int:
        """Requests that the node runs now."""
        return self._busy.get(node_id, 0)

    def admit(self, ask: Ask, told: Admission) -> Waiting:
        """Grant at once where a slot is free and nobody is before it; else queue, or refuse."""
        call = Call(ask, told, self)
        model = ask.model
        if self._queue.depth and self._queue.awaits(model):
            self._wait(
                call
            )  # a slot that is free all the same is about to be given to one before it, or rests
        elif (node := choose(self._registry.holders(model), self._busy, self._last.get(model), ())) is None:
            self._wait(call)
        else:
            self._grant(call, node)
        return call

    def retry(self, grant: Grant, failure: Failure, told: Admission) -> Waiting:
        """Another place for a request whose execution came to nothing, where that is free of risk (decision 5).

        It is granted before those who wait, and not charged again.
        """
        call = self._running.pop(grant.ask.request_id, None)
        if call is None:
            return Call(grant.ask, told, self)
        call.told = told
        self._release(grant.target)
        if isinstance(failure, Busy):
            self._leave_alone(call, grant.target, failure.retry_after_s or BUSY_PAUSE_S)
        else:
            call.failed_on |= {grant.target}
        if isinstance(failure, NotSent):
            self.on_unreachable(grant.target, failure.reason)
        self._again(call, grant, failure)
        if self._queue.depth and not isinstance(failure, Busy):
            self._fill(grant.target)
        return call

    def finish(self, grant: Grant, outcome: Outcome) -> None:
        """Count it, free the slot, and let the next one in."""
        if self._running.pop(grant.ask.request_id, None) is None:
            return
        totals = self.totals
        totals.prompt_tokens += outcome.usage.prompt_tokens
        totals.completion_tokens += outcome.usage.completion_tokens
        totals.requests[outcome.ending] += 1
        if self._recorder is not None:
            self._recorder.finished(grant, outcome)
        self._release(grant.target)
        if self._queue.depth:
            self._fill(grant.target)

    def withdraw(self, call: Call) -> None:
        """Take *call* out of the queue; nothing happens when it isn't in it."""
        if self._room.leave(call):
            self.totals.withdrawn += 1
            self.totals.requests[Ending.CANCELLED] += 1
            if self._recorder is not None:
                self._recorder.withdrawn(call.ask)

    def _again(self, call: Call, grant: Grant, failure: Failure) -> None:
        """Grant *call* another place, let it wait at the front, or refuse it."""
        model = grant.ask.model
        refusal = self._no_more(call, grant, failure) or self._pointless(grant.ask)
        if refusal is not None:
            self._refuse(call, refusal)
            return
        now = self._clock.monotonic()
        if grant.ask.deadline_s is not None:  # who didn't wait was first granted when it asked
            call.due = min(call.due, grant.granted_at + grant.ask.deadline_s)
        node = choose(self._registry.holders(model), self._busy, self._last.get(model), call.avoid(now))
        if now >= call.due:
            self._expired(call)
        elif node is not None:
            self._grant(call, node)
        else:
            self._room.come_back(call)
            self.totals.queued += 1

    def _wait(self, call: Call) -> None:
        """Let *call* wait, and tell the one that goes for it; refuse it where waiting is pointless."""
        ask = call.ask
        refusal = self._pointless(ask)
        if refusal is not None:
            self._refuse(call, refusal)
            return
        if ask.deadline_s is not None:
            call.due = self._clock.monotonic() + ask.deadline_s
        if not self._room.has_time(call):
            self._expired(call)
            return
        gone = self._room.enter(call)
        if gone is not call:
            self.totals.queued += 1
        if gone is not None:
            self._refuse(gone, self._full(pushed_out=gone is not call))

    def _full(self, *, pushed_out: bool) -> Unavailable:
        why = (
            " Your key had the most requests in it, and one gave way to another key's." if pushed_out else ""
        )
        return Unavailable(
            f"The queue is full.{why}", retry_after_s=self._room.drained_in(), code="queue_full"
        )

    def _pointless(self, ask: Ask) -> RequestError | None:
        """Why nobody will have a place for the model that is asked for; None where somebody may."""
        holders = self._registry.holders(ask.model)
        return hopeless(holders, ask.model) if holders else self._unknown(ask)

    def _unknown(self, ask: Ask) -> RequestError:
        """The model isn't there; or nobody can say, as long as a backend was never asked successfully. Names that look like
        it are told only to those who may use them."""
        model = ask.model
        unasked = [n.id for n in self._registry.nodes() if not n.models and n.state is not NodeState.READY]
        if unasked:
            return Unavailable(
                f"The model {model!r} is not known, and {', '.join(unasked)} can't be asked for its models.",
                retry_after_s=RETRY_UNREACHABLE_S,
                code="no_healthy_backend",
            )
        return ModelNotFound(
            model, near_names(model, [m.id for m in self._registry.models() if ask.principal.may_use(m.id)])
        )

    def _grant(self, call: Call, node: Node) -> None:
        """Give *call* a slot of *node* and tell it."""
        ask = call.ask
        model = ask.model
        self._last[model] = node.id
        self._busy[node.id] = self._busy.get(node.id, 0) + 1
        self.totals.executions += 1
        call.executions += 1
        self._running[ask.request_id] = call
        now = self._clock.monotonic()
        call.told.granted(Grant(ask, node.id, model, call.executions, now, call.position, call.waited_s))

    def _expired(self, call: Call) -> None:
        model = call.ask.model
        wait = expected_wait(self._registry.holders(model))
        reason = "is still loading" if wait is not None else "has no free slot"
        own = self._clock.monotonic() >= call.due
        self._refuse(
            call,
            Unavailable(
                f"The model {model!r} {reason}; the request waited {call.waited_s:.0f} s"
                + (", until its own deadline." if own else "."),
                retry_after_s=max(self._room.drained_in(), wait or 1.0),
                code="deadline_passed" if own else "no_free_slot",
            ),
        )

    def _refuse(self, call: Call, refusal: RequestError) -> None:
        self.totals.requests[Ending.FAILED] += 1
        self.totals.refusals[code_of(refusal)] += 1
        if self._recorder is not None:
            self._recorder.refused(call.ask, refusal)
        call.told.refused(refusal)

    def _leave_alone(self, call: Call, node_id: str, pause_s: float) -> None:
        """Don't send *call* to a node that refused it, for a while: a node's word that it is full may be news to us.

        As long, others who wait go there one by one, as requests end there: else the whole queue would be sent, and sent back.
        """
        pause_s = min(pause_s, max(BUSY_PAUSE_S, self._room.wait_s))
        until = self._clock.monotonic() + pause_s
        call.busy_until = {**(call.busy_until or {}), node_id: until}
        self._resting[node_id] = max(until, self._resting.get(node_id, until))
        self._clock.call_later(pause_s, lambda: self._pause_over(call, node_id))

    def _pause_over(self, call: Call, node_id: str) -> None:
        if self._clock.monotonic() >= self._resting.get(node_id, 0.0):
            self._resting.pop(node_id, None)
        self._room.look_again(call)
        self._fill(node_id)

    def _no_more(self, call: Call, grant: Grant, failure: Failure) -> RequestError | None:
        """Why the request isn't tried again after *failure*; None when it is."""
        if isinstance(failure, Lost):
            if failure.timed_out:
                return UpstreamTimeout(f"The backend {grant.target!r} was too slow. {failure.reason}")
            return UpstreamFailed(f"The backend {grant.target!r} failed. {failure.reason}")
        if all(node.id in call.failed_on for node in self._registry.holders(grant.ask.model)):
            return UpstreamFailed(f"The backend {grant.target!r} could not be used. {failure.reason}")
        return None

    def _release(self, node_id: str) -> None:
        left = self._busy[node_id] - 1
        if left:
            self._busy[node_id] = left
        else:
            del self._busy[node_id]

    def _models_of(self, node: Node) -> frozenset[str]:
        """The models that the node runs, made once for as long as it holds the same."""
        known = self._offers.get(node.id)
        if known is None or known[0] is not node.models:
            known = self._offers[node.id] = (node.models, frozenset(info.id for info in node.models))
        return known[1]

    def _node_changed(self, node_id: str) -> None:
        """Tell those whose waiting became pointless; fill what is free now."""
        self._resting.pop(node_id, None)  # what it said, it said before
        if self._registry.get(node_id) is None:
            self._offers.pop(node_id, None)
        for model in self._queue.models():
            holders = self._registry.holders(model)
            refusal = hopeless(holders, model) if holders else ModelNotFound(model)
            if refusal is not None:
                for ticket in self._queue.waiting_for(model):
                    if self._room.leave(ticket.call):
                        self._refuse(ticket.call, refusal)
        self._fill(node_id)

    def _fill(self, node_id: str) -> None:
        """Grant the node's free slots to those who wait for them.

        Who is told may come back at once; what that frees is filled by the outermost call, so that nothing nests without end.
        """
        self._to_fill[node_id] = None
        if self._filling:
            return
        self._filling = True
        try:
            while self._to_fill:
                self._fill_one(self._to_fill.popitem()[0])
        finally:
            self._filling = False

    def _fill_one(self, node_id: str) -> None:
        while self._queue.depth:
            node = self._registry.get(node_id)
            if node is None or node.state is not NodeState.READY or self.busy(node_id) >= node.capacity:
                return
            call = self._room.next(self._models_of(node), node_id)
            if call is None:
                return
            self._grant(call, node)
            if node_id in self._resting:
                return  # one went for the one that ended
